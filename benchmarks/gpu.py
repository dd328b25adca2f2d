r"""What a GPU makes of the study, measured by one command on a machine that has one: `python -m benchmarks.gpu`.

1. Each pass of a mask step (`lib.concrete.merge_step`) at ViT-B/32 size with eight task vectors, in GB/s, beside the
   card's own copy of a vector.
2. Whole Concrete AdaMerging of ViT-B/32 as in the paper, eight tasks of 16 images: 2000 steps of the mask and 1000 of
   adaptation, ours and FusionBench's (where it is installed: `make test-peers`). Weights and images are random. Ours
   runs once more with the encoder in bfloat16. Peak memory on the card beside each.
3. Where the milliseconds of one of our steps go: encoder, merging, mask; and the host, for which the card waits (from
   torch's profiler: the step's time less that in which some kernel runs).

`--quick` takes a hundredth of the steps and multiplies; `extrapolated` then says so. Writes data/benchmarks/gpu.csv,
with the card's name and torch's version. Without a GPU it says so and ends with status 2.

The module also has the arithmetic of docs/performance.md: bytes that a step moves, and how long a card's published
bandwidth would take for them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from benchmarks import adaptation
from benchmarks.adaptation import BF16, CONCRETE, OURS, PAPER_STEPS, PEER, PLAIN, Clock
from benchmarks.common import ROOT, in_own_process, machine, vit_b_32_shapes
from benchmarks.merge_step import timed
from lib.concrete.merge_step import MergeStep
from lib.vectors.layout import Layout

TABLE = ROOT / "data/benchmarks/gpu.csv"
QUICK = 100  # times fewer steps
PARAMETERS = {"ViT-B/32": 87_849_216, "ViT-L/14": 303_966_208}  # of the image encoders
BANDWIDTH = {"A100 80 GB": 2039, "H100 SXM": 3350}  # GB/s, as NVIDIA's data sheets say


def bytes_moved(tasks: int, size: int = 4) -> dict[str, int]:
    """Bytes per parameter that each pass of a step of Concrete AdaMerging reads and writes.

    Numbers per block and per layer, a thousandth of that, are left out.

    Args:
        tasks: T.
        size: bytes of an element of a task vector: 4, or 2 for bfloat16.
    """
    vectors = size * tasks
    merge = 4 + 4 + vectors + 4  # theta0, logits, task vectors; theta
    return {
        "draw: mean of the mask": 4,
        "inner level: merge": merge,
        "inner level: gradient of the coefficients": 4 + 4 + vectors,  # G, logits, task vectors
        "upper level: merge": merge,
        "upper level: gradients, and their sum S": 4 + 4 + vectors + 4,  # the same; S
        "upper level: logits and Adam": 5 * 4 + 3 * 4,  # logits, two moments, G, S; the first three again
    }


def milliseconds(parameters: int, per_parameter: int, gigabytes_per_second: float) -> float:
    """How long moving so many bytes takes."""
    return parameters * per_parameter / gigabytes_per_second / 1e6


def passes(layout: Layout, tasks: int, device: str, backend: str = "auto") -> list[dict]:
    """Median seconds and GB/s of each pass, and of a plain copy of a vector."""
    theta0, gradient = (torch.randn(layout.length, device=device) for _ in range(2))
    merging = MergeStep(theta0, torch.randn(tasks, layout.length, device=device), layout, backend=backend)
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    coefficients = torch.full((tasks, layout.layers), 0.3, device=device)
    draw, merge, pull, _, both, update = bytes_moved(tasks).values()
    rows = []
    for name, moved, call in (
        ("copy of a vector", 8, lambda: gradient.copy_(theta0)),
        ("mean of the mask", draw, lambda: merging.draw(0)),
        ("merge", merge, lambda: merging.merge(coefficients)),
        ("gradient of the coefficients", pull, lambda: merging.coefficient_gradient(gradient)),
        ("gradients, logits and Adam", both + update, lambda: merging.update_mask(gradient)),
    ):
        seconds = statistics.median(timed(call, device))
        speed = layout.length * moved / seconds / 1e9
        rows.append({"what": name, "seconds": seconds, "gb_per_s": speed, "of_copy": speed})
    return [row | {"of_copy": row["gb_per_s"] / rows[0]["gb_per_s"]} for row in rows]


def wait(device: str) -> None:
    """Until the card has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class WholeRun(Clock):
    """A clock that looks twice, after the warm-up and at the end: between them the host may run ahead of the card."""

    def __init__(self, warm_up: int, device: str) -> None:
        self.device, self.done = device, 0
        super().__init__(warm_up)

    def stop(self) -> None:
        """End a step."""
        self.done += 1
        self.spent = {"encoder": 0.0, "loading": 0.0}
        if self.done == self.warm_up:
            wait(self.device)
            self.began_counting = time.perf_counter()

    def result(self) -> dict[str, float]:
        """Mean over the steps after the warm-up, their loading included."""
        wait(self.device)
        steps = self.done - self.warm_up
        return {"steps": steps, "seconds_per_step": (time.perf_counter() - self.began_counting) / steps}


# Which part of a step the methods of `MergeStep` belong to.
METHODS = {"draw": "mask", "update_mask": "mask", "merge": "merging", "coefficient_gradient": "merging"}


class Parts:
    """Seconds of a step by part, each waited for: spans of the routines that make them up."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, dict.fromkeys(("encoder", "merging", "mask"), 0.0)

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Count what happens inside."""
        wait(self.device)
        began = time.perf_counter()
        yield
        wait(self.device)
        self.seconds[part] += time.perf_counter() - began

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, every method of `MergeStep` counts."""

        def counted(method: Callable, part: str) -> Callable:
            def call(*args: object) -> object:
                with self.span(part):
                    return method(*args)

            return call

        found = {name: counted(getattr(MergeStep, name), part) for name, part in METHODS.items()}
        with mock.patch.multiple(MergeStep, **found):
            yield


class PartsClock(WholeRun):
    """The same clock, which also counts the encoder's share into `Parts`."""

    def __init__(self, warm_up: int, device: str, parts: Parts) -> None:
        super().__init__(warm_up, device)
        self.parts = parts

    def stop(self) -> None:
        """End a step; those of the warm-up do not count."""
        super().stop()
        if self.done == self.warm_up:
            self.parts.seconds = dict.fromkeys(self.parts.seconds, 0.0)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count what happens inside."""
        if what != "encoder":
            yield
            return
        with self.parts.span(what):
            yield


def where_the_time_goes(case: dict, device: str) -> dict[str, float]:
    """Milliseconds of one of our steps by part; `host` is the time in which no kernel runs."""
    parts, steps = Parts(device), case["steps"]
    clock = PartsClock(case["warm_up"], device, parts)
    with parts.watching():
        adaptation.ours(case, clock)
    found = {f"{name}_ms": 1000 * seconds / steps for name, seconds in parts.seconds.items()}
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device == "cuda")
    clock = WholeRun(case["warm_up"], device)
    with torch.profiler.profile(activities=activities) as profile:
        adaptation.ours(case, clock)
        step = clock.result()["seconds_per_step"]
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    busy = sum(getattr(event, kind) for event in profile.key_averages()) / 1e6 / clock.done
    return found | {"step_ms": 1000 * step, "host_ms": 1000 * max(0.0, step - busy)}


def run_case(case: dict, device: str) -> dict:
    """Run one case in this process."""
    torch.manual_seed(0)
    if case["what"] == "passes":
        shapes = case["shapes"]
        return {"rows": passes(Layout(tuple(shapes), tuple(map(tuple, shapes.values()))), case["tasks"], device)}
    case = case | {"device": device}
    if case["what"] == "parts":
        return where_the_time_goes(case, device)
    clock = WholeRun(case["warm_up"], device)
    (adaptation.ours if case["who"] == OURS else adaptation.fusion_bench)(case, clock)
    found = clock.result()
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    steps = PAPER_STEPS[case["method"]]
    return found | {"peak_gb": peak, "run_seconds": found["seconds_per_step"] * steps, "extrapolated": case["quick"]}


def cases(quick: bool, scale: float = 1.0) -> list[dict]:
    """What to measure."""
    one = {"model": "ViT-B/32", "tasks": 8, "batch": 16, "warm_up": 5, "quick": quick, "variant": "", "who": OURS}
    fewer = QUICK if quick else 1
    whole = [
        one | {"what": "run", "who": who, "variant": variant, "method": method, "steps": steps // fewer}
        for who, variant in ((PEER, ""), (OURS, ""), (OURS, BF16))
        for method, steps in PAPER_STEPS.items()
    ]
    profiled = one | {"what": "parts", "steps": 10}
    parts = [profiled | {"method": method, "variant": own} for method in (CONCRETE, PLAIN) for own in ("", BF16)]
    return [{"what": "passes", "tasks": 8, "shapes": vit_b_32_shapes(scale), "model": "ViT-B/32"}, *whole, *parts]


def main(arguments: list[str] | None = None) -> int:
    """Measure every case and write the table.

    Returns:
        The exit status: 2 without a GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"a {QUICK}th of the steps, extrapolated")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu measures a GPU, and torch sees none here.", file=sys.stderr)
        return 2
    if options.case:
        print("\n" + json.dumps(run_case(json.loads(options.case), "cuda")))
        return 0
    import pandas as pd

    from lib.study.tables import save_table

    about, rows = machine("cuda"), []
    print(f"On {about['machine']}, torch {about['torch']}", flush=True)
    for case in cases(options.quick):
        result = in_own_process("benchmarks.gpu", case)
        told = {name: value for name, value in case.items() if name not in ("shapes", "warm_up", "quick")}
        if isinstance(result, str):
            print(f"{told}: left out: {result}", flush=True)
            continue
        found = [told | row for row in result.pop("rows", [result])]
        print(*found, sep="\n", flush=True)
        rows += [row | about for row in found]
        save_table(pd.DataFrame(rows), TABLE)  # after every case: it is an hour of measuring
    print(f"Written to {TABLE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

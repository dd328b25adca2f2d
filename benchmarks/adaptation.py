"""A step of Concrete AdaMerging and of AdaMerging, ours and FusionBench's: `python -m benchmarks.adaptation`.

Both sides run their own loop on the same image encoder with layer-wise coefficients, eight task vectors and 16 random
images per task. A mask learning step is: sample, merge, inner forward and backward pass, inner step, merge, outer
forward and backward pass, step of the logits. An adaptation step is: merge, forward and backward pass, step.

A step's time is split in two. The encoder's forward and backward passes, down to the gradient of the merged
parameters, nobody can avoid; here all tasks go through it as one batch, in FusionBench one task after the other. The
rest is merging and its gradient, sampling and the optimisers. Loading images counts for neither side. Ours runs once
more in a variant: on the tiny model with merging compiled, which by default it is only on large ones; on the large
model with the encoder in bfloat16. Every case runs in a process of its own; where memory does not suffice for
FusionBench, both sides get half as many tasks, and the table says so.

Writes data/benchmarks/adaptation.csv. `extrapolated_seconds` is for as many steps as in the paper: 2000 for the mask,
1000 of adaptation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, in_own_process, machine, peak_resident, vit_b_32

TABLE = ROOT / "data/benchmarks/adaptation.csv"
CONCRETE, PLAIN = "Concrete AdaMerging, learning the mask", "AdaMerging"
PAPER_STEPS = {CONCRETE: 2000, PLAIN: 1000}
OURS, PEER = "this study", "FusionBench"
CLASSES = (397, 196, 45, 10, 10, 43, 10, 47)  # of the paper's eight tasks
BF16, COMPILED = "bf16 encoder", "compiled merging"
VARIANTS = {"tiny CLIP": COMPILED, "ViT-B/32": BF16}
MODELS = {"tiny CLIP": (32, 96), "ViT-B/32": (224, 512)}  # side of the images, width of the features


class Clock:
    """What the steps of a loop spend where; the first `warm_up` steps do not count."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.steps = warm_up, []
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self.spent, self.began = {"encoder": 0.0, "loading": 0.0}, time.perf_counter()

    def stop(self) -> None:
        """End a step and begin the next."""
        seconds = time.perf_counter() - self.began - self.spent["loading"]
        self.steps.append((seconds, self.spent["encoder"]))
        self.start()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count what happens inside."""
        began = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - began

    def result(self) -> dict[str, float]:
        """Medians over the steps."""
        counted = self.steps[self.warm_up :]
        columns = {
            "seconds_per_step": [seconds for seconds, _ in counted],
            "encoder_seconds": [encoder for _, encoder in counted],
            "other_seconds": [seconds - encoder for seconds, encoder in counted],
        }
        return {name: statistics.median(values) for name, values in columns.items()} | {"steps": len(counted)}


def encoder_of(model: str) -> nn.Module:
    """The image encoder."""
    if model == "ViT-B/32":
        return vit_b_32()
    from lib.vision.models import load_clip

    return load_clip().visual


def heads_of(case: dict) -> list[Tensor]:
    """Random heads of the paper's numbers of classes; logits are 10 times a cosine similarity."""
    width, device = MODELS[case["model"]][1], device_of(case)
    return [10 * nn.functional.normalize(torch.randn(c, width), dim=-1).to(device) for c in CLASSES[: case["tasks"]]]


def device_of(case: dict) -> str:
    """Where a case computes: here on the CPU; `benchmarks.gpu` says "cuda"."""
    return case.get("device", "cpu")


def ours(case: dict, clock: Clock) -> None:
    """`lib.adaptation.adapt` with the study's objective. The first steps see one image per task: enough to warm up."""
    from lib.adaptation.loop import adapt
    from lib.runtime.device import Runtime
    from lib.vectors.flat_model import FlatModel
    from lib.vision.models import Preprocess
    from lib.vision.objective import ImageObjective

    device = device_of(case)
    model = FlatModel(encoder_of(case["model"]), device)
    theta0, inside = model.initial(), model.layout.inside(device)
    vectors = torch.empty(case["tasks"], model.layout.length, device=device)
    for row in vectors:
        row.normal_(std=1e-3).mul_(inside)
    side, concrete = MODELS[case["model"]][0], case["method"] == CONCRETE
    images = [torch.randint(0, 256, (2 * case["batch"], 3, side, side), dtype=torch.uint8) for _ in vectors]
    given = model, heads_of(case), images, Preprocess((0.5,) * 3, (0.25,) * 3)
    runtime = Runtime(device, "bf16" if case["variant"] == BF16 else "fp32")
    first, later = (ImageObjective(*given, runtime, batch=size, seed=0) for size in (1, case["batch"]))

    def objective_at(number: int):  # noqa: ANN202 - an Objective
        step = number // 2 if concrete else number
        with clock("loading"):
            inner = (first if step < clock.warm_up else later)(number)

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            with clock("encoder"):
                return inner(theta)

        return objective

    def watch(_: object) -> dict[str, float]:
        clock.stop()
        return {}

    point = theta0, vectors, model.layout
    steps = clock.warm_up + case["steps"]
    options = {"learning_rate": 1.0 if concrete else 1e-3, "learn_mask": concrete}
    backend = "compiled" if case["variant"] == COMPILED else "auto"
    clock.start()
    adapt(objective_at, *point, steps=steps, watch=watch, backend=backend, **options)


def fusion_bench(case: dict, clock: Clock) -> None:
    """FusionBench's loops on a Fabric that looks at the clock."""
    import lightning
    from fusion_bench.method.adamerging.clip_layer_wise_adamerging import CLIPLayerWiseAdaMergingAlgorithm
    from fusion_bench.method.concrete_subspace.clip_concrete_adamerging import ConcreteLayerWiseAdaMergingForCLIP

    from benchmarks.fusion_bench_loop import Tower, prepare

    class Timed(lightning.Fabric):
        merged: nn.Module

        def backward(self, loss: Tensor, **options: object) -> None:
            """The encoder is done when the gradient of the first merged parameter enters the merge.

            Autograd runs the latest operations first, and all merging was before all encoding.
            """
            done: list[float] = []

            def arrived(_: Tensor) -> None:
                done.append(time.perf_counter())

            state = self.merged._merged_state_dict.values()
            hooks = [tensor.register_hook(arrived) for tensor in state if tensor.requires_grad]
            began = time.perf_counter()
            super().backward(loss, **options)
            clock.spent["encoder"] += done[0] - began
            for hook in hooks:
                hook.remove()

        def log_dict(self, metrics: dict, step: int | None = None) -> None:
            """Called at the end of every step."""
            clock.stop()

    concrete, device = case["method"] == CONCRETE, device_of(case)
    fabric = Timed(accelerator=device, devices=1)

    class Watched(ConcreteLayerWiseAdaMergingForCLIP if concrete else CLIPLayerWiseAdaMergingAlgorithm):
        def compute_logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
            with clock("encoder"):
                return super().compute_logits(module, images, task)

    side, levels = MODELS[case["model"]][0], 2 if concrete else 1

    def batches() -> Iterator[Tensor]:
        for number in range(levels * (clock.warm_up + case["steps"])):
            with clock("loading"):
                shape = 1 if number < levels * clock.warm_up else case["batch"], 3, side, side
                pixels = torch.randn(shape, device=device)
            yield pixels

    pretrained = Tower(encoder_of(case["model"]).to(device))
    experts = []
    for _ in range(case["tasks"]):
        experts.append(deepcopy(pretrained))
        with torch.no_grad():
            for own, base in zip(experts[-1].parameters(), pretrained.parameters(), strict=True):
                own.normal_(std=1e-3).add_(base)
    given = pretrained, experts, heads_of(case), [batches() for _ in experts], fabric
    algorithm = prepare(Watched, *given, max_steps=clock.warm_up + case["steps"])
    del given, pretrained, experts
    if concrete:
        fabric.merged, mask_model = algorithm.setup_models()
        clock.start()
        algorithm.train_mask(fabric.merged, mask_model)
    else:
        fabric.merged = algorithm.construct_layer_wise_merged_model(algorithm.modelpool)
        clock.start()
        algorithm.test_time_adaptation(fabric.merged)


def run_case(case: dict) -> dict:
    """Run one case in this process."""
    torch.manual_seed(0)
    clock = Clock(case["warm_up"])
    (ours if case["who"] == OURS else fusion_bench)(case, clock)
    result = clock.result()
    total = result["seconds_per_step"] * PAPER_STEPS[case["method"]]
    return result | {"peak_gb": peak_resident() / 1e9, "extrapolated_seconds": total}


def cases(quick: bool, steps: int) -> list[dict]:
    """Pairs of cases, ours and FusionBench's, one after the other."""
    tiny, full = {"steps": 2 if quick else 20, "warm_up": 1 if quick else 3}, {"steps": steps, "warm_up": 1}
    return [
        {"model": model, "method": method, "tasks": 8, "batch": 2 if quick else 16, **length}
        for model, length in (("tiny CLIP", tiny), *([] if quick else [("ViT-B/32", full)]))
        for method in (CONCRETE, PLAIN)
    ]


def measure(case: dict) -> list[dict]:
    """A row of each side; with fewer tasks for all if FusionBench needs too much memory."""
    rows = []
    for who, variant in ((PEER, ""), (OURS, ""), (OURS, VARIANTS[case["model"]])):
        row = case | {"who": who, "variant": variant}
        result = in_own_process("benchmarks.adaptation", row)
        name = f"{case['model']:9s} {case['method']:38s}  T = {case['tasks']}  {who} {variant}"
        if isinstance(result, str):
            print(f"{name:86s} failed: {result}", flush=True)
            if who == PEER and case["tasks"] > 2:
                return measure(case | {"tasks": case["tasks"] // 2})
            continue
        rows.append(row | result)
        print(
            f"{name:86s} {result['seconds_per_step']:8.3f} s = encoder {result['encoder_seconds']:8.3f}"
            f" + other {result['other_seconds']:8.4f}  {result['peak_gb']:5.2f} GB",
            flush=True,
        )
        if who == OURS and rows[0]["who"] == PEER:
            other, whole = (rows[0][key] / result[key] for key in ("other_seconds", "seconds_per_step"))
            print(f"{'':86s} {other:.1f} times faster without the encoder, {whole:.2f} with it", flush=True)
    return rows


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny CLIP, two steps, small batches; writes nothing")
    parser.add_argument("--steps", type=int, default=1, help="measured steps with ViT-B/32 (a minute each)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print("\n" + json.dumps(run_case(json.loads(options.case))))
        return
    import pandas as pd

    from lib.study.tables import save_table

    about = machine()
    print(f"One step on {about['machine']}, {about['threads']} threads", flush=True)
    rows: list[dict] = []
    for case in cases(options.quick, options.steps):
        rows += measure(case)
        if not options.quick:  # after every case: it is an hour of measuring
            save_table(pd.DataFrame([row | about for row in rows]).drop(columns="warm_up"), TABLE)
    if not options.quick:
        print(f"Written to {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

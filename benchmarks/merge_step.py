r"""One step of learning a Concrete mask, ours and fusion-bench's, timed side by side: `make benchmark`.

A step samples the mask, rescales it per layer, merges T task vectors inside it, carries a given gradient dLoss/dtheta
back to the mask's logits and to the layer-wise coefficients, and lets Adam move both. The model itself is left out:
its forward and backward pass are the same for everybody. All tensors are random, of the names and shapes of
open_clip's ViT-B/32 image encoder. Every case runs in a process of its own, so that its peak memory is its own; the
copy of a vector in memory, timed in the same run, says what the machine could do at best.

Writes data/benchmarks/merge_step.csv, from which `make figures` draws figures/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.common import ROOT, in_own_process, machine, peak_resident, vit_b_32_shapes
from lib.concrete.merge_step import MergeStep
from lib.vectors.layout import Layout

TABLE = ROOT / "data/benchmarks/merge_step.csv"
STEPS, WARM_UP = 5, 2


def timed(step: Callable[[], object], device: str) -> list[float]:
    """Seconds of each of `STEPS` calls, after `WARM_UP` calls that also compile."""
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def copy(layout: Layout, device: str) -> list[float]:
    """A plain copy of one vector: 8 bytes per parameter."""
    source = torch.randn(layout.length, device=device)
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), device)


def ours(layout: Layout, tasks: int, device: str, dtype: torch.dtype, layer_wise: bool, backend: str) -> list[float]:
    """`MergeStep`: with layer-wise coefficients, or Concrete Task Arithmetic, which needs the sum of the tasks only."""
    theta0, gradient = (torch.randn(layout.length, device=device) for _ in range(2))
    if layer_wise:
        vectors = torch.empty(tasks, layout.length, dtype=dtype, device=device)
        for row in vectors:  # one at a time: a float32 copy of all would decide the peak
            row.copy_(torch.randn(layout.length, device=device))
    else:
        vectors = torch.zeros(1, layout.length, device=device)
        for _ in range(tasks):
            vectors += torch.randn(layout.length, device=device)
    merging = MergeStep(theta0, vectors, layout, backend=backend)
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    shape = (len(vectors), layout.layers) if layer_wise else (1,)
    coefficients = torch.full(shape, 0.3, device=device)
    optimiser = torch.optim.Adam([coefficients], lr=1e-3)
    del theta0, vectors
    number = iter(range(10**6))

    def step() -> None:
        merging.draw(next(number))
        merging.merge(coefficients)
        by_layer = merging.update_mask(gradient)
        if layer_wise:
            coefficients.grad = by_layer
            optimiser.step()

    return timed(step, device)


def fusion_bench(layout: Layout, tasks: int, device: str) -> list[float]:
    """fusion-bench's MaskModel and LayerWiseMergedModel, called as its ConcreteLayerWiseAdaMergingForCLIP does."""
    import typing

    import typing_extensions

    typing.override = typing_extensions.override  # fusion-bench takes it from there, where Python 3.12 has it
    from fusion_bench.models.masks import MaskModel
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
    from torch import nn

    def model() -> nn.Module:
        module = nn.Module()
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            module.register_parameter(name.replace(".", "_"), nn.Parameter(torch.randn(shape, device=device)))
        return module

    base = model()
    mask_model = MaskModel(base, parameter_type="logits")
    weights = get_layer_wise_weights(tasks, layout.layers, 0.3).to(device)
    merged = LayerWiseMergedModel(weights, base, [model() for _ in range(tasks)], clamp_weights=False)
    gradient = {name: torch.randn_like(value) for name, value in base.named_parameters()}
    of_mask = torch.optim.Adam(mask_model.parameters(), lr=1e-3)
    of_weights = torch.optim.Adam([merged.merge_weight], lr=1e-3)

    def step() -> None:
        mask = mask_model.sample_mask(mask_type="continuous", temperature=0.5)
        for name, values in mask.items():
            mask[name] = values / torch.mean(values)
        state = merged.merge_weights(task_vector_mask=mask)
        of_mask.zero_grad()
        of_weights.zero_grad()
        torch.autograd.backward([state[name] for name in gradient], list(gradient.values()))
        of_mask.step()
        of_weights.step()

    return timed(step, device)


def run_case(case: dict, device: str) -> dict:
    """Run one case in this process and report seconds and peak memory."""
    layout = Layout(tuple(case["shapes"]), tuple(map(tuple, case["shapes"].values())))
    if case["implementation"] == "memory copy":
        seconds = copy(layout, device)
    elif case["implementation"] == "fusion-bench":
        seconds = fusion_bench(layout, case["tasks"], device)
    else:
        dtype, layer_wise = getattr(torch, case["task_vectors"]), case["method"] == "layer-wise coefficients"
        seconds = ours(layout, case["tasks"], device, dtype, layer_wise, case.get("backend", "auto"))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
    return {
        "parameters": layout.parameters,
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "peak_gb": peak / 1e9,
    }


def cases(quick: bool) -> list[dict]:
    """What to measure: the step at ViT-B/32 size, then growth with T and with D."""
    full = 0.05 if quick else 1.0
    layer, arithmetic = "layer-wise coefficients", "Concrete Task Arithmetic"

    def one(implementation: str, method: str, tasks: int, scale: float = full, **more: object) -> dict:
        vectors = {"task_vectors": "float32"} | more
        return {"implementation": implementation, "method": method, "tasks": tasks, "scale": scale, **vectors}

    rows = [one("memory copy", "copy", 0)]
    rows += [one("fusion-bench", layer, tasks) for tasks in (2, 4, 8)]
    rows += [one("this study", layer, tasks) for tasks in (2, 4, 8, 16, 32)]
    rows += [one("this study", layer, tasks, task_vectors="bfloat16") for tasks in (8, 64)]
    rows += [one("this study", arithmetic, tasks) for tasks in (2, 4, 8, 16, 32, 64)]
    rows += [one("this study", layer, 8, backend="eager"), one("this study", arithmetic, 8, backend="eager")]
    for scale in (0.01 * full, 0.1 * full):
        rows.append(one("memory copy", "copy", 0, scale))
        rows += [one(name, layer, 8, scale) for name in ("fusion-bench", "this study")]
        rows.append(one("this study", arithmetic, 8, scale))
    return rows


def measure(case: dict, device: str) -> dict | None:
    """Run one case in a fresh process; None, and a line why, if that fails."""
    # The shapes go along, because importing open_clip would add to the peak that is measured.
    given = case | {"shapes": vit_b_32_shapes(case["scale"])}
    result = in_own_process("benchmarks.merge_step", given, "--device", device)
    words = [str(case[key]) for key in ("implementation", "method", "tasks")]
    if isinstance(result, str):
        print(f"  {' '.join(words):55s} left out: {result}", flush=True)
        return None
    print(
        f"  {' '.join(words):55s} D = {result['parameters'] / 1e6:6.1f} M  {result['seconds']:7.3f} s"
        f"  {result['peak_gb']:6.2f} GB",
        flush=True,
    )
    return {"backend": "auto", **case, **result}


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="one twentieth of the size, to try it out; writes nothing")
    parser.add_argument("--only", default="", help="measure only cases with this in their description, e.g. bfloat16")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(json.loads(options.case), options.device)))
        return
    import pandas as pd

    from lib.study.tables import save_table

    about = machine(options.device)
    print(f"One mask step on {about['machine']}, {about['threads']} threads; median of {STEPS} steps")
    chosen = [case for case in cases(options.quick) if options.only in json.dumps(case)]
    rows = [row for case in chosen if (row := measure(case, options.device))]
    table = pd.DataFrame([row | about for row in rows]).drop(columns="scale")
    if not options.quick:
        key = ["machine", "implementation", "method", "tasks", "task_vectors", "backend", "parameters"]
        if TABLE.is_file():  # rows of other machines and cases stay
            table = pd.concat([pd.read_csv(TABLE, dtype={"parameters": int}), table])
        table = table.drop_duplicates(key, keep="last")
        print(f"Wrote {save_table(table, TABLE).relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""The benchmark for GPUs, where there is none: it says so, and its parts run at toy size on the CPU."""

import math
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from lib.concrete import kernels, merge_step
from lib.concrete.merge_step import MergeStep
from lib.runtime.disk import ROOT
from lib.vectors.layout import Layout

PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
CASE = {
    "model": "tiny CLIP",
    "tasks": 2,
    "batch": 2,
    "warm_up": 1,
    "steps": 2,
    "quick": True,
    "variant": "",
    "who": gpu.OURS,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_and_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "benchmarks.gpu measures a GPU, and torch sees none here."


def test_passes_are_compared_with_a_copy():
    layout = Layout.of({"a": torch.zeros(300, 70), "b": torch.zeros(5)})
    rows = gpu.passes(layout, 2, "cpu", backend="eager")
    assert [row["what"] for row in rows][:3] == ["copy of a vector", "mean of the mask", "merge"]
    assert rows[0]["of_copy"] == 1 and all(row["gb_per_s"] > 0 and math.isfinite(row["of_copy"]) for row in rows)


def test_a_whole_run_is_extrapolated_to_the_papers_steps():
    case = CASE | {"what": "run", "method": gpu.PLAIN}
    found = gpu.run_case(case, "cpu")
    assert found["steps"] == CASE["steps"] and found["extrapolated"]
    assert found["run_seconds"] == pytest.approx(1000 * found["seconds_per_step"])
    whole, quick = ([own for own in gpu.cases(few) if own["what"] == "run"] for few in (False, True))
    steps = {(own["who"], own["variant"], own["method"]): own["steps"] for own in whole}
    assert steps[gpu.PEER, "", gpu.CONCRETE] == steps[gpu.OURS, gpu.BF16, gpu.CONCRETE] == 2000
    assert steps[gpu.OURS, "", gpu.PLAIN] == 1000
    assert {own["steps"] for own in quick} == {20, 10}


def test_a_steps_time_is_taken_apart():
    found = gpu.run_case(CASE | {"what": "parts", "method": gpu.CONCRETE}, "cpu")
    assert found.keys() == {"encoder_ms", "merging_ms", "mask_ms", "step_ms", "host_ms"}
    assert min(found["encoder_ms"], found["merging_ms"], found["mask_ms"], found["step_ms"]) > 0 <= found["host_ms"]


@pytest.mark.parametrize(("tasks", "dtype"), [(8, torch.float32), (8, torch.bfloat16), (1, torch.float32)])
def test_bytes_are_those_of_the_kernels_arguments(monkeypatch, tasks, dtype):
    """What `MergeStep` gives each kernel: every vector read once, and once more for each that is written."""
    written = {"mask_sums": 0, "merge": 1, "pull": 0, "pull_and_sum": 1, "update_logits": 3}
    only_written, moved, run = {"merge", "pull_and_sum"}, [], kernels.run

    def counted(kernel, *arguments, compiled):
        vectors = [t for part in arguments for t in (part if isinstance(part, kernels.Draw) else (part,))
                   if isinstance(t, torch.Tensor) and t.dim() > 1 and t.shape[-1] == layout.block]  # fmt: skip
        read = sum(t.nbytes for t in vectors) - 4 * layout.length * (kernel.__name__ in only_written)
        moved.append((read + 4 * layout.length * written[kernel.__name__]) / layout.length)
        return run(kernel, *arguments, compiled=compiled)

    layout = Layout.of({"a": torch.empty(50, 1024, device="meta")})
    given = torch.empty(layout.length, device="meta"), torch.empty(tasks, layout.length, dtype=dtype, device="meta")
    merging = MergeStep(*given, layout, backend="eager")
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    merging._constants = (*merging._constants[:-1], None)  # a sample is not kept where vectors are large
    monkeypatch.setattr(kernels, "run", counted)
    coefficients = torch.empty(tasks, 1, device="meta")
    merging.draw(0)
    gradient = merging.merge(coefficients)
    merging.coefficient_gradient(gradient)
    merging.merge(coefficients)
    merging.update_mask(gradient)
    wanted = list(gpu.bytes_moved(tasks, dtype.itemsize).values())
    if tasks == 1:  # S is the task vector
        wanted[4] -= 4
    assert moved == wanted


def test_bytes_are_those_that_the_library_states():
    """`lib.concrete.merge_step`: a step that takes both gradients at once."""
    stated = re.findall(r"(\d+) B \((mask sums|logits and Adam)\)|\((\d+) \+ 4 T\) B", merge_step.__doc__)
    numbers = [int(first or last) for first, _, last in stated]
    moved = list(gpu.bytes_moved(8).values())
    assert [numbers[0], numbers[1] + 32, numbers[2] + 32, numbers[3]] == [moved[0], moved[1], moved[4], moved[5]]


def test_the_page_has_the_table():
    assert "not measured on a GPU" in PAGE
    for name, per_parameter in (*gpu.bytes_moved(8).items(), ("together", sum(gpu.bytes_moved(8).values()))):
        sizes = [parameters * per_parameter / 1e9 for parameters in gpu.PARAMETERS.values()]
        times = [gpu.milliseconds(p, per_parameter, b) for p in gpu.PARAMETERS.values() for b in gpu.BANDWIDTH.values()]
        cells = [name, str(per_parameter), *(f"{size:.1f}" for size in sizes), *(f"{time:.1f}" for time in times)]
        assert f"| {' | '.join(cells)} |" in PAGE, f"| {' | '.join(cells)} |"

"""How much memory and time merging takes when the experts stream from files: `python -m benchmarks.streaming_memory`.

Makes random experts with the names and shapes of the CLIP ViT-B/32 image encoder (87.8 million parameters, 351 MB each
in float32) in a temporary folder, merges 8, 16 and 64 of them, each time in a process of its own on one thread, and
writes data/benchmarks/streaming_memory.csv. Before every run the system is asked to drop the files from its cache, so
that they are read from the disk. Where it is short of space, only four files are distinct and the others are links to
them: all T are read all the same, but the cache then helps.

Concrete Task Arithmetic is the streamed sum and then two steps on the mask, with a random gradient in place of a
model's; what a model's activations take comes on top. It holds six vectors of length D: S, theta, the gradient, the
logits and Adam's two moments; theta0 is read from its file again in every step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import ROOT, in_own_process, peak_resident, processor, vit_b_32_shapes
from lib.concrete.merge_step import MergeStep
from lib.files.weights import fit, read_weights
from lib.fusion import task_arithmetic, weight_averaging
from lib.study.tables import save_table
from lib.vectors.layout import Layout
from lib.vectors.streaming import reader, stream_sum

TABLE = ROOT / "data/benchmarks/streaming_memory.csv"


def mask_steps(base: Path, summed: Tensor, layout: Layout) -> Tensor:
    """Learn mask logits [D] for two steps on a random gradient; theta0 stays in its file, read once a step."""
    merging = MergeStep(reader(read_weights(base), layout), summed[None], layout, backend="eager")
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    gradient = torch.empty_like(summed)
    for step in range(2):
        merging.draw(step)
        merging.merge(torch.tensor([0.3]))
        gradient.normal_()  # here a model would read theta
        merging.update_mask(gradient)
    return merging.logits


METHODS = ("Weight averaging", "Task Arithmetic", "Concrete Task Arithmetic")


def make_files(folder: Path, shapes: dict[str, tuple[int, ...]], tasks: int, distinct: int) -> None:
    """Write base.safetensors, and expert0.safetensors, ... as links from `distinct` on."""
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    for task in range(tasks):
        path = folder / f"expert{task}.safetensors"
        if task >= distinct:
            path.symlink_to(folder / f"expert{task % distinct}.safetensors")
            continue
        save_file({name: w + 0.001 * torch.randn(w.shape, generator=generator) for name, w in base.items()}, path)


def drop_from_cache(files: Sequence[Path]) -> None:
    """Ask the system to forget what it holds of the files (Linux; elsewhere nothing happens)."""
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(method: str, folder: Path, tasks: int) -> dict[str, object]:
    """One row of the table, measured in this process; the rate is that of reading and adding up the experts."""
    torch.set_num_threads(1)
    shapes = json.loads((folder / "shapes.json").read_text())
    layout = Layout(tuple(shapes), tuple(tuple(shape) for shape in shapes.values()))
    files = [folder / f"expert{task}.safetensors" for task in range(tasks)]
    drop_from_cache(files)
    at_start, started = peak_resident(), time.monotonic()
    theta0 = stream_sum(torch.zeros(layout.length), [read_weights(folder / "base.safetensors")], layout)
    reading = time.monotonic()
    summed = stream_sum(theta0, [fit(read_weights(file), layout.views(theta0)) for file in files], layout)
    rate = sum(path.stat().st_size for path in files) / (time.monotonic() - reading) / 1e9
    if method == "Weight averaging":
        weight_averaging(theta0, summed.div_(tasks)[None], layout)
    elif method == "Task Arithmetic":
        task_arithmetic(theta0, summed[None], layout, scaling_factor=0.3)
    else:
        del theta0
        mask_steps(folder / "base.safetensors", summed, layout)
    return {
        "method": method,
        "experts": tasks,
        "seconds": time.monotonic() - started,
        "peak_rss_gib": peak_resident() / 2**30,
        "rss_at_start_gib": at_start / 2**30,
        "read_gb_per_s": rate,
    }


def main() -> None:
    """Make the files, measure every method and number of experts, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 64], help="numbers of experts T")
    parser.add_argument("--quick", action="store_true", help="2 and 4 experts; prints the table, writes none")
    parser.add_argument("--folder", type=Path, help="where the temporary folder lies; by default the system's")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        method, folder, tasks = json.loads(given.case)
        print(json.dumps(run(method, Path(folder), tasks)))
        return
    about = {"processor": processor(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__}
    counts = [2, 4] if given.quick else given.experts
    shapes = vit_b_32_shapes(1.0)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, rows = Path(name), []
        (folder / "shapes.json").write_text(json.dumps(shapes))
        needed = 4 * max(counts) * sum(torch.Size(shape).numel() for shape in shapes.values())
        distinct = max(counts) if shutil.disk_usage(folder).free > 2 * needed else 4
        print(f"Making {max(counts)} experts in {folder}, {min(distinct, max(counts))} of them distinct", flush=True)
        make_files(folder, shapes, max(counts), distinct)
        for tasks in counts:
            for method in METHODS:
                measured = in_own_process("benchmarks.streaming_memory", [method, name, tasks])
                if isinstance(measured, str):
                    sys.exit(f"{method} of {tasks}: {measured}")
                row = measured | {"distinct_files": min(distinct, tasks)} | about
                print({key: row[key] for key in ("method", "experts", "seconds", "peak_rss_gib")}, flush=True)
                rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if not given.quick:
        print(f"Written to {save_table(table, TABLE)}")


if __name__ == "__main__":
    main()

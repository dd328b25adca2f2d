"""Merge experts from safetensors files into one, layer by layer: `python -m scripts.merge_files --help`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lib.runtime.disk import atomic_path
from lib.vectors.layout import Layout
from lib.vectors.streaming import FLOATING, INTEGER, header, read_layer, stream_sum

METHODS = {"weight-averaging": None, "task-arithmetic": 0.3}  # with their scaling factors


def merge_files(theta0: Path, experts: Sequence[Path], out: Path, scaling_factor: float | None = None) -> None:
    """Merge experts from files into a float32 file, written atomically, with metadata that says what was merged.

    theta0's floating-point entries are the layout; its integer entries are copied.

    Args:
        theta0: the pre-trained model's safetensors file.
        experts: the experts' files.
        out: where to write; none of the files read.
        scaling_factor: of Task Arithmetic; None averages instead.

    Raises:
        ValueError: for a file in two roles, or a scaling factor that is not finite; and whatever `stream_sum` raises.
    """
    inputs = [path.resolve() for path in experts]
    if theta0.resolve() in inputs or out.resolve() in (theta0.resolve(), *inputs):
        raise ValueError("theta0, the experts and the output must be different files; leave theta0 out of the experts")
    if scaling_factor is not None and not math.isfinite(scaling_factor):
        raise ValueError(f"the scaling factor is {scaling_factor}, expected a finite number such as 0.3")
    stored = header(theta0)
    layers = {name: entry for name, entry in stored.items() if entry[0] not in INTEGER}
    if not layers:
        raise ValueError(f"{theta0} has no floating-point entry: nothing to merge")
    if unknown := [name for name, (dtype, _) in layers.items() if dtype not in FLOATING]:
        raise ValueError(f"{theta0}: layer '{unknown[0]}' is stored as {layers[unknown[0]][0]}, which cannot be merged")
    shapes, types = tuple(shape for _, shape in layers.values()), tuple(FLOATING[kind] for kind, _ in layers.values())
    layout = Layout(tuple(layers), shapes, dtypes=types)
    merged = stream_sum(torch.zeros(layout.length), [theta0], layout)  # theta0 itself, read like an expert
    factor = 1 / len(experts) if scaling_factor is None else scaling_factor
    merged.add_(stream_sum(merged, experts, layout), alpha=factor)
    kept = {name: read_layer(theta0, name).clone() for name in stored if name not in layers}
    about = {"format": "pt", "theta0": str(theta0), "experts": json.dumps([str(path) for path in experts])}
    about["method"] = "weight-averaging" if scaling_factor is None else f"task-arithmetic, scaling factor {factor}"
    with atomic_path(out) as temporary:
        save_file({**layout.views(merged), **kept}, temporary, metadata=about)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.merge_files", description="Merge experts from files to a file."
    )
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--scaling-factor", type=float, help="of task-arithmetic; 0.3 if not given")
    parser.add_argument("--theta0", type=Path, required=True, help="the pre-trained model, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="the merged model, safetensors, float32")
    parser.add_argument("experts", type=Path, nargs="+", help="fine-tuned models, safetensors")
    given = parser.parse_args(arguments)
    factor = given.scaling_factor
    if given.method == "weight-averaging" and factor is not None:
        parser.error("weight-averaging has no --scaling-factor; leave it out, or use --method task-arithmetic")
    try:
        merge_files(given.theta0, given.experts, given.out, METHODS[given.method] if factor is None else factor)
    except (OSError, ValueError, SafetensorError) as error:
        print(f"Nothing merged: {error}", file=sys.stderr)
        return 1
    print(f"{given.method} of {len(given.experts)} experts is now in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Merge experts from files into one, layer by layer: `python -m scripts.merge_files --help`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lib.files.weights import FLOATING, NO_PARAMETER, Weights, fit, read_weights
from lib.runtime.disk import atomic_path
from lib.vectors.layout import Layout
from lib.vectors.streaming import stream_sum

AROUND = re.compile(r"((model_)?state_dict\.|module\.|_orig_mod\.)+")  # what training puts before a model's names
TYPES = {"same": None, "fp32": torch.float32, "bf16": torch.bfloat16}
METHODS = {"weight-averaging": None, "task-arithmetic": 0.3}  # with their scaling factors


def merge_files(
    theta0: Path, experts: Sequence[Path], out: Path, scaling_factor: float | None = None, dtype: str = "same"
) -> None:
    """Merge experts from files into a file, written atomically, with metadata that says what was merged.

    theta0's floating-point entries are the layout; its other entries, and buffers that are no parameters, are copied.

    Args:
        theta0: the pre-trained model: a file or folder that `lib.files.weights` can read.
        experts: the experts, likewise.
        out: where to write; none of the files read.
        scaling_factor: of Task Arithmetic; None averages instead.
        dtype: a key of `TYPES`: what the merged layers are rounded to, "same" is each layer's own type in theta0.

    Raises:
        ValueError: for a file in two roles, a scaling factor that is not finite, or what `fit` and `stream_sum` refuse.
    """
    base = _bare(read_weights(theta0))
    found = [read_weights(path) for path in experts]
    inputs = [own.place.resolve() for own in found]
    if base.place.resolve() in inputs or out.resolve() in (base.place.resolve(), *inputs):
        raise ValueError("theta0, the experts and the output must be different files; leave theta0 out of the experts")
    if scaling_factor is not None and not math.isfinite(scaling_factor):
        raise ValueError(f"the scaling factor is {scaling_factor}, expected a finite number such as 0.3")
    types = {name: own.dtype for name, own in base.like.items() if own.is_floating_point()}
    types = {name: kind for name, kind in types.items() if not NO_PARAMETER.search(name)}
    if not types:
        raise ValueError(f"{theta0} has no floating-point entry: nothing to merge")
    if unknown := [name for name, kind in types.items() if kind not in FLOATING]:
        raise ValueError(f"{theta0}: layer '{unknown[0]}' is stored as {types[unknown[0]]}, which cannot be merged")
    layout = Layout(tuple(types), tuple(tuple(base.like[name].shape) for name in types), dtypes=tuple(types.values()))
    start = Weights(base.place, {name: base.like[name] for name in types}, base.read)
    fitted = [fit(own, start) for own in found]
    for own in fitted:
        for kind in {own.like[name].dtype for name, there in types.items() if own.like[name].itemsize < there.itemsize}:
            rounding = f"its rounding (a relative {torch.finfo(kind).eps / 2:.1g}) is merged"
            print(f"{own.place} is stored as {str(kind)[6:]}: {rounding}")
    merged = stream_sum(torch.zeros(layout.length), [start], layout)  # theta0 itself, read like an expert
    factor = 1 / len(experts) if scaling_factor is None else scaling_factor
    merged.add_(stream_sum(merged, fitted, layout), alpha=factor)
    layers = {name: view.to(TYPES[dtype] or types[name]) for name, view in layout.views(merged).items()}
    if large := [name for name, layer in layers.items() if not torch.isfinite(layer).all()]:
        raise ValueError(
            f"merged layer '{large[0]}' has numbers that {layers[large[0]].dtype} cannot hold: use --dtype fp32"
        )
    kept = {name: base[name].clone() for name in base if name not in types}
    about = {"format": "pt", "theta0": str(theta0), "experts": json.dumps([str(path) for path in experts])}
    about["method"] = "weight-averaging" if scaling_factor is None else f"task-arithmetic, scaling factor {factor}"
    with atomic_path(out) as temporary:
        save_file({**layers, **kept}, temporary, metadata=about)


def _bare(weights: Weights) -> Weights:
    """Weights without what training puts around the names of a whole model."""
    floating = [name for name, own in weights.like.items() if own.is_floating_point()]
    around = AROUND.match(min(floating, default=""))
    return weights.below(around[0]) if around and all(name.startswith(around[0]) for name in floating) else weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.merge_files", description="Merge experts from files to a file."
    )
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--scaling-factor", type=float, help="of task-arithmetic; 0.3 if not given")
    parser.add_argument(
        "--theta0", type=Path, required=True, help="the pre-trained model: a file, or a folder with one"
    )
    parser.add_argument("--out", type=Path, required=True, help="the merged model, safetensors")
    parser.add_argument(
        "--dtype", choices=TYPES, default="same", help="type of the merged layers; theta0's if not given"
    )
    parser.add_argument("experts", type=Path, nargs="+", help="fine-tuned models, likewise")
    given = parser.parse_args(arguments)
    factor = given.scaling_factor
    if given.method == "weight-averaging" and factor is not None:
        parser.error("weight-averaging has no --scaling-factor; leave it out, or use --method task-arithmetic")
    try:
        merge_files(
            given.theta0, given.experts, given.out, METHODS[given.method] if factor is None else factor, given.dtype
        )
    except (OSError, ValueError, SafetensorError) as error:
        print(f"Nothing merged: {error}", file=sys.stderr)
        return 1
    print(f"{given.method} of {len(given.experts)} experts is now in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How the study ships a model that it trained: weights in half precision, and beside them the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.disk import ROOT, atomic_path
from lib.runtime.keys import key_of


def checkpoint_of(recipe: object) -> Checkpoint:
    """Where a training by that recipe is saved, and from where it continues."""
    key = key_of({"recipe": type(recipe).__module__, **asdict(recipe)})
    return Checkpoint(ROOT / "data" / "cache" / "pretraining" / key / "checkpoint.pt")


def announce(weights: Path) -> None:
    """Say what was written, and that it takes a commit to ship it."""
    print(f"Wrote {weights} ({weights.stat().st_size / 1e6:.1f} MB); commit data/{weights.parent.name} to ship it.")


def ship(state: Mapping[str, Tensor], weights: Path, note: Path, recipe: object, **metadata: str) -> Path:
    """Save a model that the study ships, in half precision: theta0 is by definition what is in the file.

    Args:
        state: its parameters and buffers.
        weights: the safetensors file; what is there is replaced, atomically.
        note: the JSON file beside it, with the recipe and the SHA-256 of the weights.
        recipe: a dataclass that says how it was made.
        metadata: of the safetensors file.

    Returns:
        `weights`.
    """
    small = {name: (own.half() if own.is_floating_point() else own).contiguous() for name, own in state.items()}
    with atomic_path(weights) as path:
        save_file(small, path, metadata=metadata or None)
    told = {**asdict(recipe), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    with atomic_path(note) as path:
        path.write_text(json.dumps(told, indent=1) + "\n")
    return weights

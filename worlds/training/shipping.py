"""How the study ships a model that it trained: weights in half precision, and beside them the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lib.runtime.disk import atomic_path


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

"""The one hash from which every random number of the study follows; without torch, so workers start fast."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_of(*names: str | int) -> bytes:
    """32 bytes that depend on all the names and on their types, the same on every machine and in every process."""
    return hashlib.sha256("\x1f".join(f"{type(name).__name__}:{name}" for name in names).encode()).digest()


def named_rng(*names: str | int) -> np.random.Generator:
    """A generator that depends on all the names, the same on every machine and in every process."""
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(hash_of(*names)[:16], "big")))

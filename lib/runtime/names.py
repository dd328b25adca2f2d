"""The one hash from which every random number of the study follows; without torch, so workers start fast."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_of(*names: str | int) -> bytes:
    """32 bytes that depend on all the names and on their types, the same on every machine and in every process."""
    return hashlib.sha256("\x1f".join(f"{type(name).__name__}:{name}" for name in names).encode()).digest()


def shortened(name: str, most: int) -> str:
    """A name of at most so many bytes, as file systems count; of a longer one the beginning and a hash of the whole."""
    stored = name.encode()
    return name if len(stored) <= most else f"{stored[: most - 9].decode(errors='ignore')}+{hash_of(name).hex()[:8]}"


def named_rng(*names: str | int) -> np.random.Generator:
    """A generator that depends on all the names, the same on every machine and in every process."""
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(hash_of(*names)[:16], "big")))

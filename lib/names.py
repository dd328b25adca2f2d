"""The one hash from which every random number of the study follows; without torch, so workers start fast."""

from __future__ import annotations

import hashlib


def hash_of(*names: str | int) -> bytes:
    """32 bytes that depend on all the names and on their types, the same on every machine and in every process."""
    return hashlib.sha256("\x1f".join(f"{type(name).__name__}:{name}" for name in names).encode()).digest()

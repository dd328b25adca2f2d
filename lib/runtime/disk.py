"""Files that appear whole or not at all, and folders that one process at a time may change."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout


@contextmanager
def atomic_path(path: Path):  # noqa: ANN201 - a context manager over a Path
    """A temporary path beside `path` that is renamed to it on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time inside, for each folder; the others wait. A process that dies leaves no lock behind."""
    folder.mkdir(parents=True, exist_ok=True)
    # a file that can be written, not the folder itself: NFS, on which clusters keep their homes, locks nothing else
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

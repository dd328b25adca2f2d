"""Files that appear whole or not at all, folders that one process at a time may change, and where all of them go."""

from __future__ import annotations

import errno
import fcntl
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLock, Timeout

ROOT = Path(__file__).resolve().parents[2]  # the checkout


# What a file system that knows no file locks (some of Lustre, FUSE, NFS) answers when it is asked for one.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def written_below(root: Path = ROOT) -> Path:
    """Where all that a run leaves goes, its tables and the cache: to STUDY_OUT, where that is set, else to `root`."""
    return Path(os.environ.get("STUDY_OUT") or root).expanduser()


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
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time inside, for each folder; the others wait. A process that dies leaves no lock behind.

    Where the file system has no locks, a file that exists stands for one, and a line says so.

    Raises:
        BlockingIOError: if another one is inside, and this one does not want to wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a file that can be written, not the folder itself: NFS, on which clusters keep their homes, locks nothing else
    handle, soft = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644), None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _say_soft(str(error))
            soft = SoftFileLock(folder / ".lock.held", timeout=-1 if wait else 0)
            try:
                soft.acquire()
            except Timeout as error:
                raise BlockingIOError(errno.EAGAIN, f"another process is in {folder}") from error
        yield
    finally:
        if soft:
            soft.release()
        os.close(handle)


@functools.cache
def _say_soft(error: str) -> None:
    print(f"no file locks here ({error}): files '.lock.held' stand for them; delete one that a killed machine has left")


def set_aside(path: Path) -> Path:
    """Move what is damaged out of the way, where it can be looked at; gives its new place."""
    places = (path.with_name(f"{path.name}.damaged{number}") for number in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
    return aside

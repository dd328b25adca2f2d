"""The folders that sets lie in: what is in them, and zip and tar archives, unpacked once into the study's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp

from lib.runtime.disk import exclusive, written_below

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LFS = b"version https://git-lfs"  # how a pointer file begins
POINTER = "it is a pointer of Git LFS; `git lfs pull` fetches the file"


class DataError(ValueError):
    """Data that cannot be used as it is; the message, one line, names the place and how to correct it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if path.is_file() and path.stat().st_size < 1000 and path.read_bytes().startswith(LFS):
        return POINTER
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:200]


def names_in(folder: Path) -> list[str]:
    """All files below a folder, in the order of their paths, without hidden ones; of an archive, itself."""
    found = [str(folder)] if folder.is_file() else _inside(str(folder)) if folder.is_dir() else ()
    return sorted(found, key=lambda path: path.replace(os.sep, "\0"))


def _inside(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__")):
                yield from _inside(entry.path)
            elif entry.is_file() and entry.name[0] != ".":
                yield entry.path


def stem_of(path: Path) -> str:
    """The name of an archive without its ending, "" for any other file."""
    return next((path.name.removesuffix(ending) for ending in ARCHIVES if path.name.endswith(ending)), "")


def place_of(folder: Path) -> Path | None:
    """A set's folder or, where there is none, the archive of its name beside it, if there is one."""
    beside = (folder.parent / f"{folder.name}{ending}" for ending in ARCHIVES)
    return next((path for path in (folder, *beside) if path.is_dir() or (path != folder and path.is_file())), None)


def sets_in(folder: Path) -> list[str]:
    """The names of the folders and archives in a folder."""
    return sorted(name for path in folder.iterdir() if (name := path.name if path.is_dir() else stem_of(path)))


def unpack(place: Path, archives: Sequence[Path]) -> Path:
    """Unpack the archives of a set, each into a folder of its name, unless that is done; gives the folder of all.

    What would lie outside of that folder is refused (tar) or left out (zip).

    Raises:
        DataError: if one cannot be unpacked.
    """
    told = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    cache = written_below() / "data" / "cache" / "unpacked"
    folder = cache / hashlib.sha256(str(told).encode()).hexdigest()[:16]
    with exclusive(cache):  # so what is unfinished here was left by a process that was killed
        for unfinished in cache.glob(".*/"):
            shutil.rmtree(unfinished)
        if not folder.is_dir():
            temporary = Path(mkdtemp(dir=cache, prefix="."))
            for path in archives:
                print(f"unpacking {path} into {folder}", flush=True)
                inside = "." if path == place else path.parent.relative_to(place)
                safe = {} if path.suffix == ".zip" else {"filter": "data"}
                try:
                    shutil.unpack_archive(path, temporary / inside / stem_of(path), **safe)
                except Exception as error:  # of zipfile, tarfile and their compressions, which share no base class
                    raise DataError(f"{path} cannot be unpacked ({why(path, error)}); copy it again") from error
            os.replace(temporary, folder)
    return folder

"""Tensors too large for memory: written row by row into a .npy file, and read back as a view of that file.

A view costs no time to open and no memory to hold: the system reads a page of the file when it is first touched and
drops it again when memory is short. The file takes its name only when it is whole, so a run that was killed leaves
nothing that could be taken for a result. Behind the large array the file holds, as `np.save` writes several arrays into
one file, a table of names and digests, and then the small arrays that belong to it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.runtime.disk import atomic_path, exclusive, set_aside
from lib.runtime.keys import digest, key_of, remember_digest


@dataclass
class Writer:
    """An unfinished file; rows may be written in any order, and by several threads at once.

    Attributes:
        arrays: tensor name -> what is written.
        digests: tensor name -> what `lib.runtime.keys.digest` shall take for its contents.
    """

    arrays: dict[str, np.ndarray]
    digests: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, row: int, values: np.ndarray) -> None:
        """Write values from a row of a tensor on."""
        values = np.reshape(values, (-1, *self.arrays[name].shape[1:]))
        self.arrays[name][row : row + len(values)] = values


@contextmanager
def new_file(path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[Writer]:
    """Write a file row by row; it appears under its name when the block ends without an error.

    Args:
        path: its name.
        entries: tensor name -> type and shape. The last one is mapped, the others are held in memory.

    Raises:
        OSError: if the disk has no room for it; nothing is left then.
    """
    *small, large = [(name, shape, str(dtype).removeprefix("torch.")) for name, (dtype, shape) in entries.items()]
    needed = sum(np.dtype(kind).itemsize * math.prod(shape) for _, shape, kind in (*small, large))
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{path.parent} has {in_words(free)} free, {path.name} takes {in_words(needed)}: make room, or link "
            "data/cache to a larger disk"
        )
    with atomic_path(path) as temporary:
        arrays = {name: np.zeros(shape, kind) for name, shape, kind in small}
        arrays[large[0]] = np.lib.format.open_memmap(temporary, "w+", large[2], large[1])
        with temporary.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none; on a full disk, writing to a map ends the process
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            writer = Writer(arrays)
            yield writer
            file.seek(0, os.SEEK_END)
            np.save(file, np.array([(name, writer.digests.get(name, "")) for name, *_ in (large, *small)]))
            for name, *_ in small:
                np.save(file, arrays[name])


def remove_unfinished(path: Path) -> None:
    """Remove what killed runs left of a file; only where no other process can be writing it."""
    for left_over in path.parent.glob(f".{path.name}.*"):
        left_over.unlink(missing_ok=True)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, the large one as a view of it, with the digests that were recorded when it was written.

    Writing to a view changes neither the file nor what another process sees of it.

    Raises:
        ValueError: if the file is not whole.
    """
    try:
        large = np.load(path, mmap_mode="c")
        with path.open("rb") as file:
            file.seek(large.offset + large.nbytes)
            table = np.load(file).tolist()
            arrays = [large, *(np.load(file) for _ in table[1:])]
    except (ValueError, EOFError) as error:
        raise ValueError("it is not whole") from error
    tensors = {name: torch.from_numpy(array) for (name, _), array in zip(table, arrays, strict=True)}
    for name, text in table:
        if text:
            remember_digest(tensors[name], text)
    return tensors


def is_whole(path: Path) -> bool:
    """Whether a file is there to be read; one that is damaged is named, set aside, and counts as missing."""
    try:
        return path.is_file() and bool(read_file(path))
    except ValueError as error:
        print(f"{path} is damaged ({error}): it is now {set_aside(path).name}, and made again", flush=True)
        return False


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is what `read_file` gave: a view of a file, whose contents it was told."""
    return hasattr(tensor, "_known_digest")


def in_words(size: float) -> str:
    """A number of bytes as people say it: "3.0 GB", "18 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def chosen_rows(rows: Tensor, chosen: Sequence[int], folder: Path, scale: float = 1.0) -> Tensor:
    """Some rows, times a number: [N, D] -> [len(chosen), D]; of mapped ones not in memory, but mapped as well.

    Args:
        rows: mapped or not.
        chosen: their numbers, in the order wanted.
        folder: where such files are kept: a run of rows is a view of the file that is there, others are a new one.
        scale: the number.
    """
    numbers, run = list(chosen), list(range(chosen[0], chosen[0] + len(chosen)))
    if not is_mapped(rows):
        some = rows if numbers == list(range(len(rows))) else rows[numbers]
        return some if scale == 1 else scale * some
    told = [digest(rows), *map(str, numbers), str(scale)]
    if scale == 1 and numbers == run:
        some = rows[run[0] : run[-1] + 1]
        remember_digest(some, key_of({"rows": told}))
        return rows if len(some) == len(rows) else some
    return mapped_rows(folder, (scale * rows[number] for number in numbers), (len(numbers), rows.shape[1]), told)


def mapped_rows(folder: Path, rows: Iterable[Tensor], shape: tuple[int, int], determines: Sequence[str]) -> Tensor:
    """Float32 rows [N, D] in a file that is made the first time, one row in memory at a time, and mapped.

    Args:
        folder: where such files are kept.
        rows: N times [D]; not read when the file is there.
        shape: (N, D).
        determines: what the rows follow from; names the file and stands for their values in `lib.runtime.keys.digest`.
    """
    key = key_of({"rows": list(determines), "shape": list(shape)})
    path = folder / f"{key}.npy"
    if not is_whole(path):
        with exclusive(folder):
            remove_unfinished(path)
            if not path.is_file():
                with new_file(path, {"rows": (torch.float32, shape)}) as file:
                    for number, row in enumerate(rows):
                        file.write("rows", number, row.numpy())
                    file.digests["rows"] = key
    return read_file(path)["rows"]

"""Tensors too large for memory: written row by row into a safetensors file, and read back as a view of that file.

A view costs no time to open and no memory to hold: the system reads a page of the file when it is first touched and
drops it again when memory is short. The file takes its name only when it is whole, so a run that was killed leaves
nothing that could be taken for a result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lib.runtime.disk import atomic_path, exclusive
from lib.runtime.keys import key_of, remember_digest

HEADER = 4096  # bytes before the tensors: room for names and metadata, and a multiple of a page
NAMES = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}  # as the format calls them
DIGESTS = "digest of "  # begins the metadata that say what a tensor's contents are


class Writer:
    """An unfinished file; rows may be written in any order, and by several threads at once.

    Args:
        handle: the open file.
        entries: tensor name -> type and shape.

    Attributes:
        digests: tensor name -> what `lib.runtime.store.digest` shall take for its contents.
    """

    def __init__(self, handle: int, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.digests: dict[str, str] = {}
        self._handle, self._header, self._rows, end = handle, {}, {}, 0
        for name, (dtype, shape) in entries.items():
            row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
            start, end = end, end + row * shape[0]
            self._rows[name] = (start, row)
            self._header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        os.truncate(handle, HEADER + end)

    def write(self, name: str, row: int, values: np.ndarray) -> None:
        """Write values from a row of a tensor on."""
        start, size = self._rows[name]
        # Not through a memory map: on a full disk that would end the process instead of raising an error.
        left, place = memoryview(np.ascontiguousarray(values)).cast("B"), HEADER + start + row * size
        while left:
            done = os.pwrite(self._handle, left, place)
            left, place = left[done:], place + done

    def finish(self) -> None:
        """Write the header, last."""
        header = dict(self._header)
        if self.digests:
            header["__metadata__"] = {DIGESTS + name: text for name, text in self.digests.items()}
        text = json.dumps(header).encode()
        length = HEADER - 8
        if len(text) > length:
            raise ValueError(f"the header takes {len(text)} bytes, more than {length}: name fewer tensors")
        os.pwrite(self._handle, length.to_bytes(8, "little") + text.ljust(length), 0)


@contextmanager
def new_file(path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[Writer]:
    """Write a safetensors file row by row; it appears under its name when the block ends without an error.

    Args:
        path: its name.
        entries: tensor name -> type and shape, those with the widest type first.

    Raises:
        OSError: if the disk has no room for it; nothing is written then.
    """
    needed = sum(dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in entries.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{path.parent} has {in_words(free)} free, {path.name} takes {in_words(needed)}: make room, or link "
            "data/cache to a larger disk"
        )
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_RDWR)
        try:
            writer = Writer(handle, entries)
            yield writer
            writer.finish()
        finally:
            os.close(handle)


def remove_unfinished(path: Path) -> None:
    """Remove what killed runs left of a file; only where no other process can be writing it."""
    for left_over in path.parent.glob(f".{path.name}.*"):
        left_over.unlink(missing_ok=True)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file as views of it, with the digests that were recorded when it was written.

    Writing to a view changes neither the file nor what another process sees of it.

    Raises:
        SafetensorError: if the file is not whole.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if text := metadata.get(DIGESTS + name):
            remember_digest(tensor, text)
    return tensors


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is what `read_file` gave: a view of a file, whose contents it was told."""
    return hasattr(tensor, "_known_digest")


def in_words(size: float) -> str:
    """A number of bytes as people say it: "3.0 GB", "18 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def mapped_rows(folder: Path, rows: Iterable[Tensor], shape: tuple[int, int], determines: Sequence[str]) -> Tensor:
    """Float32 rows [N, D] in a file that is made the first time, one row in memory at a time, and mapped.

    Args:
        folder: where such files are kept.
        rows: N times [D]; not read when the file is there.
        shape: (N, D).
        determines: what the rows follow from; names the file and stands for their values in `lib.runtime.store.digest`.
    """
    key = key_of({"rows": list(determines), "shape": list(shape)})
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        with exclusive(folder):
            remove_unfinished(path)
            if not path.is_file():
                with new_file(path, {"rows": (torch.float32, shape)}) as file:
                    for number, row in enumerate(rows):
                        file.write("rows", number, row.numpy())
                    file.digests["rows"] = key
    return read_file(path)["rows"]

"""Tensors out of files that `torch.save` wrote, whatever else was pickled with them, and no code run.

The published checkpoints of Task Arithmetic (https://github.com/mlfoundations/task_vectors) are whole pickled modules:
`torch.load` would import their classes, from the open_clip and torchvision of 2022, and call what they say. Here
`lib.files.safe_pickle` reads the pickle as a tree of inert descriptions, this module finds the modules' parameters in it, and
only then reads the numbers, of the tensors that are asked for.

A file says how large its storages are. Before memory is taken that is held against the bytes that are there, and a
tensor must fit into its storage without repeating it, so a small file cannot become large. Both formats are read: the
zip archive of torch 1.6 and later (`*/data.pkl` and `*/data/<key>`, stored without compression), and the older one of
five pickles followed by the raw storages.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lib.files.safe_pickle import LONGEST, Inert, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of an old file, "look mom no hands" in torch.serialization
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
PARTS = 20_000  # modules, parameters and buffers; a ViT-L/14 has about 1000, modules that share parts without end more
LONGEST_NAME = 1000
LARGEST = 2**40  # elements; sizes beyond are no sizes


class Storage(NamedTuple):
    """A storage as the pickle names it."""

    key: str
    dtype: torch.dtype
    numel: int


class View(NamedTuple):
    """A tensor as the pickle describes it: where in its storage the numbers are."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Read the parameters and buffers of a pickled module, or the tensors of a pickled state dict.

    Args:
        path: a file that `torch.save` wrote.
        wanted: of which names; the other tensors are not read.

    Returns:
        Name with dots -> tensor on the CPU, as `state_dict()` has them (buffers that are not persistent included).

    Raises:
        ValueError: if the file is damaged, holds no tensors, or claims what it does not hold; names the file and the
            mend.
    """
    try:
        return _read_zip(path, wanted) if zipfile.is_zipfile(path) else _read_legacy(path, wanted)
    except (ValueError, RuntimeError, OSError, zipfile.BadZipFile, EOFError, struct.error) as error:
        raise ValueError(
            f"{path} cannot be read as a file of torch: {error}; download it again, or save the state dict that it "
            "should hold with safetensors"
        ) from None


def _read_zip(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ValueError(f"its record '{info.filename[:80]}' is compressed, which torch never does")
        if sum(info.file_size for info in archive.infolist()) > (there := path.stat().st_size):
            raise ValueError(f"its records claim more than the {there} bytes that the file has")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} records data.pkl instead of one")
        folder = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > LONGEST:
            raise ValueError(f"its pickle has {members[pickles[0]].file_size} bytes, more than {LONGEST}")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        root, _ = read_pickle(BytesIO(archive.read(pickles[0])))

        def read(storage: Storage) -> Tensor:
            record = members.get(f"{folder}data/{storage.key}")
            if record is None:
                raise ValueError(f"its record data/{storage.key[:80]} is missing")
            _compare(storage, record.file_size)
            return _numbers(bytearray(archive.read(record)), storage)

        return _tensors(root, wanted, read)


def _read_legacy(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = BytesIO(file.read(LONGEST))  # the pickles come first, all of them together
        if read_pickle(start)[0] != MAGIC:
            raise ValueError("it begins with another pickle than torch.save writes")
        read_pickle(start)  # the version of the format; there was only ever one
        machine, _ = read_pickle(start)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("it was not written on a little-endian machine")
        root, persistent = read_pickle(start)
        keys, _ = read_pickle(start)
        storages = {storage.key: storage for storage in map(_storage, persistent)}
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not texts or sorted(keys) != sorted(storages):
            raise ValueError("the list of its storages does not fit")
        places, position, end = {}, start.tell(), path.stat().st_size
        for storage in (storages[key] for key in keys):
            file.seek(position)
            (numel,) = struct.unpack("<q", file.read(8))
            _compare(storage, numel * storage.dtype.itemsize)
            places[storage.key] = position + 8
            position += 8 + numel * storage.dtype.itemsize
            if position > end:
                raise ValueError(f"its storages claim more than the {end} bytes that the file has")

        def read(storage: Storage) -> Tensor:
            if storages[storage.key] != storage:
                raise ValueError(f"its storage {storage.key[:80]} has two types or sizes")
            file.seek(places[storage.key])
            return _numbers(bytearray(file.read(storage.numel * storage.dtype.itemsize)), storage)

        return _tensors(root, wanted, read)


def _compare(storage: Storage, there: int) -> None:
    """A storage must be exactly as large as the pickle says."""
    if storage.numel * storage.dtype.itemsize != there:
        raise ValueError(f"its storage {storage.key[:80]} claims {storage.numel} elements, but has {there} bytes")


def _numbers(data: bytearray, storage: Storage) -> Tensor:
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


def _tensors(root: object, wanted: Callable[[str], bool], read: Callable[[Storage], Tensor]) -> dict[str, Tensor]:
    """Read each storage that is needed once, and lay the views of the tensors into it."""
    views = {name: _view(name, value) for name, value in _named(root) if wanted(name)}
    storages = {storage: read(storage) for storage in {view.storage for view in views.values()}}
    return {
        name: storages[view.storage].as_strided(view.size, view.stride, view.offset) for name, view in views.items()
    }


def _named(root: object) -> Iterator[tuple[str, object]]:
    """Names and descriptions of the tensors in a module, in the order of its `state_dict`, or in a plain dict."""
    tensors = {name: value for name, value in root.items() if _is_tensor(value)} if isinstance(root, dict) else {}
    if not tensors and not _parts(root, "_modules") and not _parts(root, "_parameters"):
        raise ValueError("it holds neither a module nor a state dict")
    yield from tensors.items()
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        parameters, buffers, modules = (_parts(module, kind) for kind in ("_parameters", "_buffers", "_modules"))
        seen += len(parameters) + len(buffers) + len(modules)
        if seen > PARTS or len(prefix) > LONGEST_NAME:
            raise ValueError(f"it has more than {PARTS} parts, or modules that contain themselves")
        yield from ((prefix + name, value) for name, value in parameters.items() if value is not None)
        yield from ((prefix + name, value) for name, value in buffers.items() if value is not None)
        waiting += [(f"{prefix}{name}.", part) for name, part in reversed(modules.items()) if part is not None]


def _parts(module: object, kind: str) -> dict[str, object]:
    state = module.state if isinstance(module, Inert) else None
    found = state.get(kind) if isinstance(state, dict) else None
    return found if isinstance(found, dict) else {}


def _is_tensor(value: object) -> bool:
    return isinstance(value, Inert) and value.name in (*REBUILD, *PARAMETER)


def _view(name: str, value: object) -> View:
    """Check the description of a tensor: it must lie inside its storage and be no larger than it."""
    for _ in range(3):  # a parameter is made of a tensor, which is made of a storage
        if isinstance(value, Inert) and value.name in PARAMETER and isinstance(value.args, tuple) and value.args:
            value = value.args[0]
    known = isinstance(value, Inert) and value.name in REBUILD and isinstance(value.args, tuple)
    if not known or len(value.args) < 4:
        what = value.name if isinstance(value, Inert) else type(value).__name__
        raise ValueError(f"'{name[:80]}' is a {what[:80]} and no dense tensor")
    reference, offset, size, stride = value.args[:4]
    if not (isinstance(reference, Inert) and reference.name == "persistent id"):
        raise ValueError(f"'{name[:80]}' has no storage")
    storage = _storage(reference.args)
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8):
        raise ValueError(f"'{name[:80]}' has no shape")
    if not all(type(number) is int and 0 <= number <= LARGEST for number in (offset, *size, *stride)):
        raise ValueError(f"'{name[:80]}' has an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if (numel := math.prod(size)) > storage.numel or (numel and last >= storage.numel):
        raise ValueError(f"'{name[:80]}' of shape {list(size)} does not fit into its {storage.numel} elements")
    return View(storage, offset, size, stride)


def _storage(identity: object) -> Storage:
    """Check a persistent id: ("storage", type, key, device, elements), in old files with None behind it."""
    if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"):
        raise ValueError("it refers to something that is no storage")
    _, kind, key, _, numel, *view = identity
    place, _, name = kind.name.rpartition(".") if isinstance(kind, Inert) else ("", "", "")
    if place not in ("torch", "torch.storage", "torch.cuda") or name not in STORAGES:
        raise ValueError(f"it has a storage of type '{name[:80]}', which is none of {', '.join(STORAGES)}")
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel <= LARGEST or any(view):
        raise ValueError("it has a storage without a key or a size")
    return Storage(key, STORAGES[name], numel)

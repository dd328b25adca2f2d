"""Tensors out of files that `torch.save` wrote, whatever else was pickled with them, and no code run.

The published checkpoints of Task Arithmetic (https://github.com/mlfoundations/task_vectors) are whole pickled modules.
A pickle is a program: `torch.load` would import their classes, from the open_clip of 2022, and call what they say; with
`weights_only=True` it refuses them. Here `torch.load` reads both its formats with an `Unpickler` that makes only plain
values, tensors and stand-ins. Nothing in a file runs, because

- `find_class` imports nothing: what can be called is one of `CALLS`, or a stand-in class that does nothing;
- of the opcodes those in `PLAIN` keep Python's own handlers, which put such values together. Those that set attributes
  or entries are replaced, and all others end the reading, EXT1 and its like among them;
- TorchScript and tar archives, for which `torch.load` has other readers, are refused first.

`pickle.Unpickler`, written in C, cannot be narrowed like this, hence `pickle._Unpickler`. Memory is not limited:
`torch.load` itself takes what a file of the legacy format claims. Zip archives are mapped, not read into memory.
"""

from __future__ import annotations

import math
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import torch
from torch import Tensor

PLAIN = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT",
    "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE",
)  # fmt: skip
PARTS = 20_000  # modules and tensors; a ViT-L/14 has about 1000, modules that share parts without end more


class Inert:
    """Stands for an object whose class is not imported: it keeps its state and does nothing."""

    def __new__(cls, *_: object) -> Inert:
        """Ignore what the object would be made of."""
        made = super().__new__(cls)
        made.state = {}
        return made


def _tensor(storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """A view of a storage, which must lie inside it and not repeat it."""
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    if math.prod(size) > flat.numel():
        raise ValueError(f"a tensor of shape {list(size)} does not fit into its {flat.numel()} elements")
    return flat.as_strided(size, stride, offset)


CALLS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "collections.OrderedDict": lambda: {},
}


class Unpickler(pickle._Unpickler):
    """Reads what a pickle describes; see the module's docstring. `torch.load` sets `persistent_load`."""

    records: Mapping[str, int] | None = None  # of a zip archive: name -> bytes
    keys: set[str]  # of the storages that were named

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """What stands for a class or function."""
        return CALLS.get(f"{module}.{name}") or type(f"{module}.{name}", (Inert,), {})

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert) and isinstance(state, dict):
            self.stack[-1].state = state

    def _extend(self, values: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _update(self, pairs: list) -> None:
        """Only texts become keys: no other names a tensor, and hashing one that is nested deeply ends the process."""
        if isinstance(self.stack[-1], dict):
            items = zip(pairs[::2], pairs[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in items if isinstance(key, str))

    def _persistent(self) -> None:
        """A storage, or in legacy files the class of a module, with its source."""
        what, kind, key, _, *size = identity = self.stack.pop()
        if what == "module":
            self.append(kind)
            return
        if what != "storage" or size[1:] not in ([], [None]):
            raise ValueError("it refers to something that is no storage")
        if not isinstance(key, str) or type(size[0]) is not int or size[0] < 0:
            raise ValueError("it has a storage without a key or a size")
        claimed = size[0] * kind.dtype.itemsize
        if self.records is not None and (there := self.records.get(f"data/{key}", 0)) != claimed:
            raise ValueError(f"its storage {key[:80]} claims {size[0]} elements, but has {there} bytes")
        self.keys.add(key)
        self.append(self.persistent_load(identity))

    dispatch = {  # noqa: RUF012 - as in the class above
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in PLAIN},
        pickle.NEWOBJ[0]: pickle._Unpickler.load_reduce,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: lambda self: self._extend([self.stack.pop()]),
        **dict.fromkeys((pickle.APPENDS[0], pickle.ADDITEMS[0]), lambda self: self._extend(self.pop_mark())),
        pickle.SETITEM[0]: lambda self: self._update([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._update(self.pop_mark()),
        pickle.EMPTY_SET[0]: lambda self: self.append(Inert()),  # its elements would have to be hashed
        pickle.BINPERSID[0]: _persistent,
    }

    @classmethod
    def part(cls, file: BinaryIO, **options: str) -> object:
        """What a legacy file has around the pickle: magic number, version, byte order; then the storages' keys."""
        part = cls(file, **options).load()
        if isinstance(part, dict) and part.get("little_endian") is not True:
            raise ValueError("it was not written on a little-endian machine")
        if not isinstance(part, int | dict) and (set(map(type, part)) - {str} or sorted(part) != sorted(cls.keys)):
            raise ValueError("the list of its storages does not fit")
        return part


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a pickled module, or the tensors of a pickled state dict, also a nested one.

    Args:
        path: a file that `torch.save` wrote.

    Returns:
        Name with dots -> tensor on the CPU, as `state_dict()` has them (buffers that are not persistent included).

    Raises:
        ValueError: if the file is damaged, holds no tensors, or claims what it does not hold; names the file and says
            how to fix it.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as torch.load tells them apart
        if not zipped and tarfile.is_tarfile(path):
            raise ValueError("it is a tar archive, which only the first versions of torch wrote")
        kind = type("Unpickler", (Unpickler,), {"records": _records(path) if zipped else None, "keys": set()})
        module = SimpleNamespace(__name__=__name__, Unpickler=kind, load=kind.part)
        root = torch.load(str(path), map_location="cpu", weights_only=False, pickle_module=module, mmap=zipped)
        return dict(_named(root))
    except Exception as error:  # whatever damaged bytes lead to, here and in torch
        clear = isinstance(error, ValueError | RuntimeError | OSError | zipfile.BadZipFile)
        reason = (str(error) if clear else "").partition("\n")[0] or f"it is damaged ({type(error).__name__})"
        raise ValueError(
            f"{path} cannot be read as a file of torch: {reason}; download it again, or save the state dict that it "
            "should hold with safetensors"
        ) from None


def _records(path: Path) -> dict[str, int]:
    """Check a zip archive, and list its records: name without the archive's folder -> bytes."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("a record in it is compressed, which torch never does")
        if damaged := archive.testzip():  # torch.load ignores the checksums
            raise ValueError(f"its record '{damaged[:80]}' is damaged")
        records = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
    if torch._C.PyTorchFileReader(str(path)).has_record("constants.pkl"):  # torch's own reader decides by this
        raise ValueError("it is a TorchScript program")
    return records


def _named(root: object) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module, in the order of its `state_dict`, or of nested dicts."""
    waiting, seen = [("", root)] if isinstance(root, dict | Inert) else [], 0
    found = False
    while waiting:
        prefix, part = waiting.pop()
        if isinstance(part, Inert):
            parameters, buffers, inner = (part.state.get(f"_{own}", {}) for own in ("parameters", "buffers", "modules"))
            tensors = {name: value for name, value in (parameters | buffers).items() if value is not None}
        else:
            tensors, inner = {name: value for name, value in part.items() if isinstance(value, Tensor)}, part
        seen += len(tensors) + len(inner)
        if seen > PARTS or len(prefix) > 1000:
            raise ValueError(f"it has more than {PARTS} parts, or modules that contain themselves")
        found = found or bool(tensors)
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"'{prefix}{name[:80]}' is a {type(value).__name__[:80]} and no dense tensor")
            yield prefix + name, value
        waiting += [(f"{prefix}{n}.", p) for n, p in reversed(inner.items()) if isinstance(p, dict | Inert)]
    if not found:
        raise ValueError("it holds neither a module nor a state dict")

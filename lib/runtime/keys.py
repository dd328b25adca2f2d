"""Keys that cannot forget: what determines a result, read off its arguments and off the code that makes it.

`content` turns any argument of a routine into plain values that change when the result could: tensors into a hash of
their values, objects into their attributes, functions into their code, their closures and the globals they use, torch
modules into their architecture and parameters. Nothing has to be listed by hand, so nothing can be left out; what does
*not* belong into a key is what has to be said: by `ASIDE` for arguments, by `NOT_IN_KEYS` in a class for attributes.

`code_of` hashes the source of a module of this study and of all modules it imports, so an edited constant makes a new
key, while an edited comment does not. The versions of torch and its like are noted beside a result, not in its key.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import pandas as pd
import torch
import xxhash
from torch import Tensor, nn

# Arguments that say how a result is made or shown and never what it is (but for rounding, as between devices).
ASIDE = ("checkpoint", "label", "backend", "shard")
OURS = ("lib.", "worlds.")
# Modules that run things and compute nothing: editing them must not throw results away.
RUN = ("checkpoint", "disk", "keys", "launch", "memory", "parameters", "processes", "progress", "ranks", "store")
RUNNING = frozenset(f"lib.runtime.{name}" for name in RUN)
PLAIN = (str, int, float, bool, type(None))
STARTED = time.time()
WHENCE = ("name_or_path", "transformers_version")  # where a model came from, not what it is
PIECE = 64 << 20  # bytes hashed at a time: no second copy of a large tensor is made


def key_of(determines: Mapping[str, object]) -> str:
    """A short hash of names and values, independent of their order.

    Raises:
        ValueError: if a value cannot be written as JSON: a key must not depend on an object's address.
    """
    try:
        text = json.dumps(determines, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"an artifact's key may hold only plain values ({error})") from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(*tensors: Tensor) -> str:
    """A short hash of the tensors' types, shapes and values, for keys.

    What `remember_digest` said of a tensor stands for its values: images that are mapped are not read for it. The hash
    (XXH3, https://xxhash.com) is as fast as memory; it guards against mistakes, not against forgery.
    """
    total = xxhash.xxh3_128()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        known, version = getattr(tensor, "_known_digest", ("", 0))
        if known and version == tensor._version:
            total.update(known.encode())
        else:
            for piece in _pieces(tensor.detach()):
                total.update(piece.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """All values in order, some at a time: views, so that only a piece is ever copied, from a device or a strided view.

    Where the pieces end does not matter to the hash.
    """
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(max(1, PIECE // tensor.element_size()))
    elif tensor.nbytes <= PIECE:
        yield tensor
    else:
        for row in tensor:
            yield from _pieces(row)


def remember_digest(tensor: Tensor, text: str) -> None:
    """Let `digest` take `text` for the tensor's values, until they are changed. Slices and copies do not inherit it."""
    tensor._known_digest = (text, tensor._version)


def content(value: object, _within: tuple[int, ...] = ()) -> object:
    """Plain values that change whenever a result that depends on `value` could.

    Args:
        value: an argument of a routine: plain values and collections of them, tensors, tables, dataclasses, objects of
            this study's classes (or any with a method `determines`), torch modules, and functions, also a notebook's.

    Raises:
        ValueError: for anything else, since its address would say nothing.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return f"tensor {digest(value)}"
    if id(value) in _within:
        return "itself"
    within = (*_within, id(value))
    inside = functools.partial(content, _within=within)
    if isinstance(value, np.ndarray | np.generic):
        return ["array", str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(value.tobytes())[:16]]
    if isinstance(value, pd.DataFrame):
        return ["table", list(map(str, value.columns)), list(map(str, value.dtypes)), value.to_csv()]
    if isinstance(value, Mapping):
        return ["mapping", [[inside(name), inside(part)] for name, part in value.items()]]
    if isinstance(value, Set):
        return ["set", sorted(map(json.dumps, map(inside, value)))]
    if isinstance(value, Sequence):
        return [inside(part) for part in value]
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if callable(value) and not isinstance(value, nn.Module) and (found := _of_callable(value, inside)):
        return found
    return _of_object(value, inside)


@dataclasses.dataclass(frozen=True)
class Known:
    """A function that is known by its code and by what is said here, where its closure holds more (a workspace).

    Attributes:
        call: the function.
        by: everything else that its results depend on.
    """

    call: Callable[..., object]
    by: Mapping[str, object]

    def determines(self) -> dict[str, object]:
        """What is said, for keys."""
        return {"code of the function": code_of(self.call.__module__), **self.by}

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""
        return self.call(*args, **kwargs)


def _of_object(value: object, inside: Callable[[object], object]) -> object:
    kind, left_out = type(value), getattr(value, "NOT_IN_KEYS", ())
    if hasattr(value, "determines"):
        parts = value.determines()
    elif dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
    elif isinstance(value, nn.Module):
        return of_module(value)
    elif f"{kind.__module__}.".startswith(OURS) or kind.__module__ == "__main__":
        parts = vars(value)
    else:
        place = f"{kind.__module__}.{kind.__qualname__}"
        raise ValueError(f"a key cannot tell what determines a {place}: pass plain values, tensors, or objects of lib")
    parts = {name: inside(part) for name, part in parts.items() if name not in left_out}
    return {"class": kind.__qualname__, "code": code_of(kind.__module__), **parts}


def _of_callable(value: Callable, inside: Callable[[object], object]) -> object:
    """Of a function: its code, its closure, its defaults; of one defined in a notebook, also the globals it uses."""
    if isinstance(value, functools.partial):
        return ["partial", inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, MethodType):
        return ["method", value.__func__.__qualname__, inside(value.__self__)]
    if isinstance(value, type | BuiltinFunctionType):
        return [f"{value.__module__}.{value.__qualname__}", code_of(value.__module__)]
    if not isinstance(value, FunctionType):
        return None
    value = inspect.unwrap(value)
    where = f"{value.__module__}.".startswith(OURS)
    found = {"function": value.__qualname__, "code": code_of(value.__module__) if where else _bytecode(value.__code__)}
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    found["closure"] = {name: inside(cell.cell_contents) for name, cell in cells}
    found["defaults"] = [inside(value.__defaults__), inside(value.__kwdefaults__)]
    if value.__module__ == "__main__":
        used = {name: value.__globals__[name] for name in sorted(_names(value.__code__)) if name in value.__globals__}
        found["globals"] = {name: _of_global(part, inside) for name, part in used.items()}
    return found


def _of_global(value: object, inside: Callable[[object], object]) -> object:
    return [value.__name__, code_of(value.__name__)] if isinstance(value, ModuleType) else inside(value)


def _names(code: CodeType) -> set[str]:
    """The globals that a function reads; `co_names` has attributes too, and one may be called as a global is."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _bytecode(code: CodeType) -> list[object]:
    constants = [_bytecode(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest()[:16], constants, list(code.co_names)]


def of_module(module: nn.Module, without: Collection[str] = ()) -> dict[str, object]:
    """Architecture, options and parameters of a torch module, whatever package it comes from.

    Args:
        module: the module.
        without: names of parameters and buffers that are given otherwise, such as those of a flat vector.
    """
    parts = [[name, type(part).__qualname__, _options(part)] for name, part in module.named_modules()]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: digest(tensor) for name, tensor in sorted(tensors.items()) if name not in without}
    return {"class": type(module).__qualname__, "parts": parts, "tensors": tensors}


def _options(part: nn.Module) -> dict[str, object]:
    """The public attributes of a module that are plain, functions, or a configuration."""
    found = {}
    for name, value in vars(part).items():
        if name.startswith("_") or name.endswith(WHENCE) or name == "training" or isinstance(value, MethodType):
            continue  # a bound method is its class's; peft leaves one behind when a model has been used
        if hasattr(value, "to_dict"):  # of transformers and peft
            value = {k: v for k, v in value.to_dict().items() if not (k.startswith("_") or k.endswith(WHENCE))}
        if isinstance(value, FunctionType | BuiltinFunctionType | type):
            value = f"{value.__module__}.{value.__qualname__}"
        found[name] = json.dumps(value, default=lambda other: type(other).__qualname__, sort_keys=True)
    return found


@functools.cache
def code_of(module: str) -> str:
    """A hash of the source of a module of this study and of all of them that it imports; "" for any other module.

    Comments, docstrings and layout do not count.

    Raises:
        ValueError: if a file was edited while its module was in use: Python goes on with the old code.
    """
    waiting, found = {module}, {}
    while waiting:
        name = waiting.pop()
        if not f"{name}.".startswith(OURS) or name in RUNNING or name in found:
            continue
        found[name], imported = _source(name)
        waiting |= imported
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16] if found else ""


@functools.cache
def _source(name: str) -> tuple[str, frozenset[str]]:
    """A hash of what a module says, and the modules that it imports."""
    place = importlib.util.find_spec(name)
    if place is None or not place.origin:
        return "", frozenset()
    path = Path(place.origin)
    if name in sys.modules and path.stat().st_mtime > STARTED:
        raise ValueError(f"{path.name} was edited, and its old code is still in use here ({name}): restart the kernel")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], frozenset(_imports(tree, name))


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _imports(tree: ast.AST, room: str) -> Iterator[str]:
    """The modules of this study that a module imports when it runs, in functions too; a room has those of its index."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(OURS):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else node.module for name in inner)
        match node:
            case ast.Call(func=ast.Name("index"), args=[_, ast.Dict(keys=modules)]):  # `lib.runtime.index`
                yield from (f"{room}.{module.value}" for module in modules)
        waiting += ast.iter_child_nodes(node)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False

"""Results that took long to make, made once: `store.remember(routine)(arguments)`.

The wrapped routine is called as ever. The first call makes the result and saves it under a key of everything that
determines it, its arguments and its code (`lib.runtime.keys`); a later call with the same ones, also in another
process, reads it. A routine with a parameter `checkpoint` is given one, so that a killed call continues where it was.

An artifact is a folder `<root>/<routine>/<key>/` with the result's tensors (safetensors), its tables (parquet) and
`about.json` (how they belong together, arguments, versions, seconds, peak memory), which is written last: a folder
without it is unfinished, and holds `checkpoint.pt` while it is being made.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import inspect
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, TypeVar

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.runtime import keys, ranks
from lib.runtime.checkpoint import Checkpoint, SharedCheckpoint
from lib.runtime.disk import atomic_path, exclusive, set_aside

Arguments, Result = ParamSpec("Arguments"), TypeVar("Result")
Told, Make = Mapping[str, object], Callable[[Checkpoint], object]
MAKERS = ("numpy", "timm", "open_clip_torch", "transformers", "peft", "datasets", "pillow")  # whose versions are noted
_maker: ContextVar[int] = ContextVar("maker", default=0)
_only_look: ContextVar[bool] = ContextVar("only_look", default=False)


class NotMade(LookupError):
    """A result is not in the store, and nobody wants it made."""


@contextmanager
def _set(variable: ContextVar, value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def made_by(process: int) -> AbstractContextManager[None]:
    """Inside, that process makes what is missing, while the others that run the same notebook wait for it."""
    return _set(_maker, process)


def only_looking() -> AbstractContextManager[None]:
    """Inside, a result that is not there raises `NotMade`."""
    return _set(_only_look, True)


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of results.

    Attributes:
        root: where they lie; made when first needed.
        device: where the tensors of a result are wanted.
    """

    root: Path
    device: str = "cpu"

    def remember(self, routine: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The routine, whose results are kept.

        Its result may be tensors, tables, plain values, and collections or dataclasses of them. Of processes that run
        one notebook together (`lib.runtime.ranks`) one makes it; or all of them do, if the routine has an attribute
        `together` that says so of its arguments.
        """
        signature = inspect.signature(routine)

        @functools.wraps(routine)
        def remembered(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            determines = {name: value for name, value in given.arguments.items() if name not in keys.ASIDE}
            told = {name: keys.content(value) for name, value in determines.items()}
            name = f"{routine.__module__}.{routine.__qualname__}"
            code = keys.code_of(routine.__module__) or keys.content(routine)  # the latter of a notebook's own
            told = {"routine": name, "code": code, "arguments": told}
            together = ranks.count() > 1 and getattr(routine, "together", lambda **_: False)(**given.arguments)

            def make(checkpoint: Checkpoint) -> Result:
                if "checkpoint" in signature.parameters:
                    given.arguments["checkpoint"] = checkpoint
                return routine(*given.args, **given.kwargs)

            key = keys.key_of(told)
            # A sum on a GPU may differ in its last bit, and so would the key.
            folder = self.root / routine.__name__ / (ranks.of_first(key) if together else key)
            return self._get(folder, told, make, together)

        return remembered

    def _get(self, folder: Path, told: Told, make: Make, together: bool, again: bool = False) -> object:
        def has() -> bool:
            return (folder / "about.json").is_file()

        if _only_look.get() and not has():
            raise NotMade(f"{told['routine']} has not been called with these arguments")
        if together:
            with exclusive(folder) if ranks.number() == 0 else nullcontext():
                if not ranks.of_first(has()):
                    self._make(folder, told, make, SharedCheckpoint)
                ranks.everyone(None)  # until the first has saved it
        elif ranks.number() != _maker.get():
            # No message but the file itself: what one process still has to make, another may have in memory already.
            while not has():
                time.sleep(0.2)
        elif not has():
            with exclusive(folder):
                if not has():  # nor was it made while this process waited
                    self._make(folder, told, make, Checkpoint)
        try:
            return self._read(folder)
        except Exception as error:
            if again or not _damaged(error) or ranks.count() > 1:
                raise ValueError(f"the result in {folder} cannot be read ({error}); delete it for a new one") from None
            aside = set_aside(folder)
            print(f"the result in {folder} is damaged ({error}): it is now {aside.name}, and made again", flush=True)
        return self._get(folder, told, make, together, again=True)

    def _make(self, folder: Path, told: Told, make: Make, kind: type[Checkpoint]) -> None:
        started = time.monotonic()
        result = make(kind(folder / "checkpoint.pt"))
        if kind is SharedCheckpoint and ranks.number() != 0:
            return
        tensors: dict[str, Tensor] = {}
        tables: dict[str, pd.DataFrame] = {}
        form = _taken_apart(result, "result", tensors, tables)
        with atomic_path(folder / "tensors.safetensors") as temporary:
            save_file(_apart(tensors), temporary)
        for name, table in tables.items():
            with atomic_path(folder / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        about = {"result": form, **told, **circumstances(time.monotonic() - started, self.device)}
        with atomic_path(folder / "about.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)

    def _read(self, folder: Path) -> object:
        tensors = load_file(folder / "tensors.safetensors")

        def part(form: Mapping[str, object]) -> object:
            ((kind, value),) = form.items()
            if kind == "tensor":
                return tensors[value].to(self.device)
            if kind == "table":
                return pd.read_parquet(folder / f"{value}.parquet")
            if kind in ("list", "tuple"):
                return {"list": list, "tuple": tuple}[kind](map(part, value))
            if kind == "mapping":
                return {name: part(inner) for name, inner in value}
            if kind == "plain":
                return value
            return _class(kind)(**{name: part(inner) for name, inner in value.items()})

        return part(json.loads((folder / "about.json").read_text())["result"])


def _damaged(error: Exception) -> bool:
    """Whether the files of a result say nothing sensible; not, that there was no reaching or holding them now."""
    if isinstance(error, OSError):
        return error.errno in (None, errno.ENOENT)
    return not isinstance(error, MemoryError | RuntimeError)


def _taken_apart(
    value: object, name: str, tensors: dict[str, Tensor], tables: dict[str, pd.DataFrame]
) -> dict[str, object]:
    """How a result is put together again, as plain values; its tensors and tables go into the two dictionaries."""

    def inside(part: object, own: object) -> dict[str, object]:
        return _taken_apart(part, f"{name}.{own}", tensors, tables)

    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, pd.DataFrame):
        tables[name] = value
        return {"table": name}
    if dataclasses.is_dataclass(value):
        parts = {field.name: inside(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return {f"{type(value).__module__}:{type(value).__qualname__}": parts}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [inside(part, number) for number, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"mapping": [[own, inside(part, own)] for own, part in value.items()]}
    if isinstance(value, keys.PLAIN):
        return {"plain": value}
    raise ValueError(f"a {type(value).__qualname__} in a result cannot be kept: return tensors, tables or plain values")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, no two of them in the same memory, as safetensors wants it."""
    found: dict[str, Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return found


def _class(place: str) -> type:
    """A dataclass of this study by its place, "lib.adaptation.loop:Adapted"."""
    module, _, name = place.partition(":")
    if module.startswith(keys.OURS):
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise ValueError(f"'{place}' is no dataclass of this study")


def circumstances(seconds: float, device: str = "cpu") -> dict[str, object]:
    """What to note beside a result: versions, machine, device, seconds, peak resident memory of this process in MiB."""
    together = {"processes": ranks.count()} if ranks.count() > 1 else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
    return together | {
        "seconds": round(seconds, 2),
        "peak_memory_mib": round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        **{name: version(name) for name in MAKERS},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }

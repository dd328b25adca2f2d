"""Weights that others saved, whatever they were saved as: the one reader of all that loads some.

A file of safetensors, one of torch (a state dict however nested, or a whole module: see `lib.files.pickled`), several
files with an index, or a folder with one of these becomes a mapping name -> tensor, each read when it is asked for.
Nothing in a file runs. What a file is follows from its first bytes, what a tensor is from its name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib.files.pickled import read_tensors

INDEX = ".index.json"
FILES = (
    "model.safetensors", "model.safetensors" + INDEX, "open_clip_model.safetensors", "finetuned.pt",
    "pytorch_model.bin", "pytorch_model.bin" + INDEX, "open_clip_pytorch_model.bin",
)  # fmt: skip
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl")
BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # of a training, no weights
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Last or any parts of names. Buffers that follow from the architecture; layers that a task has for itself; layers that
# architectures tie, so that some files hold them once and others under each name.
NO_PARAMETER = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|relative_position_index|total_(ops|params))$")
HEAD = re.compile(r"^(heads?|head_dist|fc|classifier|classification_head|score|last_linear)\.")
TIED = re.compile(r"(^|\.)(shared|embed_tokens|lm_head|wte|word_embeddings|embed_out|predictions\.decoder)\.weight$")
EMA = re.compile(r"(^|[._])(ema|teacher)([._]|$)")
SHOWN = 10
Value = TypeVar("Value")


class OnDemand(Mapping[str, Value]):
    """Values by name, each read anew when asked for: kept, all of them would take too much memory."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Value]) -> None:
        self.names, self.read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Value:
        """Read a value."""
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is one, without reading it."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)


class Weights(OnDemand[Tensor]):
    """Name -> tensor on the CPU.

    Attributes:
        place: where they lie.
        like: name -> a tensor of the same shape and type without numbers, on the device "meta".
    """

    def __init__(self, place: Path, like: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        super().__init__(like, read)
        self.place, self.like = place, {name: tensor.to("meta") for name, tensor in like.items()}

    @classmethod
    def of(cls, place: Path, tensors: Mapping[str, Tensor]) -> Weights:
        """Tensors that are in memory, or mapped."""
        return cls(place, tensors, tensors.__getitem__)

    def below(self, prefix: str) -> Weights:
        """What has a prefix, without it."""
        names = {name.removeprefix(prefix): like for name, like in self.like.items() if name.startswith(prefix)}
        return Weights(self.place, names, lambda name: self.read(prefix + name))


say = cache(partial(print, flush=True))  # a line, once in a process: what is read is read more than once


def find_file(place: Path) -> Path:
    """The file with weights that a path stands for: itself, or one in the folder.

    Raises:
        ValueError: if there is none, or it is not clear which.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise ValueError(f"no file {place}: check the path, or copy it there")
    named = [place / name for name in FILES if (place / name).is_file()]
    found = named[:1] or [path for path in sorted(place.iterdir()) if path.suffix in SUFFIXES]
    found = [path for path in found if not path.name.startswith(BESIDE)]
    if len(found) != 1:
        there = ", ".join(path.name for path in found[:SHOWN]) or "none"
        raise ValueError(f"{place}: expected one file with weights, such as {FILES[0]} (found: {there}); name the file")
    return found[0]


def read_weights(place: str | Path) -> Weights:
    """Open the weights in a file, or in a folder; names, shapes and types are read now, numbers later.

    Raises:
        ValueError: if there are none, a file is damaged, or one that the index names is missing.
    """
    path = find_file(Path(place).expanduser())
    if not path.name.endswith(INDEX):
        return _of_file(path)
    try:
        names = json.loads(path.read_text("utf-8"))["weight_map"]
        files = {name: path.parent / names[name] for name in names}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no index of weights ({type(error).__name__}); download it again") from None
    parts = {file: _of_file(file) for file in dict.fromkeys(files.values())}
    if absent := [name for name, file in files.items() if name not in parts[file].like]:
        raise ValueError(f"{path} names '{absent[0]}', which {files[absent[0]].name} lacks; download both again")
    like = {name: parts[file].like[name] for name, file in files.items()}
    return Weights(path, like, lambda name: parts[files[name]][name])


def _of_file(path: Path) -> Weights:
    with find_file(path).open("rb") as file:
        head = file.read(100)
    for start, what in ((b"version https://git-lfs", "a pointer of git-lfs: run `git lfs pull` in its folder"),
                        (b"<", "a web page and no weights: download it again")):  # fmt: skip
        if head.lstrip().startswith(start) and head[8:9] != b"{":
            raise ValueError(f"{path} cannot be read: it is {what}")
    if head and head[8:9] != b"{" and path.suffix != ".safetensors":
        return Weights.of(path, read_tensors(path))
    with _opened(path) as file:
        like = {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118 - not a dict
    return Weights(path, like, lambda name: _layer(path, name))


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = "it is empty" if path.is_file() and not path.stat().st_size else str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a complete safetensors file ({what}): download or convert it again") from None


def _layer(path: Path, name: str) -> Tensor:
    """One tensor, mapped: the file's pages count as this process's only as long as it lives."""
    with _opened(path) as file:
        return file.get_tensor(name)


def prefix_of(weights: Weights, wanted: Collection[str]) -> tuple[str, int]:
    """What stands before the wanted names where most of them are ("module.", "state_dict.", ...), and of how many.

    Raises:
        ValueError: if two models in one file have equally many; averaged and teachers' weights are left out for others.
    """
    counts: Counter[str] = Counter()
    for name in weights:
        cuts = [0, *(place.end() for place in re.finditer(r"\.", name))]
        counts.update(name[:cut] for cut in cuts if name[cut:] in wanted)
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most] or [""]
    best = [""] if "" in best else [prefix for prefix in best if not EMA.search(prefix)] or best
    if len(best) > 1:
        many = f"it holds {len(best)} models ({', '.join(best[:SHOWN])})"
        raise ValueError(f"{weights.place}: {many}: save the one that is meant")
    return best[0], most


def fit(weights: Weights, start: Mapping[str, Tensor], sources: Mapping[str, tuple[str, ...]] | None = None) -> Weights:
    """The weights of one model under the names of another, which it must be a copy or a fine-tune of.

    Prefixes that all names have, heads, buffers that are no parameters and other models in the file are left off, and
    that is said. A tied layer may be there once or several times.

    Args:
        weights: as they were read.
        start: the other model: name -> tensor. What is not floating-point need not be there.
        sources: name -> the names of which it is made there (several are stacked); by default the same name.

    Raises:
        ValueError: if layers are missing, unknown, or of another shape or type: lists up to ten of each, and why.
    """
    like = start.like if isinstance(start, Weights) else start
    sources = sources or {name: (name,) for name in start}
    used = {part for parts in sources.values() for part in parts}
    prefix, _ = prefix_of(weights, used)
    given = weights.below(prefix)
    kept = {name for name in sources if like[name].is_floating_point() or set(sources[name]) <= given.like.keys()}
    parts = {name: own for name, own in sources.items() if name in kept and not NO_PARAMETER.search(name)}
    parts |= _tied(parts, given, start)
    missing = [part for own in parts.values() for part in own if part not in given]
    extra = [name for name, own in given.like.items() if name not in used and own.is_floating_point()]
    heads = [name for name in extra if HEAD.search(name)]
    extra = [name for name in extra if name not in heads and not NO_PARAMETER.search(name)]
    extra = [name for name in extra if not _alias(name, used, given)]
    whole = {name: own for name, own in parts.items() if not set(own) & set(missing)}
    other = [text for name, own in whole.items() if (text := _unlike(name, own, given, like[name]))]
    if missing or extra or other:
        raise ValueError(f"{weights.place}: {_differences(missing, extra, other, len(used))}")
    outside = sorted({name.split(".")[0] for name in weights if not name.startswith(prefix)} - {prefix.split(".")[0]})
    if prefix or heads:
        words = [f"'{prefix}' left off the names"] * bool(prefix)
        words += [f"not merged: {', '.join([*outside, *heads][:SHOWN])}"] * bool(outside or heads)
        say(f"{weights.place.name}: {'; '.join(words)}")

    def read(name: str) -> Tensor:
        tensors = [given[part] for part in parts[name]]
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    kinds = {name: given.like[own[0]].dtype for name, own in parts.items()}
    stored = {name: torch.empty_like(like[name], device="meta", dtype=kind) for name, kind in kinds.items()}
    return Weights(weights.place, stored, read)


def _tied(parts: Mapping[str, tuple], given: Weights, start: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each layer that is not there: another that the pre-trained model has tied to it."""
    found = {}
    for name in (name for name in parts if TIED.search(name) and not set(parts[name]) & given.like.keys()):
        same = (own for own in parts if own != name and TIED.search(own) and set(parts[own]) <= given.like.keys())
        if twin := next((own for own in same if torch.equal(start[name], start[own])), None):
            found[name] = parts[twin]
    return found


def _alias(name: str, used: Collection[str], given: Weights) -> bool:
    """Whether a further layer is a bit-equal copy of one that is used."""
    twins = (own for own in used if TIED.search(name) and TIED.search(own) and own in given)
    same = any(torch.equal(given[name], given[own]) for own in twins)
    if same:
        say(f"{given.place.name}: '{name}' is tied, and left out")
    return same


def _unlike(name: str, parts: tuple[str, ...], given: Weights, like: Tensor) -> str:
    """How a layer's shape or type differs from what it must be, or ""."""
    own = [given.like[part] for part in parts]
    if len({part.shape for part in own}) > 1:
        return f"layers {', '.join(parts)} differ in shape"
    shape = [len(own) * own[0].shape[0], *own[0].shape[1:]] if len(own) > 1 else list(own[0].shape)
    if shape != list(like.shape):
        return f"layer '{name}' has shape {shape}, expected {list(like.shape)}"
    if odd := [part.dtype for part in own if like.is_floating_point() and part.dtype not in FLOATING]:
        return f"layer '{name}' is stored as {odd[0]}, which cannot be merged"
    return ""


def _differences(missing: list[str], extra: list[str], other: list[str], wanted: int) -> str:
    """One sentence on all that does not fit, with the likely reason."""
    if 2 * len(missing) > wanted:
        why = "other names, or another architecture"
    elif tied := [name for name in extra if TIED.search(name)]:
        why = f"'{tied[0]}' is no copy of a layer that it could be tied to"
    else:
        why = "was it made for another model?" if extra else "another size of the model?"
    missing, extra = ([f"'{name}'" for name in names] for names in (missing, extra))
    ends = ((missing, " missing"), (extra, " not part of the pre-trained model"), (other, ""))
    texts = [_listed(names) + (end and (" is" if len(names) == 1 else " are") + end) for names, end in ends if names]
    return f"{'; '.join(texts)} ({why})"


def _listed(names: list[str]) -> str:
    kind = "" if names[0].startswith("layer") else "layer " if len(names) == 1 else "layers "
    return kind + ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

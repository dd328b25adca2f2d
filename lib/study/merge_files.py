"""Merging models of any architecture from files, without data: one layer of all experts in memory at a time.

Everything that merges without data works on one layer as on all of them, but for Ties-Merging and DARE, which look at
the whole vector: for these all task vectors are in memory. Every layer is computed in float32, or in float64 if it is
stored so, and rounded once. When the process is killed, finished shards stay; the same call goes on behind them.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lib.files.experts import FAR
from lib.files.weights import FLOATING, HEAD, INDEX, NO_PARAMETER, Weights, find_file, fit, prefix_of, read_weights
from lib.fusion import METHODS
from lib.runtime.disk import atomic_path
from lib.runtime.memory import free_memory
from lib.runtime.progress import progress
from lib.study.card import CARD, hash_of, model_card, new_folder, refuse_full
from lib.vectors.layout import Layout
from lib.vectors.mapped import in_words

AROUND = re.compile(r"((model_)?state_dict\.|module\.|_orig_mod\.)+")  # what training puts before a model's names
TYPES = {"same": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE = ("ties_merging", "dare")  # the methods that look at all layers at once
SHARD = 2 << 30  # bytes of a file; finished ones stay when the process is killed
ADAPTER = "adapter_config.json"
STATISTIC = re.compile(r"(^|\.)running_(mean|var)$")  # of BatchNorm
BESIDE = (".json", ".txt", ".model", ".jinja")  # beside a model's weights: configuration, tokenizer


def merge_files(
    base: Path,
    experts: Mapping[str, Path],
    out: Path,
    *,
    method: str = "tsv_m",
    dtype: str = "same",
    about: Mapping[str, object] | None = None,
    **hyperparameters: float,
) -> Path:
    """Merge experts from files into a new folder of the pre-trained model's form: names, types, other files.

    The base's floating-point entries are merged; its other entries, buffers that are no parameters, and parts that no
    expert has (such as a text tower, or a classifier of so many classes) are copied. BatchNorm's running statistics are
    averaged: no method is made for them, and a scaled sum may be a negative variance. Adapters of peft are merged into
    the base by peft first; if there are some and the merged change has low rank, one adapter is written.

    Args:
        base: the pre-trained model: a file or folder that `lib.files.weights` can read.
        experts: name -> the same of each fine-tuned model, or a folder of peft.
        out: a new folder.
        method: a name from `lib.fusion.METHODS` that needs no data.
        dtype: a key of `TYPES`: what merged layers are rounded to; "same" is each layer's own type in the base.
        about: further facts for the card.
        hyperparameters: of the method, such as scaling_factor=0.5.

    Raises:
        ValueError: for a method that needs data, a file in two roles, too little memory, or what does not fit.
    """
    _check(method, hyperparameters)
    refuse_full(out)
    start, model = _bare(read_weights(base)), _peft_base(base, experts)
    found = [_expert(path, start, model) for path in experts.values()]
    places = [start.place.resolve(), *(own.place.resolve() for own in found)]
    if len(set(places)) < len(places):
        raise ValueError("the base and the experts must be different files; leave the base out of the experts")
    names = _merged_names(start, found)
    plain = Weights(start.place, {name: start.like[name] for name in names}, start.read)
    fitted = dict(zip(experts, (fit(own, plain) for own in found), strict=True))
    if notes := _notes(plain, fitted):
        print(*notes, sep="\n")
    _check_memory(plain, len(fitted), method)
    hashes, own = {name: hash_of(path) for name, path in experts.items()}, hash_of(base)
    if same := [name for name, found in hashes.items() if found == own]:
        raise ValueError(f"expert '{same[0]}' is a copy of the base: was the fine-tuned one saved?")
    told = {
        "base": str(base), "base's sha256": own,
        "experts": {name: f"`{path.name}` sha256 {hashes[name]}" for name, path in experts.items()},
        "method": METHODS[method].name, **hyperparameters, "paper": METHODS[method].paper,
        "dtype": dtype, **(about or {}),
    }  # fmt: skip
    merged = _layers(plain, fitted, method, hyperparameters, dtype)
    exact = _layers(plain, fitted, method, hyperparameters, "fp32")  # rounded to less, the change has no low rank
    if model is not None and _write_adapter(plain, exact, told, base, out):
        return out
    part = _part(out, told)
    try:
        _write_weights(start, plain, merged, part)
    except ValueError:  # of wrong inputs nothing is of use
        shutil.rmtree(part)
        raise
    for path in base.iterdir() if base.is_dir() else ():
        if path.is_file() and path.suffix in BESIDE and not path.name.endswith(INDEX):
            shutil.copyfile(path, part / path.name)
    (part / CARD).write_text(model_card(told, notes=notes), encoding="utf-8")
    (part / "plan.json").unlink()
    if out.is_dir():
        out.rmdir()
    return part.rename(out)


def _check(method: str, hyperparameters: Mapping[str, float]) -> None:
    known = [name for name, own in METHODS.items() if not own.needs_data]
    if method not in known:
        raise ValueError(f"method '{method}' cannot merge files alone; these can: {', '.join(known)}")
    if odd := [name for name, value in hyperparameters.items() if not math.isfinite(value)]:
        raise ValueError(f"{odd[0]} is {hyperparameters[odd[0]]}, expected a finite number such as 0.3")


def _bare(weights: Weights) -> Weights:
    """Weights without what training puts around the names of a whole model."""
    floating = [name for name, own in weights.like.items() if own.is_floating_point()]
    around = AROUND.match(min(floating, default=""))
    return weights.below(around[0]) if around and all(name.startswith(around[0]) for name in floating) else weights


def _peft_base(base: Path, experts: Mapping[str, Path]) -> torch.nn.Module | None:
    """The pre-trained model as transformers builds it, if an expert is an adapter that must be merged into it."""
    if not any((path / ADAPTER).is_file() for path in experts.values()):
        return None
    import transformers  # here, not above: only adapters need it

    try:
        (name,) = json.loads((base / "config.json").read_text("utf-8"))["architectures"]
        return getattr(transformers, name).from_pretrained(base, dtype=torch.float32)
    except (OSError, ValueError, KeyError, AttributeError, NotADirectoryError):
        raise ValueError(f"adapters need a base that is a folder of transformers (config.json): {base}") from None


def _expert(place: Path, start: Weights, model: torch.nn.Module | None) -> Weights:
    """An expert's weights; of an adapter, what peft makes of it."""
    if not (place / ADAPTER).is_file():
        return read_weights(place)
    from lib.language.lora import merged_weights  # here, not above: peft takes long

    changed = merged_weights(place, model)
    if odd := [name for name in changed if name not in start]:
        raise ValueError(f"expert {place} changes '{odd[0]}', which {start.place} does not hold under this name")
    return Weights(place, start.like, lambda name: changed[name] if name in changed else start[name])


def _merged_names(start: Weights, found: Sequence[Weights]) -> list[str]:
    """The base's layers that are merged: floating-point ones of those top-level parts that an expert has."""
    names = [name for name, own in start.like.items() if own.is_floating_point() and not NO_PARAMETER.search(name)]
    if not names:
        raise ValueError(f"{start.place} has no floating-point entry: nothing to merge")
    if odd := [name for name in names if start.like[name].dtype not in FLOATING]:
        raise ValueError(f"{start.place}: '{odd[0]}' is stored as {start.like[odd[0]].dtype}: dequantise it first")
    bare, heads = [own.below(prefix_of(own, start)[0]).like for own in found], [*filter(HEAD.search, names)]
    if odd := {n for n in heads for own in bare if n not in own or own[n].shape != start.like[n].shape}:
        print(f"not all experts have {', '.join(sorted(odd))} of the base's shape: copied from the base")
        names = [name for name in names if name not in odd]
    parts = {name.partition(".")[0] for own in bare for name in own}
    absent = sorted({name.partition(".")[0] for name in names} - parts)
    kept = [name for name in names if name.partition(".")[0] not in absent]
    if absent and kept:
        print(f"no expert has {', '.join(absent)}: copied from the base")
    return kept or names


def _notes(start: Weights, experts: Mapping[str, Weights]) -> list[str]:
    """What a user should know: experts in a lower precision or of another base, statistics that are estimated."""
    notes, largest = [], max(start, key=lambda name: start.like[name].numel())
    theta0 = start[largest].float()
    for name, own in experts.items():
        for kind in {own.like[n].dtype for n, there in start.like.items() if own.like[n].itemsize < there.itemsize}:
            rounding = f"its rounding (a relative {torch.finfo(kind).eps / 2:.1g}) is merged"
            notes.append(f"expert '{name}' is stored as {str(kind)[6:]}, the base is not: {rounding}")
        if (share := ((own[largest].float() - theta0).norm() / theta0.norm()).item()) > FAR:
            far = f"'{largest}' differs from the base's by {share:.0%} of its length"
            notes.append(f"expert '{name}': {far}: was it fine-tuned from this base?")
    averaged = "BatchNorm's running statistics are the experts' mean: estimate them anew on images before use"
    return notes + [averaged] * any(STATISTIC.search(name) for name in start)


def _check_memory(start: Weights, tasks: int, method: str) -> None:
    """Say what is needed before anything is read, and stop if it is not there."""
    sizes = [own.numel() for own in start.like.values()]
    largest = sum(sizes) if method in WHOLE else max(sizes)
    need, free = 4 * largest * (3 * tasks + 4) + min(SHARD, 4 * sum(sizes)), free_memory()
    print(f"{len(sizes)} layers, {sum(sizes):,} parameters, {tasks} experts: at most {in_words(need)} of memory")
    if need > free:
        mend = "a method that works layer by layer, such as tsv_m" if method in WHOLE else "a larger machine"
        raise ValueError(f"merging needs {in_words(need)} of memory and {in_words(free)} are free: take {mend}")


def _layers(
    start: Weights, experts: Mapping[str, Weights], method: str, hyperparameters: Mapping[str, float], dtype: str
) -> Weights:
    """The merged layers, each computed when it is asked for."""
    kinds = {name: TYPES[dtype] or own.dtype for name, own in start.like.items()}
    like = {name: own.to(kinds[name]) for name, own in start.like.items()}
    done: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if not like[name].numel():
            return start[name].to(kinds[name])
        if name not in done:
            by, given = ("weight_averaging", {}) if STATISTIC.search(name) else (method, hyperparameters)
            rest = (own for own, layer in like.items() if layer.numel() and not STATISTIC.search(own))
            done.update(_merge(start, experts, [*rest] if by in WHOLE else [name], METHODS[by].merge, given))
        layer = done.pop(name).to(kinds[name])
        if not torch.isfinite(layer).all():
            mend = "use dtype fp32" if layer.itemsize < 4 else "take a smaller scaling factor"
            raise ValueError(f"merged layer '{name}' has numbers that {layer.dtype} cannot hold: {mend}")
        return layer

    return Weights(start.place, like, read)


def _merge(
    start: Weights, experts: Mapping[str, Weights], names: Sequence[str], merge: object, given: Mapping[str, float]
) -> dict[str, Tensor]:
    """Merge some layers of all experts."""
    kind = torch.float64 if any(start.like[name].dtype == torch.float64 for name in names) else torch.float32
    layout = Layout(tuple(names), tuple(tuple(start.like[name].shape) for name in names))

    def flat(weights: Weights) -> Tensor:
        try:
            given = {name: weights[name].to(kind) for name in names}
            return layout.flatten(given, torch.zeros(layout.length, dtype=kind))
        except ValueError as error:
            raise ValueError(f"{weights.place}: {error}") from None

    theta0 = flat(start)
    vectors = torch.stack([flat(own) - theta0 for own in experts.values()])
    return layout.views(merge(theta0, vectors, layout, **given))


def _write_adapter(start: Weights, merged: Weights, told: Mapping[str, object], base: Path, out: Path) -> bool:
    """Write the change as one adapter, if it has low rank."""
    from lib.language.export import low_rank, write_adapter  # here, not above: peft takes long

    if factors := low_rank(start, merged):
        with new_folder(out) as folder:
            write_adapter(factors, str(base), folder)
            (folder / CARD).write_text(model_card(dict(told) | {"library": "peft"}), encoding="utf-8")
    return bool(factors)


def _part(out: Path, told: Mapping[str, object]) -> Path:
    """The folder beside `out` where a merge of exactly this is prepared; finished shards may be there already."""
    part, plan = out.with_name(f".{out.name}.part"), json.dumps(told, default=str)
    if part.is_dir() and (not (part / "plan.json").is_file() or (part / "plan.json").read_text("utf-8") != plan):
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    for left in part.glob(".*"):  # by `atomic_path`, when the process was killed
        left.unlink()
    (part / "plan.json").write_text(plan, encoding="utf-8")
    return part


def _write_weights(start: Weights, plain: Weights, merged: Weights, part: Path) -> None:
    """Write all entries of the base, merged or copied, as the base's own file is called."""
    size = {name: (merged.like if name in merged else start.like)[name].nbytes for name in start}
    shards, room = [[]], SHARD
    for name in start:
        if shards[-1] and size[name] > room:
            shards, room = [*shards, []], SHARD
        shards[-1].append(name)
        room -= size[name]
    stem = find_file(start.place).name.removesuffix(INDEX)
    hub = (start.place.parent / "config.json").exists()
    pickled = not hub and not start.place.name.endswith((".safetensors", INDEX))
    stem = stem.removesuffix(".safetensors") if stem.endswith(".safetensors") else "model"
    files = [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = [f"{stem}.safetensors"] if len(shards) == 1 else files
    for names, file in zip(shards, files, strict=True):
        if (part / file).is_file():
            continue
        bar = progress(names, f"merging into {file}")
        tensors = {name: (merged[name] if name in merged else start[name]).clone().contiguous() for name in bar}
        try:
            if pickled and len(shards) == 1:  # first, since a finished file of safetensors is not gone into again
                with atomic_path(part / f"{stem}.pth") as temporary:
                    torch.save(tensors, temporary)
            with atomic_path(part / file) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})
        except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
            raise OSError(f"{part / file} cannot be written ({error}): make room, and call the same again") from None
    if len(shards) > 1:
        where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": where}
        (part / f"{stem}.safetensors{INDEX}").write_text(json.dumps(index, indent=1), encoding="utf-8")

"""What a study reads that is not shipped with it: real sets and finished experts, told apart by their files' content.

It is noted in `about.json`, and a short hash of it is part of the label under which results are filed, so that other
data or other experts never overwrite the tables of the first. The Snakefile asks for labels, too: no torch and no
pandas here.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.files.folders import names_in, place_of
from lib.files.lineages import path_of, pattern_of
from lib.files.sets import IMAGES, Source
from lib.study.profiles import LanguageProfile, Profile

DATA = "+data="  # what the hash follows in a label
ADDED = ("+precision=", "+device=", DATA)  # what follows the profile's own label, in this order
# So little is read whole, and so are tables of text, where a corrected label has the length of the wrong one. Of other
# files the last bytes are read, an index or a layer, and times are looked at; of so many files times alone.
LITTLE, TAIL, MANY, TEXTS = 1 << 26, 1 << 16, 500, (".csv", ".tsv", ".json", ".jsonl")
TOLD = "data_root"  # noted, but no part of what identifies the inputs: a copy of a mirror is the same data


def fingerprint(place: Path) -> str:
    """A short hash of a file or of all files in a folder: names, sizes and content, or times where that is much."""
    files, total = {Path(name): Path(name).stat() for name in names_in(place)}, hashlib.sha256()
    little = len(files) <= MANY and sum(stat.st_size for stat in files.values()) <= LITTLE
    for path, stat in files.items():
        total.update(f"{path.relative_to(place)} {stat.st_size} ".encode())
        whole, known = little or path.suffix.lower() in TEXTS, (stat.st_size, stat.st_mtime_ns)
        total.update(b"" if whole else str(known).encode())
        total.update(_content(path, whole, *known) if whole or len(files) <= MANY else b"")
    return total.hexdigest()[:16]


@functools.lru_cache(10_000)  # asked for by every saved table
def _content(path: Path, whole: bool, size: int, time: int) -> bytes:
    with path.open("rb") as file:
        file.seek(0 if whole else max(0, size - TAIL))
        return hashlib.file_digest(file, "sha256").digest()


def local_sets(profile: Profile, data_root: str) -> dict[str, Path]:
    """The folder or archive below `data_root` of each task that has one there."""
    root = Path(data_root).expanduser() / ("glue" if isinstance(profile, LanguageProfile) else "")
    places = {task: place_of(root / task) for task in profile.task_names} if data_root else {}
    return {task: place for task, place in places.items() if place}


def experts_of(profile: Profile) -> dict[str, Path]:
    """Where each task's finished expert lies, here or (a path that does not exist) on the hub."""
    pattern = profile.adapters if isinstance(profile, LanguageProfile) else profile.experts
    if not pattern:
        return {}
    if not isinstance(profile, LanguageProfile):
        pattern = pattern_of(pattern, profile.model, profile.task_names)
    return {task: path_of(pattern, profile.lineage, task) for task in profile.task_names}


def chosen(profile: Profile, data_root: str = "") -> dict[str, str]:
    """The inputs that the user has chosen: fingerprints of local sets, experts and models, the name of one on the hub.

    Empty if `data_root` has none of the profile's tasks, and neither experts nor weights in a file are given.
    """
    sets = {task: fingerprint(place) for task, place in local_sets(profile, data_root).items()}
    experts = experts_of(profile).items()
    named = {task: fingerprint(place) if place.exists() else f"hub:{place}" for task, place in experts}
    weights = {field: Path(getattr(profile, field, "")).expanduser() for field in ("model", "pretrained")}
    files = {f"file of {field}": fingerprint(own) for field, own in weights.items() if own.name and own.exists()}
    return sets | {f"expert of {task}": told for task, told in named.items()} | files


def label_of(profile: Profile, data_root: str = "", *, precision: str = "auto", device: str = "auto") -> str:
    """Under which name results are filed: that of the profile, what was changed, and a hash of the chosen inputs.

    For example `tiny+mask_steps=50`, `tiny+precision=bf16` or `tiny-real+data=1a2b3c4d`. At most 100 bytes.
    """
    inputs = chosen(profile, data_root)
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    added = dict(zip(ADDED, (precision, device, digest if inputs else "auto"), strict=True))
    return profile.label + "".join(f"{name}{value}" for name, value in added.items() if value != "auto")


def without_data(label: str) -> str:
    """The label without the hash, the precision and the device: under that name tables are committed."""
    return min((label.partition(name)[0] for name in ADDED), key=len)


def inputs_of(profile: Profile, data_root: str = "") -> dict[str, object]:
    """All that identifies a study's inputs, for `about.json`: what is `chosen`, numbers of rows, revisions on the hub.

    A revision is known once something was downloaded.
    """
    found: dict[str, object] = {TOLD: data_root} if data_root else {}
    found |= chosen(profile, data_root)
    sets = [Source(task, place) for task, place in local_sets(profile, data_root).items()]
    found |= {f"rows of {own.name}": _rows(own, own.fingerprint) for own in sets if own.listed[0]}
    return found | dict(_revisions(profile, data_root))


@functools.lru_cache(64)
def _rows(source: Source, fingerprint: str) -> int:
    """How many rows or images a set has; of one that cannot be read it is said why."""
    kind, splits, *_ = source.listed
    paths = [path for own in splits.values() for path in own]
    if kind == "imagefolder":
        return sum(path.suffix.lower() in IMAGES for path in paths)
    from pyarrow import ArrowInvalid, parquet  # here, not above: the Snakefile does not need it

    try:
        return sum(parquet.read_metadata(path).num_rows for path in paths)
    except (ArrowInvalid, OSError):  # no parquet, or damaged, which `count` will name
        return sum(map(source.count, splits))


def _revisions(profile: Profile, data_root: str) -> Iterator[tuple[str, str]]:
    """The revisions of what was downloaded from the hub, by its name there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = [("models", str(place)) for place in experts_of(profile).values() if not place.exists()]
    if not data_root:
        names += [("datasets", hub) for hub in _hub_sets(profile)]
    for kind, name in names:
        ref = Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "refs" / "main"
        if ref.is_file():
            yield f"revision of {name}", ref.read_text().strip()


def _hub_sets(profile: Profile) -> Iterator[str]:
    """The hub's names of the tasks' sets."""
    if isinstance(profile, LanguageProfile):
        from lib.language.registry import GLUE, HUB

        if any(task in GLUE for task in profile.task_names):
            yield HUB
    else:
        from lib.vision.registry import REGISTRY

        known = {name: official.hub for name, official in REGISTRY.items()}
        yield from (known.get(task, task) for task in profile.task_names if task in known or "/" in task)


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """What differs between inputs, "'mnist' was 3f2a, is 77b0", or "" if nothing does that both know."""
    names = (name for name in old if name != TOLD and name in new and old[name] != new[name])
    return next((f"'{name}' was {old[name]}, is {new[name]}" for name in names), "")

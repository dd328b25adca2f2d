"""What a study reads that is not shipped with it: real sets and finished experts, told apart by their files' content.

It is noted in `about.json`, and a short hash of it is part of the label under which results are filed, so that other
data or other experts never overwrite the tables of the first. The Snakefile asks for labels, too: no torch and no
pandas here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.files.folders import names_in, place_of
from lib.files.lineages import path_of, pattern_of
from lib.study.profiles import LanguageProfile, Profile

DATA = "+data="  # what the hash follows in a label
ADDED = ("+precision=", "+device=", DATA)  # what follows the profile's own label, in this order
# Parquet files and zip archives end with an index of what they hold, safetensors with a layer: that of a corrected file
# is another one. With so many files that opening them takes long, they are images, and their sizes say enough.
TAIL, MANY = 1 << 16, 500
TOLD = "data_root"  # noted, but no part of what identifies the inputs: a copy of a mirror is the same data


def fingerprint(place: Path) -> str:
    """A short hash of a file or of all files in a folder: of their names, sizes and last bytes, not of their times."""
    files, total = [Path(name) for name in names_in(place)], hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(place)} {path.stat().st_size} ".encode())
        if len(files) <= MANY:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                total.update(file.read())
    return total.hexdigest()[:16]


def local_sets(profile: Profile, data_root: str) -> dict[str, Path]:
    """The folder or archive below `data_root` of each task that has one there."""
    root = Path(data_root).expanduser() / ("glue" if isinstance(profile, LanguageProfile) else "")
    places = {task: place_of(root / task) for task in profile.task_names} if data_root else {}
    return {task: place for task, place in places.items() if place}


def _experts(profile: Profile) -> dict[str, Path]:
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
    experts = _experts(profile).items()
    named = {task: fingerprint(place) if place.exists() else f"hub:{place}" for task, place in experts}
    weights = {field: Path(getattr(profile, field, "")).expanduser() for field in ("model", "pretrained")}
    files = {
        f"file of {field}": fingerprint(place) for field, place in weights.items() if place.name and place.exists()
    }
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
    import pyarrow.parquet as parquet  # here, not above: the Snakefile does not need it

    found: dict[str, object] = {TOLD: data_root} if data_root else {}
    found |= chosen(profile, data_root)
    for task, place in local_sets(profile, data_root).items():
        tables = [name for name in names_in(place) if name.endswith(".parquet")]
        if tables:
            found[f"rows of {task}"] = sum(parquet.read_metadata(name).num_rows for name in tables)
    return found | dict(_revisions(profile, data_root))


def _revisions(profile: Profile, data_root: str) -> Iterator[tuple[str, str]]:
    """The revisions of what was downloaded from the hub, by its name there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = [("models", str(place)) for place in _experts(profile).values() if not place.exists()]
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

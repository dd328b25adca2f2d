"""Whose fine-tuning the experts come from: tables of names, and the rule that two lineages never stand in one table.

The paper's CLIP experts exist twice, fine-tuned by different people with different recipes. A difference between a
method on the one and a method on the other can be one between the experts, so a saved table says which they are.

- "own": fine-tuned here.
- "task-vectors": the original checkpoints (https://github.com/mlfoundations/task_vectors), pickled modules of
  open_clip, `<model>/<Set>/finetuned.pt`.
- "hugging-face": trained again for FusionBench (https://github.com/tanganke/fusion_bench, config/model/clip-vit), one
  repository with a `CLIPVisionModel` per model and task on the Hugging Face hub; adapters of Flan-T5 by the same are
  "lora-16", after their rank.
- "given": anybody's. Nothing is published on them.

Names decide, as files do not say it: `finetuned.pt`, and `tanganke/clip-vit-` or `tanganke/flan-t5-` in the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OWN, TASK_VECTORS, HUGGING_FACE, GIVEN = "own", "task-vectors", "hugging-face", "given"
COLUMN = "lineage"
# The hub's repositories; fine-tuned from openai/clip-vit-base-patch32, -base-patch16 and -large-patch14, which have the
# weights that open_clip calls "openai".
HUB = {
    "ViT-B-32": "tanganke/clip-vit-base-patch32_{task}",
    "ViT-B-16": "tanganke/clip-vit-base-patch16_{task}",
    "ViT-L-14": "tanganke/clip-vit-large-patch14_{task}",
}
# What each lineage calls the paper's sets; a task that is not named here has one name everywhere.
NAMES = {
    HUGGING_FACE: {"stanford_cars": "stanford-cars"},
    TASK_VECTORS: {
        "sun397": "SUN397",
        "stanford_cars": "Cars",
        "resisc45": "RESISC45",
        "eurosat": "EuroSAT",
        "svhn": "SVHN",
        "gtsrb": "GTSRB",
        "mnist": "MNIST",
        "dtd": "DTD",
    },
}
PICKLED = (".pt", ".pth", ".pkl")
ORIGINAL = "finetuned.pt"  # how the original checkpoints are called
PUBLISHED = re.compile(r"(^|/|--)tanganke(/|--)(clip-vit|flan-t5)-")  # on the hub, in its cache or in a mirror of it


def pattern_of(experts: str, model: str, tasks: Collection[str]) -> str:
    """The pattern that a profile's `experts` stands for: itself, or that of the repositories of "hugging-face".

    Raises:
        ValueError: if it is no pattern for them, or the lineage has no experts of that model.
    """
    if experts == HUGGING_FACE:
        name = model.removesuffix("-quickgelu")
        if name not in HUB:
            raise ValueError(f"no experts of model '{model}' on the hub; known: {', '.join(HUB)}")
        return HUB[name]
    return check_pattern("experts", experts, tasks, f"'', '{HUGGING_FACE}', or ")


def check_pattern(parameter: str, pattern: str, tasks: Collection[str], others: str = "") -> str:
    """Only {task} stands for something in a pattern, and several tasks need it: they have no expert in common.

    Raises:
        ValueError: if it is otherwise.
    """
    odd = re.findall(r"\{[^{}]*\}|[{}]", pattern.replace("{task}", ""))
    if odd or ("{task}" not in pattern and len(tasks) > 1):
        raise ValueError(
            f"parameter '{parameter}' is '{pattern}', expected {others}a folder, file or name on the hub "
            f"with {{task}} in it, such as ~/checkpoints/{{task}}{f', but no {odd[0]}' if odd else ''}"
        )
    return pattern


def lineage_of(experts: str, tasks: Iterable[str]) -> str:
    """The lineage of a profile's experts: read off the name or, of a folder, off the file that lies in it.

    Args:
        experts: as in the profile.
        tasks: names of the tasks.
    """
    if not experts or experts == HUGGING_FACE or PUBLISHED.search(experts):
        return HUGGING_FACE if experts else OWN
    places = (path_of(experts, TASK_VECTORS, task) for task in tasks)
    return TASK_VECTORS if any(place.name == ORIGINAL or (place / ORIGINAL).is_file() for place in places) else GIVEN


def name_of(task: str, lineage: str) -> str:
    """What a lineage calls a task."""
    return NAMES.get(lineage, {}).get(task, task)


def path_of(pattern: str, lineage: str, task: str) -> Path:
    """The place of a task's expert, as a path on this machine: under the lineage's name of the task, or another."""
    names = dict.fromkeys([name_of(task, lineage), task, *(known.get(task, task) for known in NAMES.values())])
    places = [Path(pattern.replace("{task}", name)).expanduser() for name in names]
    return next((place for place in places if place.exists()), places[0])


def locate(parameter: str, pattern: str, lineage: str, task: str) -> Path | str:
    """Where a task's expert lies: a path on this machine, or a name on the hub.

    Raises:
        ValueError: if it is neither; names what was looked for.
    """
    place = path_of(pattern, lineage, task)
    if place.exists():
        return place
    if pattern.startswith(("/", ".", "~")) or pattern.count("/") != 1 or pattern.endswith(PICKLED):
        raise ValueError(
            f"no expert of '{task}' at {place}: put it there, or set {parameter} to where it is (a name on the hub has "
            "exactly one /)"
        )
    return str(place)


def one_lineage(*tables: pd.DataFrame) -> str:
    """The lineage of all rows of some tables; a table without the column, or a row without an entry, is "own".

    Raises:
        ValueError: if there are several.
    """
    columns = (table[COLUMN].fillna(OWN) if COLUMN in table else [OWN] * len(table) for table in tables)
    found = set(chain(*columns))
    if len(found) > 1:
        names = " and ".join(f"'{name}'" for name in sorted(found))
        raise ValueError(
            f"experts of the lineages {names} stand in one table: a difference between them is no difference between "
            "methods; choose the rows of one"
        )
    return found.pop() if found else OWN


def tagged(table: pd.DataFrame, lineage: str) -> pd.DataFrame:
    """The table with its lineage as last column.

    A table of own experts stays as it is, and one that already has the column is checked instead.

    Raises:
        ValueError: if the table holds another lineage.
    """
    if COLUMN in table and lineage != OWN:
        one_lineage(table, table.assign(**{COLUMN: lineage}))
    return table if lineage == OWN or COLUMN in table else table.assign(**{COLUMN: lineage})

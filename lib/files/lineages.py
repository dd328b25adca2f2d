"""Whose fine-tuning the experts come from: tables of names, and the rule that two lineages never stand in one table.

The paper's CLIP experts exist twice, fine-tuned by different people with different recipes. A difference between a
method on the one and a method on the other can be one between the experts, so a saved table says which they are.

- "own": fine-tuned here.
- "task-vectors": the original checkpoints (https://github.com/mlfoundations/task_vectors), pickled modules of
  open_clip, `<model>/<Set>/finetuned.pt`.
- "hugging-face": trained again for FusionBench (https://github.com/tanganke/fusion_bench, config/model/clip-vit), one
  repository with a `CLIPVisionModel` per model and task on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OWN, TASK_VECTORS, HUGGING_FACE = "own", "task-vectors", "hugging-face"
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
FILES = {HUGGING_FACE: ("model.safetensors", "pytorch_model.bin"), TASK_VECTORS: ("finetuned.pt",)}


def pattern_of(experts: str, model: str) -> str:
    """The pattern that a profile's `experts` stands for, with {task} in it.

    Args:
        experts: a pattern, or "hugging-face" for that lineage's repositories.
        model: the profile's model, which they must be experts of.

    Raises:
        ValueError: if there is no {task} in it, or the lineage has no experts of that model.
    """
    if experts == HUGGING_FACE:
        name = model.removesuffix("-quickgelu")
        if name not in HUB:
            raise ValueError(f"no experts of model '{model}' on the hub; known: {', '.join(HUB)}")
        return HUB[name]
    if "{task}" not in experts:
        raise ValueError(
            f"parameter 'experts' is '{experts}', expected '', '{HUGGING_FACE}', or a folder, file or name on the hub "
            "with {task} in it, such as ~/checkpoints/ViT-B-32/{task}/finetuned.pt"
        )
    return experts


def lineage_of(experts: str, tasks: Iterable[str]) -> str:
    """The lineage of a profile's experts: read off the name or, of a folder, off the file that lies in it.

    Args:
        experts: as in the profile.
        tasks: names of the tasks.
    """
    if not experts:
        return OWN
    if experts.endswith(PICKLED):
        return TASK_VECTORS
    folders = (path_of(experts, TASK_VECTORS, task) for task in tasks)
    pickled = any((folder / name).is_file() for folder in folders for name in FILES[TASK_VECTORS])
    return TASK_VECTORS if pickled else HUGGING_FACE


def name_of(task: str, lineage: str) -> str:
    """What a lineage calls a task."""
    return NAMES[lineage].get(task, task)


def path_of(pattern: str, lineage: str, task: str) -> Path:
    """The place of a task's expert, as a path on this machine."""
    return Path(pattern.replace("{task}", name_of(task, lineage))).expanduser()


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

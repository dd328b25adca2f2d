"""Prompts and targets of the text tasks: four splits of each, drawn or from GLUE's files, checked on reading.

A GLUE task is a folder `<data_root>/glue/<config>/` with the parquet files of https://huggingface.co/datasets/nyu-mll/glue,
or the hub's own copy of it. GLUE's test files have no labels, so the labelled held-out file is cut into adaptation and
test halves, and validation is cut from the training file, from which every text of the held-out file is dropped first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet

from lib.files.sets import Contents, DataError, Source, download, readable
from lib.files.splits import choose_rows
from lib.language.registry import TextTask
from lib.vision.tasks import SPLITS

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Examples:
    """What a model is asked, and what it should answer, row by row."""

    prompts: tuple[str, ...]
    targets: tuple[str, ...]


def find_source(task: TextTask, data_root: str = "") -> Source:
    """Where a GLUE task's files lie: below `data_root` when that is given, else on the hub.

    Raises:
        DataError: if the folder does not exist, naming what is there, or the hub is out of reach.
    """
    if not data_root:
        return Source(task.name, download(HUB, task.glue, ("train", task.held_out)), HUB)
    root = Path(data_root).expanduser()
    folder = root / "glue" / task.glue
    if folder.is_dir():
        return Source(task.name, folder)
    mend = f"set data_root to the folder that holds glue/{task.glue}/train-*.parquet"
    if not root.is_dir():
        raise DataError(f"data_root {root} is not a folder; {mend}")
    nearest = folder.parent if folder.parent.is_dir() else root
    present = ", ".join(sorted(path.name for path in nearest.iterdir() if path.is_dir())) or "no folder"
    raise DataError(f"{folder} does not exist, {nearest} holds {present}; {mend}, or drop '{task.name}' from the tasks")


def note(task: TextTask, data_root: str = "") -> str:
    """One plain line when a task's files hold less than the official ones, else "".

    Raises:
        DataError: if the hub's copy differs from the official set at all, or a mirror has more rows than it.
    """
    return check_official(task, find_source(task, data_root)) if task.glue else ""


def check_official(task: TextTask, source: Source) -> str:
    """What `note` says about the files of a GLUE task, from their row counts alone."""
    train, test = (_count(source, file) for file in ("train", task.held_out))
    if (train, test) == (task.train, task.test):
        return ""
    share = f"{train:,} of {task.train:,} training and {test:,} of {task.test:,} held-out rows"
    if source.hub or train > task.train or test > task.test:
        raise DataError(f"{source} holds {share}, so it is not the official set; use a mirror of {HUB}")
    return f"{task.name}: a local subset, {share}; scores are not comparable with published ones"


def _count(source: Source, file: str) -> int:
    total = 0
    for path in source.files(file):
        with readable(path):
            total += parquet.read_metadata(path).num_rows
    return total


def read_rows(task: TextTask, source: Source, file: str) -> pd.DataFrame:
    """The text columns and the label of one of a GLUE task's files, in the file's order.

    Args:
        task: a task of `lib.language.registry.GLUE`.
        source: its files.
        file: "train", or the task's held-out file.

    Raises:
        DataError: for a file that cannot be read, a missing column, other classes than the official ones, a row
            without text and a label that is none of the task's.
    """
    for path in source.files(file):
        _check_columns(task, path)
    columns = {column: list(source.values(file, column)) for column in (*task.columns, "label")}
    for column in task.columns:
        for row, text in enumerate(columns[column]):
            if not isinstance(text, str) or not text.strip():
                place = source.row(file, row)
                raise DataError(f"{place}: column '{column}' holds no text ({text!r}); drop that row or mend its text")
    for row, label in enumerate(columns["label"]):
        try:
            task.target(label)
        except ValueError as error:
            mend = "drop that row or mend its label (-1 means no label, as in GLUE's test files)"
            raise DataError(f"{source.row(file, row)}: {error}; {mend}") from error
    return pd.DataFrame(columns)


def _check_columns(task: TextTask, path: Path) -> None:
    """Columns and, where the file says them, class names are those of the official set."""
    from datasets import Features  # here, not above: importing it takes long

    with readable(path):
        features = Features.from_arrow_schema(parquet.read_schema(path))
    for column in (*task.columns, "label"):
        if column not in features:
            raise DataError(
                f"{path} has no column '{column}'; its columns are {', '.join(features)}; rename the right one"
            )
    classes = tuple(getattr(features["label"], "names", None) or ())
    if classes and classes != task.classes:
        raise DataError(
            f"{path}: the classes of column 'label' are {', '.join(classes)}, those of {task.title} are "
            f"{', '.join(task.classes) or 'numbers'}, in this order; write the file anew with the official labels"
        )


def unseen(train: pd.DataFrame, held_out: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The rows of train whose text is not in the held-out file (CoLA, STS-B have some), each text once."""
    repeated = pd.concat([held_out, train]).duplicated(list(columns)).to_numpy()[len(held_out) :]
    return train[~repeated]


def load_examples(
    task: TextTask, split: str, *, sizes: Mapping[str, int], data_root: str = "", seed: int = 0
) -> Examples:
    """One split of a task as prompts and targets, shuffled.

    Args:
        task: from `lib.language.registry`.
        split: "train", "validation", "adaptation" or "test".
        sizes: split -> examples: how many are drawn, or at most taken from GLUE, each class by its share. Name all
            splits, not only the wanted one: the size of validation decides what is left for train.
        data_root: the folder that holds `glue/<config>/train-*.parquet`; "" reads from the hub. Drawn tasks need none.
        seed: of drawing, of halves and of subsets; leave it at 0 to compare seeds of training on the same texts.

    Raises:
        DataError: for a wrong split name, too few rows, and whatever is wrong with the files; see `read_rows`.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}'; the splits are {', '.join(SPLITS)}")
    rows = _from_files(task, split, sizes, data_root, seed) if task.glue else _drawn(task, split, sizes, seed)
    return Examples(
        prompts=tuple(task.prompt.format(**row) for row in rows),
        targets=tuple(task.target(row["label"]) for row in rows),
    )


def _drawn(task: TextTask, split: str, sizes: Mapping[str, int], seed: int) -> list[dict]:
    from worlds.text.drawn import draw  # here, not above: real text needs no drawing

    if not sizes.get(split):
        raise DataError(f"{task.name}: sizes names no number of texts to draw for split '{split}'")
    return draw(task.name, split, sizes[split], seed)


def _from_files(task: TextTask, split: str, sizes: Mapping[str, int], data_root: str, seed: int) -> list[dict]:
    source = find_source(task, data_root)
    check_official(task, source)
    file, rows = "test", read_rows(task, source, task.held_out)
    if split in ("train", "validation"):
        file, rows = "train", unseen(read_rows(task, source, "train"), rows, task.columns)
    strata = np.rint(rows["label"].to_numpy(dtype=float)).astype(np.int64)  # a class, or a grade to the nearest number
    chosen = choose_rows(Contents(task.words, {file: strata}), task.glue, split, sizes, seed)
    if not chosen.size:
        raise DataError(f"{source}: {len(rows)} usable rows are too few to make split '{split}'; add some")
    return rows.iloc[chosen].to_dict("records")

"""Prompts and targets of the text tasks: four splits of each, drawn or from GLUE's files, checked on reading.

A GLUE task is a folder `<data_root>/glue/<config>/` with the parquet files of https://huggingface.co/datasets/nyu-mll/glue,
or the hub's own copy of it. GLUE's test files have no labels, so the labelled held-out file is cut into adaptation and
test halves, and validation is cut from the training file, from which every text of the held-out file is dropped first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.files.sets import DataError, Source, compare, find_source
from lib.files.splits import SPLITS, choose_rows
from lib.language.registry import HUB, TextTask
from lib.runtime.keys import key_of


@dataclass(frozen=True)
class Examples:
    """What a model is asked, and what it should answer, row by row."""

    prompts: tuple[str, ...]
    targets: tuple[str, ...]

    def determines(self) -> dict[str, object]:
        """For keys: a hash of all texts, which are too long to be noted beside a result."""
        return {"texts": key_of({"prompts": self.prompts, "targets": self.targets})}


def find_files(task: TextTask, data_root: str = "") -> tuple[Source, str]:
    """Where a GLUE task's files lie, and one plain line if they hold less than the official ones, else "".

    Raises:
        DataError: if the folder does not exist, naming what is there; the hub is out of reach, or its copy differs from
            the official set at all; or a mirror has more rows than that.
    """
    source = find_source(task.name, data_root, [f"glue/{task.glue}"], HUB, ("train", task.held_out))
    found = [source.count(file) for file in ("train", task.held_out)]
    counts = {"training rows": (found[0], task.train), "held-out rows": (found[1], task.test)}
    return source, compare(source, counts, at_most=list(counts))


def note(task: TextTask, data_root: str = "") -> str:
    """What `find_files` says about a task's files; nothing about a drawn task."""
    return find_files(task, data_root)[1] if task.glue else ""


def read_rows(task: TextTask, source: Source, file: str) -> pd.DataFrame:
    """The text columns and the label of "train" or of the held-out file of a GLUE task, in the file's order.

    Raises:
        DataError: for a file that cannot be read, a missing column, other classes than the official ones, a row
            without text and a label that is none of the task's.
    """
    columns, rows = [*task.columns, "label"], []
    for part, features in source.features(file):
        if missing := [column for column in columns if column not in features]:
            raise DataError(f"{part} has no column '{missing[0]}'; its columns are {', '.join(features)}; rename it")
        classes = tuple(getattr(features["label"], "names", None) or ())
        if classes and classes != task.classes:
            raise DataError(
                f"{part}: the classes of column 'label' are {', '.join(classes)}, those of {task.title} are "
                f"{', '.join(task.classes) or 'numbers'}, in this order; write the file anew with the official labels"
            )
    for part, first, table in source.tables(file, columns):
        for number, row in enumerate(table.to_pylist(), first):
            try:
                for column in task.columns:
                    if not isinstance(row[column], str) or not row[column].strip():
                        raise ValueError(f"column '{column}' holds no text ({row[column]!r})")
                task.target(row["label"])
            except ValueError as error:
                advice = "drop that row or correct it (label -1 means no label, as in GLUE's test files)"
                raise DataError(f"{part}, row {number}: {error}; {advice}") from error
            rows.append(row)
    return pd.DataFrame(rows, columns=columns)


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
    source, _ = find_files(task, data_root)
    file, rows = "test", read_rows(task, source, task.held_out)
    if split in ("train", "validation"):
        file, rows = "train", unseen(read_rows(task, source, "train"), rows, task.columns)
    strata = np.rint(rows["label"].to_numpy(dtype=float)).astype(np.int64)  # a class, or a grade to the nearest number
    _, chosen = choose_rows({file: strata}, task.glue, split, sizes, seed)
    if not chosen.size:
        raise DataError(f"{source}: {len(rows)} usable rows are too few to make split '{split}'; add some")
    return rows.iloc[chosen].to_dict("records")

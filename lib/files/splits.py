"""Which rows of a real set's files make up each of the study's four splits.

Everything follows from names and a seed, so a split is the same on every machine, and no row is in two splits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lib.runtime.names import named_rng

SPLITS = ("train", "validation", "adaptation", "test")
VALIDATION_SHARE = 0.1  # of train, for sets without a validation split


def stratified_order(labels: np.ndarray, rng: np.random.Generator, first: str) -> np.ndarray:
    """An order of all rows in which every beginning holds the classes in proportion.

    Args:
        labels: int64 [N].
        rng: source of randomness, within classes and between equals.
        first: where a class's share starts: "all" classes come early (for a subset that should miss none),
            "common" ones do (for a part that should not take a rare class's only image), or "random".

    Returns:
        A permutation of 0..N-1, int64 [N].
    """
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shift = {"all": 0.0, "common": 1.0, "random": rng.random()}[first]
        rank[rng.permutation(rows)] = (np.arange(len(rows)) + shift) / len(rows)
    return np.lexsort((rng.random(len(labels)), rank))


def choose_rows(
    labels: Mapping[str, np.ndarray], name: str, split: str, sizes: Mapping[str, int], seed: int
) -> tuple[str, np.ndarray]:
    """Which rows of which file split make up a split.

    Args:
        labels: the set's labels, by file split, int64 [rows].
        name: its name, part of the seeds.
        split: "train", "validation", "adaptation" or "test".
        sizes: at most so many images per split, as many of each class as its share; a split that is not named has
            no limit. The limit of validation also says how much of train it takes when it has no files of its own.
        seed: another seed, another choice.

    Returns:
        The file split and its row numbers, int64 [N], shuffled; none of them when there are too few to share out.
    """
    file_split = "test" if split in ("adaptation", "test") else split if split in labels else "train"
    own = labels[file_split]
    rows = np.arange(len(own))
    if file_split == "train" and "validation" not in labels:
        order = stratified_order(own, named_rng(name, "validation from train", seed), "common")
        held_out = max(1, min(round(VALIDATION_SHARE * len(rows)), sizes.get("validation", len(rows))))
        rows = order[:held_out] if split == "validation" else order[held_out:]
    elif file_split == "test":
        order = stratified_order(own, named_rng(name, "halves of test", seed), "random")
        half = (len(rows) + 1) // 2
        rows = order[:half] if split == "adaptation" else order[half:]
    rng = named_rng(name, split, "subset", seed)
    rows = np.sort(rows)
    rows = rows[stratified_order(own[rows], rng, "all")][: sizes.get(split, len(rows))]
    return file_split, rng.permutation(rows)

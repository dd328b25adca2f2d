"""What a set of images holds: its columns of images and labels, the names of its classes, and what is odd about it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lib.files.sets import FILE_SPLITS, DataError, Source
from lib.files.splits import stratified_order
from lib.runtime.names import named_rng

if TYPE_CHECKING:
    from datasets import Features

# Of images and of labels: usual names of columns, and types that can hold them beside their own.
USUAL = ("image", "img", "file_name", "path"), ("label", "labels", "class", "category")
ABLE = (), ("string", "int", "bool")
KINDS = {"string": "text", "bool": "booleans", "int": "numbers", "float": "numbers", "null": "nothing"}
TEST_SHARE = 0.2  # of train, for sets without a test split
FEW = 20  # with so many rows, labels that hardly ever come twice are captions or numbers of the rows


@dataclass(frozen=True)
class Contents:
    """Class names as in the files, labels by split, int64 [rows], and one line about each thing that is odd.

    `stored` tells of a split that has no files of its own from which split in files it takes which rows, int64 [rows].
    """

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    remarks: tuple[str, ...]
    stored: dict[str, tuple[str, np.ndarray]]


class Labels(NamedTuple):
    """The labels of one part of a split as names, None where there is none; and how the part stores them."""

    part: Path
    column: str
    kind: str
    classes: tuple[str, ...]
    names: list[str | None]


def read_contents(source: Source) -> Contents:
    """Read class names and labels, no images, and check them. The same files are read once.

    Raises:
        DataError: for what cannot become one class for each image, naming the file and, if it is one, the row.
    """
    return _read(source, source.fingerprint)


@functools.lru_cache(64)
def _read(source: Source, fingerprint: str) -> Contents:
    source.parts("train")  # says what is there if there is none
    remarks, found = [*source.listed[2]], {}
    for split in [split for split in FILE_SPLITS if split in source.listed[1]]:
        parts = [_labels(source, split, part, features) for part, features in source.features(split)]
        if not any(part.names for part in parts):
            raise DataError(f"{source}: split '{split}' is empty; copy the set again or leave it out of the tasks")
        if any(name is not None for part in parts for name in part.names):
            found[split] = parts
        elif split == "train":
            raise DataError(f"{source}: no training image has a label (null, empty and -1 are none); label them")
        else:
            remarks.append(f"split '{split}' has no labels and is not used")
    part, features = next(source.features("train"))
    for told, used in zip(source.columns, _columns(source, features, part), strict=False):
        if told not in ("", used):
            remarks.append(f"there is no column '{told}', so '{used}' is read")
    names = _class_names(found)
    labels = {split: np.concatenate([_numbers(part, names) for part in parts]) for split, parts in found.items()}
    stored = {}
    if "test" not in labels and "validation" in labels:
        labels["test"] = labels.pop("validation")
        stored["test"] = ("validation", np.arange(len(labels["test"])))
        remarks.append("there is no labelled test split: validation is used as test, and a new one is cut from train")
    elif "test" not in labels:
        order = stratified_order(labels["train"], named_rng(source.name, "test from train", 0), "common")
        count = max(2, round(TEST_SHARE * len(order)))
        stored = {"test": ("train", np.sort(order[:count])), "train": ("train", np.sort(order[count:]))}
        labels |= {split: labels["train"][rows] for split, (_, rows) in stored.items()}
        remarks.append(f"there is no labelled test split: {count:,} images of train are held out as test")
    absent = sorted(set(range(len(names))) - set(labels["train"].tolist()))
    if absent:
        raise DataError(
            f"{source}: class '{names[absent[0]]}' has no training image ({len(absent)} of {len(names)} classes have "
            "none); add images or drop the class"
        )
    return Contents(names, labels, tuple(remarks), stored)


def images(source: Source, split: str) -> Iterator[tuple[Path, int, object]]:
    """Part, row in it and image of every row of a split, as it is stored: encoded bytes, a path, or both in a dict."""
    for part, features in source.features(split):
        yield from source.values(split, _columns(source, features, part)[0], part)


def _columns(source: Source, features: Features, part: Path) -> tuple[str, str, str]:
    """The columns of images and of labels, and what the second holds: as told, by type, then by usual names."""
    kinds = {name: getattr(feature, "dtype", "") for name, feature in features.items()}
    kinds |= {name: type(feature).__name__ for name, feature in features.items() if hasattr(feature, "cast_storage")}
    found: list[str] = []
    for told, kind, usual, able in zip(source.columns, ("Image", "ClassLabel"), USUAL, ABLE, strict=True):
        some = [told] if told in kinds else [name for name in kinds if kinds[name] == kind]
        some = some or [name for name in usual if name in kinds][:1]
        some = some or [name for name in kinds if name not in found and any(word in kinds[name] for word in able)]
        chosen = some if len(some) == 1 else [name for name in usual if name in some][:1]
        if not chosen:
            what, there = "label" if found else "image", ", ".join(some or kinds)
            flat = part.is_dir() and not some and found
            mend = "put images into <split>/<class>/" if flat else f"choose with {what}_column=<name>"
            raise DataError(f"{part} has not one column of {what}s, but {there}; {mend}")
        found += chosen
    return found[0], found[1], kinds[found[1]]


def _labels(source: Source, split: str, part: Path, features: Features) -> Labels:
    _, column, stored = _columns(source, features, part)
    classes, names = tuple(getattr(features[column], "names", None) or ()), []
    kind = "classes" if classes else next((KINDS[word] for word in KINDS if word in stored), "")
    if not kind:
        raise DataError(
            f"{part}: column '{column}' holds no labels, but {features[column]}; choose with label_column=<name>"
        )
    for _, row, value in source.values(split, column, part):
        try:
            names.append(_name(value, kind, classes))
        except (ValueError, OverflowError) as error:
            of = f" of the {len(classes)}" if classes else ""
            raise DataError(f"{part}, row {row}: label {value} is no class{of}; correct it or drop that row") from error
    return Labels(part, column, kind, classes, names)


def _name(value: object, kind: str, classes: tuple[str, ...]) -> str | None:
    """A label as the name of its class, None if it stands for no label."""
    if value is None or value != value or value == "" or (value == -1 and kind in ("classes", "numbers")):
        return None
    if kind == "classes":
        return classes[range(len(classes)).index(value)]
    if kind == "numbers" and value != int(value):
        raise ValueError
    return str(int(value) if kind == "numbers" else value)


def _class_names(found: dict[str, list[Labels]]) -> tuple[str, ...]:
    """The names of the classes, in the order of the first file that has an order, else sorted."""
    parts = [part for parts in found.values() for part in parts if {*part.names} - {None}]
    first = next((part for part in parts if part.classes), parts[0])
    for part in parts:
        if part.kind != first.kind and {part.kind, first.kind} != {"classes", "text"}:
            raise DataError(f"{part.part} has {part.kind} as labels, {first.part} has {first.kind}; write both alike")
        if part.classes and {*part.classes} != {*first.classes}:  # another order does no harm: they go by name
            raise DataError(f"{part.part} and {first.part} have different classes; write both with all of them")
    labels = [name for part in found["train"] for name in part.names if name is not None]
    names = first.classes or tuple(sorted({*labels}, key=int if first.kind == "numbers" else str))
    if not first.classes and len(labels) >= FEW and len(names) > len(labels) / 2:
        raise DataError(
            f"{first.part}: column '{first.column}' holds {len(names)} different values in {len(labels)} rows, which "
            "are captions or numbers and no classes; choose the column of classes with label_column=<name>"
        )
    return names


def _numbers(part: Labels, names: tuple[str, ...]) -> np.ndarray:
    """The labels of a part as places in the names of the classes, int64 [rows]."""
    places = {name: place for place, name in enumerate(names)}
    for row, name in enumerate(part.names):
        if name not in places:
            told = "no label (null, empty and -1 are none)" if name is None else f"label '{name}' that train has not"
            raise DataError(f"{part.part}, row {row}: {told}; correct it or drop that row")
    return np.array([places[name] for name in part.names], dtype=np.int64)

"""Real image sets: parquet files of the Hugging Face layout, from a local mirror or the hub, checked on opening.

A set is a folder with `train-*.parquet`, `test-*.parquet` and, if it has one, `validation-*.parquet`. A mirror keeps it
at `<data_root>/<set>/data/`; the hub's files are downloaded into the hub's own cache. From there on nothing differs:
class names come from the `datasets` features in the files, rows are read with `ParquetFile.iter_batches`.
(`datasets.load_dataset` would copy everything once more, reports each opening over the network, and its streams can
abort the interpreter on exit: https://github.com/huggingface/datasets/issues/7566.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as parquet
from pyarrow import ArrowException

if TYPE_CHECKING:
    import datasets

FILE_SPLITS = ("train", "validation", "test")  # what the files are called; "validation" is optional
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
ROWS_AT_ONCE = 64  # read from a file together


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the place and the mend."""


@functools.cache
def download(hub: str, folder: str, splits: tuple[str, ...] = FILE_SPLITS) -> Path:
    """Fetch a set's files from the hub, or find them in its cache.

    Args:
        hub: the hub's id, e.g. "tanganke/sun397".
        folder: the folder of the files in that repository.
        splits: which of its files, by the beginning of their names.

    Returns:
        The local folder of the files.

    Raises:
        DataError: if the hub is out of reach or has no such files.
    """
    from huggingface_hub import snapshot_download  # here, not above: importing it takes long

    try:
        patterns = [f"{folder}/{split}-*.parquet" for split in splits]
        return Path(snapshot_download(hub, repo_type="dataset", allow_patterns=patterns)) / folder
    except Exception as error:  # the hub's client and its HTTP library share no base class
        raise DataError(
            f"cannot fetch '{hub}' from the Hugging Face hub ({type(error).__name__}); check the network, or set "
            "data_root to a folder with a local mirror (<set>/data/*.parquet, glue/<config>/*.parquet)"
        ) from error


@dataclass(frozen=True)
class Source:
    """Where a set's files lie.

    Attributes:
        name: the set's name in the study.
        folder: the folder of parquet files.
        hub: the hub's id if they came from there, else "".
    """

    name: str
    folder: Path
    hub: str = ""

    def __str__(self) -> str:
        """The place as messages name it."""
        return str(self.folder)

    @property
    def splits(self) -> tuple[str, ...]:
        """The file splits that there are."""
        return tuple(split for split in FILE_SPLITS if any(self.folder.glob(f"{split}-*.parquet")))

    def files(self, split: str) -> list[Path]:
        """The files of a split, in order.

        Raises:
            DataError: if there are none.
        """
        found = sorted(self.folder.glob(f"{split}-*.parquet"))
        if not found:
            raise DataError(f"{self}: no file {split}-*.parquet; a set needs it, copy it there")
        return found

    def row(self, split: str, row: int) -> str:
        """How a message names one row of a split: the file and the row in it, counted from 0."""
        for path in self.files(split):
            if row < (count := parquet.read_metadata(path).num_rows):
                break
            row -= count
        return f"{path}, row {row}"

    def fingerprint(self) -> str:
        """Changes when the files do: a hash of their names, sizes and times of modification."""
        files = [path for split in self.splits for path in self.files(split)]
        text = str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def columns(self, split: str) -> tuple[str, str, datasets.Features]:
        """The names of the image and the label column, and the features of all columns.

        Raises:
            DataError: if one of them is missing, or a file cannot be read.
        """
        from datasets import Features

        path = self.files(split)[0]
        with readable(path):
            features = Features.from_arrow_schema(parquet.read_schema(path))
        found = []
        for kind, names in (("image", IMAGE_COLUMNS), ("label", LABEL_COLUMNS)):
            present = [name for name in names if name in features]
            if not present:
                raise DataError(
                    f"{path} has no {kind} column; its columns are {', '.join(features)}; rename the right one to "
                    f"'{names[0]}'"
                )
            found.append(present[0])
        return found[0], found[1], features

    def values(self, split: str, column: str) -> Iterator[object]:
        """One column of a split, row by row, images as they are stored.

        Raises:
            DataError: if a file cannot be read.
        """
        for path in self.files(split):
            # With a buffer, a column is read piece by piece; without, a whole row group at a time.
            with readable(path), parquet.ParquetFile(path, buffer_size=1 << 20) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                    yield from batch.column(0).to_pylist()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says about a file that it cannot read into one sentence."""
    try:
        yield
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} cannot be read as parquet ({reason}); copy the file again") from error


@dataclass(frozen=True)
class Contents:
    """What a set holds: class names as in the files, and per file split the labels, int64 [rows]."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]


def read_contents(source: Source) -> Contents:
    """Read class names and labels, no images, and check them.

    A text label column is accepted too: its classes are the sorted distinct texts of the training split.

    Raises:
        DataError: for a missing split or column, an empty split, labels without names, outside the range of the
            names or without training images, and splits with different class names.
    """
    names: tuple[str, ...] = ()
    labels = {}
    for split in ("train", *(s for s in FILE_SPLITS if s != "train" and (s in source.splits or s == "test"))):
        _, column, features = source.columns(split)
        values = list(source.values(split, column))
        if not values:
            raise DataError(f"{source}: split '{split}' is empty; copy the set again or leave it out of the tasks")
        here = _names_of(source, split, column, features[column], values, names)
        names = names or here
        if here != names:
            raise DataError(f"{source}: splits 'train' and '{split}' have different class names; write both anew")
        if isinstance(values[0], str):
            number = {name: index for index, name in enumerate(names)}
            values = [number.get(value, -1) for value in values]
        labels[split] = np.array([-1 if value is None else value for value in values], dtype=np.int64)
        outside = np.flatnonzero((labels[split] < 0) | (labels[split] >= len(names)))
        if outside.size:
            raise DataError(
                f"{source.row(split, int(outside[0]))}: label {labels[split][outside[0]]} is not one of the "
                f"{len(names)} classes; drop that row or mend its label (-1 means no label)"
            )
    absent = [names[index] for index in range(len(names)) if not np.any(labels["train"] == index)]
    if absent:
        raise DataError(
            f"{source}: class '{absent[0]}' has no training image ({len(absent)} of {len(names)} classes have "
            "none); add images or drop the class from the ClassLabel"
        )
    return Contents(names, labels)


def _names_of(
    source: Source, split: str, column: str, feature: object, values: list, known: tuple[str, ...]
) -> tuple[str, ...]:
    """The class names of one split: of its ClassLabel, or the distinct texts of the training split."""
    if getattr(feature, "names", None):
        return tuple(feature.names)
    if all(isinstance(value, str) for value in values):
        return known or tuple(sorted(set(values)))
    raise DataError(
        f"{source}: column '{column}' of split '{split}' holds numbers without class names; save the set with "
        f"dataset.cast_column('{column}', datasets.ClassLabel(names=[...])), or with the names as text"
    )

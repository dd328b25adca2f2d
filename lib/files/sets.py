"""Sets of images and texts in files, from a local mirror or the hub: found, opened, and checked.

A set is a folder of parquet files as `datasets` writes them: `train-*.parquet`, `test-*.parquet` and, if it has one,
`validation-*.parquet`. The hub's files are downloaded into the hub's own cache; from there on nothing differs. What is
behind a `Source` sees an image set only through its `has`, `labels`, `images`, `row` and `fingerprint`.

What columns mean is read by `datasets.Features`; the rows are read with `ParquetFile.iter_batches`, which takes little
memory and writes nothing. (`datasets.load_dataset` copies everything once more and reports each opening over the
network; its streams hold a whole row group and leave lock files in the user's cache.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from pyarrow import ArrowException

FILE_SPLITS = ("train", "validation", "test")  # what the files are called; "validation" is optional
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
ROWS_AT_ONCE = 64  # read from a file together


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the place and how to correct it."""


@functools.cache
def download(hub: str, folder: str, splits: tuple[str, ...] = FILE_SPLITS) -> Path:
    """Fetch the files of some splits from a folder on the hub, or find them in the hub's cache; returns their folder.

    Raises:
        DataError: if the hub is out of reach.
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
        """The place: "folder:<path>" or "hub:<id>"."""
        return f"hub:{self.hub}" if self.hub else f"folder:{self.folder}"

    def has(self, split: str) -> bool:
        """Whether there are files of a split."""
        return any(self.folder.glob(f"{split}-*.parquet"))

    def files(self, split: str) -> list[Path]:
        """The files of a split, in order.

        Raises:
            DataError: if there are none.
        """
        found = sorted(self.folder.glob(f"{split}-*.parquet"))
        if not found:
            raise DataError(f"{self.folder}: no file {split}-*.parquet; a set needs it, copy it there")
        return found

    def counts(self, split: str) -> dict[Path, int]:
        """How many rows each file of a split has.

        Raises:
            DataError: if there are none, or one cannot be read.
        """
        counts = {}
        for path in self.files(split):
            with opened(path) as file:
                counts[path] = file.metadata.num_rows
        return counts

    def row(self, split: str, row: int) -> str:
        """How a message names one row of a split: the file and the row in it, counted from 0."""
        for path, count in self.counts(split).items():
            if row < count:
                return f"{path}, row {row}"
            row -= count
        raise IndexError(row)

    def fingerprint(self) -> str:
        """Changes when the files do: a hash of their names, sizes and times of modification."""
        files = sorted(self.folder.glob("*.parquet"))
        text = str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def column(self, split: str, *names: str) -> tuple[str, tuple[str, ...]]:
        """Which of some names a column has in all files of a split, and the names of its classes, () if it has none.

        Raises:
            DataError: if a file cannot be read, has no such column, or gives other class names than another.
        """
        from datasets import Features  # here, not above: importing it takes long

        classes: tuple[str, ...] = ()
        for path in self.files(split):
            with opened(path) as file:
                features = Features.from_arrow_schema(file.schema_arrow)
            present = [name for name in names if name in features]
            if not present:
                wanted, there = "' or '".join(names), ", ".join(features)
                raise DataError(f"{path} has no column '{wanted}'; its columns are {there}; rename the right one")
            names = (present[0],)  # the other files must call it the same
            here = tuple(getattr(features[present[0]], "names", None) or ())
            if here and classes and here != classes:
                raise DataError(f"{path}: its class names are not those of the files before; write all files anew")
            classes = classes or here
        return names[0], classes

    def values(self, split: str, column: str) -> Iterator[object]:
        """One column of a split, row by row, images as they are stored."""
        for path in self.files(split):
            with opened(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                    yield from batch.column(0).to_pylist()

    def labels(self, split: str) -> tuple[tuple[str, ...], list[object]]:
        """The class names as the files give them, () if they do not, and the label of every row."""
        self.column(split, *IMAGE_COLUMNS)  # a set without images is refused before its labels are read
        column, names = self.column(split, *LABEL_COLUMNS)
        return names, list(self.values(split, column))

    def images(self, split: str) -> Iterator[tuple[int, object]]:
        """The number and the image of every row, as it is stored: encoded bytes, alone or in a dict."""
        return enumerate(self.values(split, self.column(split, *IMAGE_COLUMNS)[0]))


@contextmanager
def opened(path: Path) -> Iterator[parquet.ParquetFile]:
    """A parquet file, while it is read; turns what pyarrow says if it cannot be read into one sentence."""
    try:
        # With a buffer, a column is read piece by piece; without, a whole row group at a time.
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            yield file
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} cannot be read as parquet ({reason}); copy the file again") from error


def find_source(
    name: str, data_root: str, folders: Sequence[str], hub: str = "", splits: tuple[str, ...] = FILE_SPLITS
) -> Source:
    """Find a set: below `data_root` when that is given, else on the hub.

    Args:
        name: the set's name in the study.
        data_root: a folder with a local mirror, or "".
        folders: where the set may lie below it, or on the hub after the last "/".
        hub: the hub's id.
        splits: which files the hub is asked for.

    Raises:
        DataError: if there is no such folder, naming what is there, or the hub is out of reach.
    """
    if not data_root:
        return Source(name, download(hub, folders[-1].rpartition("/")[2], splits), hub)
    root = Path(data_root).expanduser()
    for folder in folders:
        if (root / folder).is_dir():
            return Source(name, root / folder)
    advice = f"set data_root to the folder that holds {folders[0]}/train-*.parquet, or drop '{name}' from the tasks"
    if not root.is_dir():
        raise DataError(f"data_root {root} is not a folder; {advice}")
    nearest = next(folder for folder in (root / folders[0]).parents if folder.is_dir())
    present = ", ".join(folders_in(nearest)) or "no folder"
    raise DataError(f"{root / folders[0]} does not exist, {nearest} holds {present}; {advice}")


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def compare(source: Source, counts: Mapping[str, tuple[int, int]], at_most: Sequence[str]) -> str:
    """Compare a set with the official one.

    Args:
        source: the set.
        counts: what is counted -> how many there are, and how many the official set has.
        at_most: of what a mirror may not have more.

    Returns:
        "" if they agree, else (only for a mirror) the line that says how they differ.

    Raises:
        DataError: if the hub's copy differs at all, or a mirror has more of `at_most`.
    """
    if all(found == official for found, official in counts.values()):
        return ""
    held = ", ".join(f"{found:,} of {official:,} {kind}" for kind, (found, official) in counts.items())
    more = {kind for kind, (found, official) in counts.items() if found > official}
    if source.hub or more.intersection(at_most):
        raise DataError(f"{source} holds {held}: it is not the official set; use a mirror of that, or another name")
    kind = "variant" if more else "subset"
    return f"{source.name}: a local {kind}, {held}; scores are not comparable with published ones"


@dataclass(frozen=True)
class Contents:
    """What a set holds: class names as in the files, and per file split the labels, int64 [rows]."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]


def read_contents(source: Source) -> Contents:
    """Read class names and labels, no images, and check them.

    Labels may also be texts: their classes are the sorted distinct texts of the training split.

    Raises:
        DataError: for a missing split or column, an empty split, labels without names, outside the range of the
            names or without training images, and splits with different class names.
    """
    names: tuple[str, ...] = ()
    labels = {}
    for split in ("train", "test", *(["validation"] if source.has("validation") else [])):
        here, values = source.labels(split)
        if not values:
            raise DataError(f"{source}: split '{split}' is empty; copy the set again or leave it out of the tasks")
        if not here and not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{source}: the labels of split '{split}' are numbers without class names; save the set with "
                "dataset.cast_column('label', datasets.ClassLabel(names=[...])), or with the names as text"
            )
        here = here or names or tuple(sorted(set(values)))
        names = names or here
        if here != names:
            raise DataError(f"{source}: splits 'train' and '{split}' have different class names; write both anew")
        numbers = {name: index for index, name in enumerate(names)} | {None: -1}
        known = (numbers.get(value, -1) if value is None or isinstance(value, str) else value for value in values)
        labels[split] = np.fromiter(known, dtype=np.int64)
        outside = np.flatnonzero((labels[split] < 0) | (labels[split] >= len(names)))
        if outside.size:
            raise DataError(
                f"{source.row(split, int(outside[0]))}: label {labels[split][outside[0]]} is not one of the "
                f"{len(names)} classes; drop that row or correct its label (-1 means no label)"
            )
    absent = [name for index, name in enumerate(names) if not np.any(labels["train"] == index)]
    if absent:
        raise DataError(
            f"{source}: class '{absent[0]}' has no training image ({len(absent)} of {len(names)} classes have "
            "none); add images or drop the class from the ClassLabel"
        )
    return Contents(names, labels)

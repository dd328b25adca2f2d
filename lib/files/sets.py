"""Sets of images and texts in files, from a local folder or the hub: found, listed, and opened by `datasets`.

docs/your-own-data.md says which folders are understood. The hub's files are downloaded into the hub's own cache; from
there on nothing differs. Which files make up a split is decided here, because `datasets` takes too few shards and too
many. Tables are opened one by one, because it takes the first one's columns and classes for those of all.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

from lib.files.folders import DataError, names_in, place_of, sets_in, stem_of, unpack, why

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from pyarrow import Table

FILE_SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in FILE_SPLITS} | {"training": "train", "testing": "test", "eval": "test"}
SPLIT_NAMES |= dict.fromkeys(("valid", "val", "dev"), "validation")
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
IMAGES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json")
ROWS_AT_ONCE = 64  # read from a file together


@functools.cache
def download(hub: str, folder: str = "", splits: tuple[str, ...] = FILE_SPLITS) -> Path:
    """Fetch some splits from a folder on the hub, or a whole set, or find them in the hub's cache; returns the folder.

    Raises:
        DataError: if the hub is out of reach.
    """
    from huggingface_hub import snapshot_download  # here, not above: importing it takes long

    try:
        patterns = [f"{folder}/{split}-*.parquet" for split in splits] if folder else None
        return Path(snapshot_download(hub, repo_type="dataset", allow_patterns=patterns)) / folder
    except Exception as error:  # the hub's client and its HTTP library share no base class
        raise DataError(
            f"cannot fetch '{hub}' from the Hugging Face hub ({type(error).__name__}); check the network, or set "
            "data_root to a folder with a local mirror (<set>/data/*.parquet, glue/<config>/*.parquet)"
        ) from error


@functools.cache
def library() -> ModuleType:
    """`datasets`, which takes long to import, made silent, and asking nothing of the network."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises as well
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


@dataclass(frozen=True)
class Source:
    """Where a set's files lie: its name in the study, their folder or archive, the hub's id if they are from there.

    `columns` are the names of the columns of images and of labels, where a file has them; "" for those that are usual.
    """

    name: str
    folder: Path
    hub: str = ""
    columns: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        """The place: "folder:<path>" or "hub:<id>"."""
        return f"hub:{self.hub}" if self.hub else f"folder:{self.folder}"

    @functools.cached_property
    def listed(self) -> tuple[str, dict[str, list[Path]], list[str], Path]:
        """How the set is stored, the files of each split, what is to be said about them, and where they are."""
        return _listed(self.folder, self.fingerprint)

    def parts(self, split: str) -> list[Path]:
        """What is opened, one after the other, to read a split: its tables, or one folder.

        Raises:
            DataError: if there is nothing of that split.
        """
        kind, files, _, folder = self.listed
        if split not in files:
            there = ", ".join(files) or "neither a table, nor images, nor what save_to_disk writes"
            raise DataError(
                f"{self.folder}: nothing of split '{split}', there is {there}; call the files {split}-*.parquet (.csv, "
                f".jsonl), or put images into {split}/<class>/"
            )
        return [folder] if kind == "imagefolder" else files[split]

    @contextmanager
    def opened(self, split: str, part: Path, columns: list[str] | None = None) -> Iterator[Dataset | IterableDataset]:
        """One part of a split, all columns or some, as arrow tables: images stay as they are stored.

        Raises:
            DataError: if it cannot be read.
        """
        kind = self.listed[0]
        try:
            if kind == "saved":
                rows = library().load_from_disk(str(part))
            elif kind == "imagefolder":
                rows = _folder(self, self.fingerprint)[split]
            else:
                rows = _load(kind, {"train": [part]}, columns)["train"]
            yield (rows.select_columns(columns) if columns else rows).with_format("arrow")
        except Exception as error:  # of pyarrow, pandas, json and `datasets`, which share no base class
            reason = why(part, error)
            mend = "drop that column" if "datasets dtype" in reason else "copy the file again"
            raise DataError(f"{part} cannot be read as {kind} ({reason}); {mend}") from error

    def features(self, split: str) -> Iterator[tuple[Path, Features]]:
        """Names and types of the columns in each part of a split."""
        for part in self.parts(split):
            with self.opened(split, part) as rows:
                features = rows.features
            yield part, features

    def tables(self, split: str, columns: list[str], *parts: Path) -> Iterator[tuple[Path, int, Table]]:
        """Some columns of a split, or of parts of it, a few rows at a time: part, number of the first row, rows."""
        for part in parts or self.parts(split):
            first = 0
            with self.opened(split, part, columns) as rows:
                for table in rows.iter(ROWS_AT_ONCE):
                    yield part, first, table
                    first += len(table)

    def values(self, split: str, column: str, *parts: Path) -> Iterator[tuple[Path, int, object]]:
        """Part, row in it and value of one column, row by row."""
        for part, first, table in self.tables(split, [column], *parts):
            for row, value in enumerate(table.column(0).to_pylist(), first):
                yield part, row, value

    def count(self, split: str) -> int:
        """How many rows a split has."""
        first = next(iter(next(self.features(split))[1]), "")
        return sum(len(rows) for *_, rows in self.tables(split, [first]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of other files it is another one: a hash of their names, sizes and times of modification, as they are now."""
        files = [(name, os.stat(name)) for name in names_in(self.folder)]
        return hashlib.sha256(str([(name, s.st_size, s.st_mtime_ns) for name, s in files]).encode()).hexdigest()[:16]


@functools.lru_cache(8)
def _folder(source: Source, fingerprint: str) -> Mapping[str, Dataset]:
    """Paths of images in folders: all splits at once, whose classes are those of all together. It takes long."""
    return _load("imagefolder", source.listed[1])


def _load(
    kind: str, files: Mapping[str, Sequence[Path]], columns: list[str] | None = None
) -> Mapping[str, Dataset | IterableDataset]:
    """What `datasets.load_dataset` makes of files; parquet is read piece by piece, the other kinds are not large."""
    import pyarrow.dataset as arrow
    from datasets.data_files import DataFilesList  # names, not patterns: a name may have brackets in it

    options: dict[str, object] = {"keep_in_memory": True}
    if kind == "parquet":  # without a buffer, a whole row group would be in memory at a time
        scan = arrow.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False)
        options = {"streaming": True, "columns": columns, "batch_size": ROWS_AT_ONCE, "fragment_scan_options": scan}
    elif kind == "csv":  # a class may be called NA; Excel begins a file with a mark
        options |= {"keep_default_na": False, "encoding": "utf-8-sig"}
        options |= {"sep": "\t"} if files["train"][0].suffix == ".tsv" else {}
    named = {name: DataFilesList(map(str, paths), [()] * len(paths)) for name, paths in files.items()}
    with TemporaryDirectory(prefix="study-") as cache:
        return library().load_dataset(kind, data_files=named, cache_dir=cache, **options)


@functools.lru_cache(64)
def _listed(folder: Path, fingerprint: str) -> tuple[str, dict[str, list[Path]], list[str], Path]:
    """How a set is stored, the files of each split, one line about each thing that is odd, and where all that lies.

    The kind is that of `datasets.load_dataset`, or "saved" for what `save_to_disk` wrote. All files are of the training
    split if none has the name of a split. Archives are looked into where there is nothing else.

    Raises:
        DataError: for two generations of shards, and for an archive that cannot be unpacked.
    """
    there = [Path(name) for name in names_in(folder)]
    saved = [path.parent for path in there if path.name == "state.json"]
    if saved:
        splits = {"train" if path == folder else _split_of(path.name): [path] for path in saved}
        return "saved", splits if splits.keys() & {*FILE_SPLITS} else {"train": saved}, [], folder
    kinds: dict[str, list[Path]] = {}
    for path in there:
        image = path.stem == "metadata" or path.suffix.lower() in IMAGES
        kind = "imagefolder" if image else TABLES.get(path.suffix.lower(), "")
        if kind and path.name not in NO_DATA:
            kinds.setdefault(kind, []).append(path)
    own = [k for k in ("csv", "json") if any(_split_of(path.name) in FILE_SPLITS for path in kinds.get(k, []))]
    kind = next((kind for kind in ("parquet", *own, "imagefolder", "csv", "json") if kind in kinds), "")
    if not kind and (archives := [path for path in there if stem_of(path)]):
        return _listed(folder := unpack(folder, archives), folder.name)
    splits = {}
    for path in kinds.get(kind, []):
        parts = path.relative_to(folder).parts
        splits.setdefault(_split_of(*(parts[:-1] if kind == "imagefolder" else parts)), []).append(path)
    if kind and not splits.keys() & {*FILE_SPLITS}:
        splits = {"train": kinds[kind]}
    unused = [split or "what is in no folder" for split in splits if split not in FILE_SPLITS]
    unused += [path.name for other in kinds if other not in (kind, "imagefolder") for path in kinds[other]]
    unused += [path.name for path in there if stem_of(path)]
    lines = [f"not used: {', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}"] if unused else []
    if kind == "imagefolder":
        return kind, {split: paths for split, paths in splits.items() if split in FILE_SPLITS}, lines, folder
    lines += [line for split, paths in splits.items() if (line := _shards(split, paths))]
    return kind, splits, lines, folder


def _split_of(*names: str) -> str:
    """Which split the names of folders and a file in them tell; else the last name, without its number and suffix."""
    stems = [re.split(r"-\d+-of-\d+|\.", name)[0] for name in names]
    plain = (re.sub(r"[-_ ]*\d*$", "", stem.lower()) for stem in stems)
    return next((SPLIT_NAMES[word] for word in plain if word in SPLIT_NAMES), stems[-1] if stems else "")


def _shards(split: str, paths: Sequence[Path]) -> str:
    """What is to be said about the numbers of a split's files, "" if nothing is."""
    counts = {int(of[1]) for path in paths if (of := re.search(r"-\d+-of-(\d+)", path.name))}
    if len(counts) > 1 or (counts and len(paths) > max(counts)):
        names = ", ".join(path.name for path in paths[:4])
        raise DataError(f"{paths[0].parent}: files of '{split}' were written more than once ({names}); remove the old")
    return f"{len(paths)} of {max(counts)} files of '{split}' are there" if counts and len(paths) < max(counts) else ""


def find_source(
    name: str, data_root: str, folders: Sequence[str], hub: str = "", splits: tuple[str, ...] = FILE_SPLITS
) -> Source:
    """Find a set: in one of some folders below `data_root`, or if that is "", on the hub, after the last one's "/".

    Raises:
        DataError: if there is no such folder, naming what is there, or the hub is out of reach.
    """
    if not data_root:
        return Source(name, download(hub, folders[-1].rpartition("/")[2], splits), hub)
    root = Path(data_root).expanduser()
    for folder in (*folders, folders[0].removesuffix("/data")):
        if place := place_of(root / folder):
            return Source(name, place)
    advice = f"set data_root to the folder that holds {folders[0]}/, or drop '{name}' from the tasks"
    if not root.is_dir():
        raise DataError(f"data_root {root} is not a folder; {advice}")
    nearest = next(folder for folder in (root / folders[0]).parents if folder.is_dir())
    present = ", ".join(sets_in(nearest)) or "no folder"
    raise DataError(f"{root / folders[0]} does not exist, {nearest} holds {present}; {advice}")


def compare(source: Source, counts: Mapping[str, tuple[int, int]], at_most: Sequence[str]) -> str:
    """Compare a set with the official one, given what is counted -> how many there are, and how many there should be.

    Returns:
        "" if they agree, else (only for a mirror) the line that says how they differ.

    Raises:
        DataError: if the hub's copy differs at all, or a mirror has more of what it may have `at_most`.
    """
    if all(found == official for found, official in counts.values()):
        return ""
    held = ", ".join(f"{found:,} of {official:,} {kind}" for kind, (found, official) in counts.items())
    more = {kind for kind, (found, official) in counts.items() if found > official}
    if source.hub or more.intersection(at_most):
        raise DataError(f"{source} holds {held}: it is not the official set; use a mirror of that, or another name")
    kind = "variant" if more else "subset"
    return f"{source.name}: a local {kind}, {held}; scores are not comparable with published ones"

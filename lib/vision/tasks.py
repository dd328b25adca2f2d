"""The study's tasks, drawn and real, under one roof: names, class names, prompts, and four splits of images.

    train        fine-tuning
    validation   choosing hyperparameters; never overlaps train
    adaptation   unlabelled images that test-time adaptation sees (scores on them are transductive)
    test         held-out images that nothing ever sees before the score

Drawn tasks draw each split from seeds of its own. A real set's test split is cut into adaptation and test halves; its
validation split is its own or a tenth of train. Every split is made once and cached; what is cached is mapped into
memory, not read, so a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.files.contents import read_contents
from lib.files.folders import place_of, sets_in
from lib.files.sets import DataError, Source, compare, download, find_source
from lib.files.splits import SPLITS, choose_rows
from lib.runtime.disk import exclusive
from lib.runtime.keys import code_of, key_of
from lib.runtime.progress import progress
from lib.vectors.mapped import Writer, in_words, is_whole, new_file, read_file, remove_unfinished
from lib.vision.decoding import decode_rows, fit
from lib.vision.registry import REGISTRY
from worlds.images import MODULES, TASK_WILD, Job, draw_splits, drawing
from worlds.images.corruptions import CORRUPTIONS, corrupt

__all__ = ["CORRUPTIONS", "REGISTRY", "DataError", "Split", "Task", "corrupt", "load_split", "load_splits", "load_task"]

DEFAULT_TEMPLATES = ("a photo of a {}.",)
FORMAT, REAL_FORMAT = 3, 4  # part of a cached split's name, drawn or real: raise it when what is stored changes


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: as parameters and tables name it.
        title: as figures name it.
        class_names: as prompts say them, in the order of the labels.
        templates: prompts with one {} for the class name.
        source: "drawn", "folder:<path>" or "hub:<id>".
        note: one plain line when the data differ from the official set, else "".
        columns: of images and of labels in a set with several, as they were told to `load_task`.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    source: str
    note: str = ""
    columns: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 3, H, W], and labels, int64 [N]; views of a file, so they are for reading only."""

    images: Tensor
    labels: Tensor


def find_set(name: str, data_root: str = "", columns: tuple[str, str] = ("", "")) -> Source:
    """Where a real set lies: below `data_root` when that is given, else on the hub.

    Raises:
        DataError: if `data_root` or the set's folder in it does not exist, or the name is not known.
    """
    root, known = Path(data_root).expanduser(), REGISTRY.get(name)
    present = sets_in(root) if data_root and root.is_dir() else []
    if not known and name not in present:
        if name.count("/") == 1:
            return Source(name, download(name), name, columns)
        raise DataError(
            f"unknown task '{name}'; drawn: {', '.join(MODULES)}; real: {', '.join(REGISTRY)}; on the hub: owner/set; "
            + (f"in {root}: {', '.join(present) or 'nothing'}" if data_root else "for a set of your own, set data_root")
        )
    # A copy of a hub repository may keep the files in a folder of another name, as the repository does.
    places = [f"{name}/data", *([f"{name}/{known.folder}"] if known else [])]
    return replace(find_source(name, data_root, places, known.hub if known else ""), columns=columns)


def load_task(name: str, *, data_root: str = "", columns: tuple[str, str] = ("", "")) -> Task:
    """Look up a task by name: drawn, registered, or any set in a folder below `data_root` or on the hub.

    `columns` of images and labels are read where a set has them, "" and where it has not those that are usual.
    A line is printed about each thing that is odd, and when a local mirror holds less than the official set.

    Raises:
        DataError: for an unknown name, and for whatever is wrong with the files; see `lib.files.sets`.
    """
    if name in MODULES:
        if data_root and place_of(Path(data_root).expanduser() / name):
            raise DataError(f"{Path(data_root) / name} has the name of a drawn task; rename the folder")
        module, title = drawing(name), name.replace("_", " ").capitalize()
        return Task(name, title, tuple(module.CLASSES), tuple(module.TEMPLATES), "drawn")
    source = find_set(name, data_root, columns)
    contents, official = read_contents(source), REGISTRY.get(name)
    spoken = official.prompted if official else {}
    class_names = tuple(spoken.get(raw, " ".join(raw.replace("_", " ").split())) for raw in contents.class_names)
    if len(set(class_names)) < len(class_names) or not all(class_names):
        raise DataError(f"{source}: class names are empty or the same twice, written as in prompts; rename them")
    for remark in (*contents.remarks, *(() if official else _odd_names(class_names))):
        print(f"{name}: {remark}", flush=True)
    if not official:
        return Task(name, name.replace("_", " "), class_names, DEFAULT_TEMPLATES, str(source), columns=columns)
    counts = {
        "classes": (len(class_names), official.classes),
        "training images": (len(contents.labels["train"]), official.train),
        "test images": (len(contents.labels["test"]), official.test),
    }
    if note := compare(source, counts, at_most=["classes"]):
        print(note, flush=True)
    return Task(name, official.title, class_names, official.templates, str(source), note, columns)


def _odd_names(class_names: Sequence[str]) -> Iterator[str]:
    """One line about each kind of class name that makes poor prompts."""
    digits, foreign = [n for n in class_names if n.isdigit()], [n for n in class_names if not n.isascii()]
    for odd, kind in ((digits, "numbers"), (foreign, "not English")):
        if odd:
            yield f"{len(odd)} class names are {kind} ({', '.join(odd[:3])}); head=class-mean needs no prompts"


def load_split(task: Task, split: str, **options: object) -> Split:
    """One split of one task; the arguments are those of `load_splits`."""
    return load_splits([task], split, **options)[task.name]


def load_splits(
    tasks: Sequence[Task],
    split: str,
    *,
    sizes: Mapping[str, int],
    image_size: int,
    data_root: str = "",
    cache: Path,
    seed: int = 0,
) -> dict[str, Split]:
    """One split of some tasks, from the cache, or made and cached.

    Args:
        tasks: from `load_task`.
        split: one of `SPLITS`.
        sizes: split -> images: how many are drawn, or at most taken from a real set, each class by its share. Name all
            splits, not only the wanted one: where validation is cut from train, its size decides what is left.
        image_size: side of the images in pixels: shorter side resized (bicubic), centre cropped.
        data_root: as it was given to `load_task`.
        cache: folder for the cached splits; made when needed.
        seed: of drawing, of halves and of subsets; leave it at 0 to compare seeds of training on the same images.

    Returns:
        Task name -> images and labels, shuffled. One line says what reading real sets cost when none was decoded.

    Raises:
        DataError: for a wrong split name and for whatever is wrong with the files; see `lib.files.sets`.
    """
    sources = {task.name: _source(task, data_root) for task in tasks if task.source != "drawn"}
    place = partial(_cached, sizes=sizes, image_size=image_size, cache=cache, seed=seed)
    paths = {task.name: place(task, sources.get(task.name), split) for task in tasks}
    missing = [task for task in tasks if not is_whole(paths[task.name])]
    jobs = {task.name: Job(task.name, split, sizes[split], seed) for task in missing if task.source == "drawn"}
    for name, (images, labels) in zip(jobs, draw_splits(list(jobs.values())), strict=True):
        if image_size != images.shape[-1]:
            images = np.stack([fit(Image.fromarray(image.transpose(1, 2, 0)), image_size) for image in images])
        with _new_split(paths[name], labels, image_size) as file:
            file.write("images", 0, images)
    for task in missing:
        if task.name in jobs:
            continue
        with exclusive(cache / "splits"):  # one process at a time: each of them uses all cores
            if not paths[task.name].is_file():
                source, label = sources[task.name], f"decoding {task.title}, {split}"
                _decode(paths[task.name], source, split, sizes, image_size, seed, label)
                _tell_repeats(task, split, {other: place(task, source, other) for other in SPLITS})
    started = time.monotonic()
    loaded = {task.name: _read(paths[task.name]) for task in tasks}
    real = [loaded[task.name].images for task in tasks if task.source != "drawn"]
    if real and len(missing) == len(jobs):
        count, size = sum(len(images) for images in real), in_words(sum(images.nbytes for images in real))
        print(f"{split}: {count:,} images of {len(real)} sets mapped in {time.monotonic() - started:.2f} s, {size}")
    return loaded


def _source(task: Task, data_root: str) -> Source:
    """Where a real set lies, which is where it lay when its task was loaded."""
    source = find_set(task.name, data_root, task.columns)
    if task.source != str(source):
        raise DataError(f"{task.name} was loaded from {task.source}, not from {source}; pass the same data_root")
    return source


def _cached(
    task: Task, source: Source | None, split: str, sizes: Mapping[str, int], image_size: int, cache: Path, seed: int
) -> Path:
    """Where a split is cached: the name holds a hash of everything that determines the images."""
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}'; the splits are {', '.join(SPLITS)}")
    determines: dict[str, object] = {"format": FORMAT, "size": sizes.get(split), "side": image_size, "seed": seed}
    if source is None:
        if not determines["size"]:
            raise DataError(f"{task.name}: sizes names no number of images to draw for split '{split}'")
        determines |= {"code": [code_of("worlds.images"), code_of(MODULES[task.name])], "wild": TASK_WILD}
    else:
        determines |= {"source": source.fingerprint, "format": REAL_FORMAT}
        determines |= {"validation": sizes.get("validation")} if split == "train" else {}
        determines |= {"columns": task.columns} if any(task.columns) else {}
    return cache / "splits" / f"{task.name.replace('/', '-')}-{split}-{key_of(determines)}.npy"


def _read(path: Path) -> Split:
    tensors = read_file(path)
    return Split(tensors["images"], tensors["labels"])


@contextmanager
def _new_split(path: Path, labels: np.ndarray, side: int) -> Iterator[Writer]:
    """A file of a split that has its labels and waits for its images and, of real ones, a short hash of each."""
    shapes = {
        "labels": (torch.int64, labels.shape),
        "hashes": (torch.int64, labels.shape),
        "images": (torch.uint8, (len(labels), 3, side, side)),
    }
    with new_file(path, shapes) as file:
        file.write("labels", 0, labels)
        yield file


def _decode(path: Path, source: Source, split: str, sizes: Mapping[str, int], side: int, seed: int, label: str) -> None:
    """Decode a split of a real set into a file that holds labels, images, and hashes of the images."""
    contents = read_contents(source)
    labels = contents.labels
    file_split, rows = choose_rows(labels, source.name, split, sizes, seed)
    if not rows.size:
        raise DataError(
            f"{source}: {len(labels[file_split])} images of '{file_split}' are too few to make '{split}'; add some"
        )
    stored, own = contents.stored.get(file_split, (file_split, None))
    hashes, seen, size = [b""] * len(rows), [], in_words(3 * side * side * len(rows))
    remove_unfinished(path)
    with _new_split(path, labels[file_split][rows], side) as file:
        images = decode_rows(source, stored, rows if own is None else own[rows], side, seen)
        for place, image in progress(images, label, total=len(rows), postfix=lambda: f"{size}, mapped from now on"):
            file.write("images", place, image)
            hashes[place] = hashlib.sha256(np.ascontiguousarray(image)).digest()
        file.write("hashes", 0, np.array([int.from_bytes(one[:8], "big", signed=True) for one in hashes]))
        file.digests["images"] = hashlib.sha256(b"".join(hashes)).hexdigest()
    for remark, count in Counter(seen).items():
        print(f"{source.name}, {split}: {count:,} of {len(rows):,} images {remark}", flush=True)


def _tell_repeats(task: Task, split: str, paths: Mapping[str, Path]) -> None:
    """Print how many images of a split come twice in it, and how many are also in the splits that are there already."""
    own = read_file(paths[split])["hashes"].numpy()
    repeats = {"come more than once": len(own) - len(np.unique(own))}
    for other in (other for other in paths if other != split and paths[other].is_file()):
        repeats[f"are also in {other}"] = int(np.isin(own, read_file(paths[other])["hashes"].numpy()).sum())
    for where, count in repeats.items():
        if count:
            print(f"{task.name}: {count:,} of {len(own):,} images of {split} {where}, pixel by pixel", flush=True)

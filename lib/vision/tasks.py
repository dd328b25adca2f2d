"""The study's tasks, drawn and real, under one roof: names, class names, prompts, and four splits of images.

    train        fine-tuning
    validation   choosing hyperparameters; never overlaps train
    adaptation   unlabelled images that test-time adaptation sees (scores on them are transductive)
    test         held-out images that nothing ever sees before the score

Drawn tasks draw each split from seeds of its own. A real set's test split is cut into adaptation and test halves; its
validation split is its own or a tenth of train. Every split is made once and cached as safetensors; what is cached is
mapped into memory, not read, so a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lib.files.sets import Contents, DataError, Source, download, read_contents
from lib.files.splits import choose_rows, file_split_of
from lib.runtime.disk import atomic_path, exclusive
from lib.runtime.keys import key_of
from lib.runtime.progress import progress
from lib.vectors.mapped import in_words, new_file, read_file, remove_unfinished
from lib.vision.decoding import decode_rows, fit
from lib.vision.registry import MENDS, REGISTRY
from worlds.images import MODULES, TASK_WILD, Job, draw_splits, drawing, source_tag

__all__ = ["REGISTRY", "SPLITS", "DataError", "Split", "Task", "load_split", "load_splits", "load_task", "prepare"]

SPLITS = ("train", "validation", "adaptation", "test")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
FORMAT = 1  # part of every cached split's name: raise it when what is stored changes
REAL_FORMAT = 2  # likewise, for real sets


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
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    source: str
    note: str = ""


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 3, H, W], and labels, int64 [N]; views of a file, so they are for reading only."""

    images: Tensor
    labels: Tensor


def find_source(name: str, data_root: str = "") -> Source:
    """Where a real set lies: below `data_root` when that is given, else on the hub.

    Raises:
        DataError: if `data_root` or the set's folder in it does not exist, or the name is not known.
    """
    root, known = Path(data_root).expanduser(), REGISTRY.get(name)
    if data_root and not root.is_dir():
        raise DataError(f"data_root {root} is not a folder; name the one that holds <set>/data/train-*.parquet")
    folder = root / name
    if data_root and name and folder.name == name and folder.is_dir():
        # A copy of a hub repository may keep the files in a folder of another name, as the repository does.
        inner = [folder / "data", *([folder / known.folder] if known else [])]
        found = [path for path in inner if path.is_dir()]
        if not found:
            raise DataError(f"{folder}: no folder 'data' in it; put train-*.parquet and test-*.parquet there")
        return Source(name, folder=found[0])
    present = sorted(path.name for path in root.iterdir() if path.is_dir()) if data_root else []
    if known and data_root:
        raise DataError(f"{folder} does not exist; copy the set there, or drop '{name}' from the tasks")
    if known:
        return Source(name, download(known.hub, known.folder), known.hub)
    raise DataError(
        f"unknown task '{name}'; drawn: {', '.join(MODULES)}; real: {', '.join(REGISTRY)}; "
        + (f"in {root}: {', '.join(present) or 'nothing'}" if data_root else "for a set of your own, set data_root")
    )


def source_of(source: Source) -> str:
    """How `Task.source` names a real set's place."""
    return f"hub:{source.hub}" if source.hub else f"folder:{source.folder}"


def check_official(source: Source, contents: Contents) -> str:
    """Compare a registered set with the official one.

    Returns:
        "" if they agree, else (only for a mirror) the line that says how they differ.

    Raises:
        DataError: if the hub's copy differs at all, or a mirror has more classes than the official set.
    """
    official = REGISTRY.get(source.name)
    if official is None:
        return ""
    classes = len(contents.class_names)
    sizes = (len(contents.labels["train"]), len(contents.labels["test"]))
    if (classes, *sizes) == (official.classes, official.train, official.test):
        return ""
    found = f"{classes} of {official.classes} classes, {sizes[0]:,} training images"
    if source.hub:
        raise DataError(
            f"{source.hub} holds {classes} classes, {sizes[0]:,} training and {sizes[1]:,} test images; official are "
            f"{official.classes}, {official.train:,} and {official.test:,}; use a mirror of the official set"
        )
    if classes > official.classes:
        raise DataError(f"{source} has {classes} classes, more than the official {official.classes}; rename the folder")
    more = sizes[0] > official.train or sizes[1] > official.test
    kind = "a local variant" if more else "a local subset"
    return f"{source.name}: {kind}, {found}; scores are not comparable with published ones"


def load_task(name: str, *, data_root: str = "") -> Task:
    """Look up a task by name: drawn, registered, or any folder of the same layout below `data_root`.

    A line is printed when a local mirror holds less than the official set.

    Raises:
        DataError: for an unknown name, and for whatever is wrong with the files; see `lib.files.sets`.
    """
    if name in MODULES:
        if data_root and (Path(data_root).expanduser() / name).is_dir():
            raise DataError(f"{Path(data_root) / name} has the name of a drawn task; rename the folder")
        module = drawing(name)
        title = name.replace("_", " ").capitalize()
        return Task(name, title, tuple(module.CLASSES), tuple(module.TEMPLATES), "drawn")
    source, official = find_source(name, data_root), REGISTRY.get(name)
    contents = read_contents(source)
    note = check_official(source, contents)
    if note:
        print(note, flush=True)
    mends = MENDS if name == "eurosat" else {}
    class_names = tuple(mends.get(raw, " ".join(raw.replace("_", " ").split())) for raw in contents.class_names)
    if len(set(class_names)) < len(class_names) or not all(class_names):
        raise DataError(f"{source}: class names are empty or the same twice, written as in prompts; rename them")
    title = official.title if official else name.replace("_", " ")
    return Task(
        name, title, class_names, official.templates if official else DEFAULT_TEMPLATES, source_of(source), note
    )


def load_split(
    task: Task,
    split: str,
    *,
    sizes: Mapping[str, int],
    image_size: int,
    data_root: str = "",
    cache: Path,
    seed: int = 0,
) -> Split:
    """One split of a task, from the cache, or made and cached.

    Args:
        task: from `load_task`.
        split: one of `SPLITS`.
        sizes: split -> images: how many are drawn, or at most taken from a real set, each class by its share. Name all
            splits, not only the wanted one: where validation is cut from train, its size decides what is left.
        image_size: side of the images in pixels: shorter side resized (bicubic), centre cropped.
        data_root: as it was given to `load_task`.
        cache: folder for the cached splits; made when needed.
        seed: of drawing, of halves and of subsets; leave it at 0 to compare seeds of training on the same images.

    Returns:
        The images and labels, shuffled.

    Raises:
        DataError: for a wrong split name and for whatever is wrong with the files; see `lib.files.sets`.
    """
    prepare([task], splits=[split], sizes=sizes, image_size=image_size, data_root=data_root, cache=cache, seed=seed)
    path = _cached(task, split, sizes, image_size, data_root, cache, seed)
    try:
        tensors = read_file(path)
    except SafetensorError as error:
        raise DataError(f"cached images {path} cannot be read ({error}); delete the file") from error
    return Split(tensors["images"], tensors["labels"])


def load_splits(tasks: Sequence[Task], split: str, **options: object) -> dict[str, Split]:
    """One split of several tasks, by name; says in one line what reading real sets cost when nothing was decoded.

    Args:
        tasks: from `load_task`.
        split: one of `SPLITS`.
        options: the keyword arguments of `load_split`.
    """
    decoded = prepare(tasks, splits=[split], **options)
    started = time.monotonic()
    loaded = {task.name: load_split(task, split, **options) for task in tasks}
    real = [loaded[task.name].images for task in tasks if task.source != "drawn"]
    if real and not decoded:
        count, size = sum(len(images) for images in real), in_words(sum(images.nbytes for images in real))
        print(f"{split}: {count:,} images of {len(real)} sets mapped in {time.monotonic() - started:.2f} s, {size}")
    return loaded


def prepare(
    tasks: Sequence[Task],
    *,
    splits: Sequence[str] = SPLITS,
    sizes: Mapping[str, int],
    image_size: int,
    data_root: str = "",
    cache: Path,
    seed: int = 0,
) -> bool:
    """Make the missing splits of some tasks and cache them, with one pair of drawing processes for all of them.

    The arguments are those of `load_split`; calling this first only saves time.

    Returns:
        Whether images of real sets had to be decoded.
    """
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"unknown split '{split}'; the splits are {', '.join(SPLITS)}")
    waiting: list[tuple[Job, Path]] = []
    decoded = False
    for task in tasks:
        paths = {split: _cached(task, split, sizes, image_size, data_root, cache, seed) for split in splits}
        missing = {split: path for split, path in paths.items() if not path.is_file()}
        if task.source == "drawn":
            waiting += [(Job(task.name, split, sizes[split], seed), path) for split, path in missing.items()]
        elif missing:
            with exclusive(cache / "splits"):  # one process at a time: each of them uses all cores
                _read(task, find_source(task.name, data_root), missing, sizes, image_size, seed)
            decoded = True
    drawn = draw_splits([job for job, _ in waiting])
    for (_, path), (images, labels) in zip(waiting, drawn, strict=True):
        if image_size != images.shape[-1]:
            images = np.stack([fit(Image.fromarray(image.transpose(1, 2, 0)), image_size) for image in images])
        _save(path, images, labels)
    return decoded


def _cached(
    task: Task, split: str, sizes: Mapping[str, int], image_size: int, data_root: str, cache: Path, seed: int
) -> Path:
    """Where a split is cached: the name holds a hash of everything that determines the images."""
    determines: dict[str, object] = {"format": FORMAT, "size": sizes.get(split), "side": image_size, "seed": seed}
    if task.source == "drawn":
        if not determines["size"]:
            raise DataError(f"{task.name}: sizes names no number of images to draw for split '{split}'")
        determines |= {"source": source_tag(task.name), "wild": TASK_WILD}
    else:
        source = find_source(task.name, data_root)
        if task.source != source_of(source):
            raise DataError(f"{task.name} was loaded from {task.source}, not from {source}; pass the same data_root")
        determines |= {"source": source.fingerprint(), "format": REAL_FORMAT}
        determines |= {"validation": sizes.get("validation")} if split == "train" else {}
    return cache / "splits" / f"{task.name}-{split}-{key_of(determines)}.safetensors"


def _read(
    task: Task, source: Source, missing: Mapping[str, Path], sizes: Mapping[str, int], image_size: int, seed: int
) -> None:
    """Decode some splits of a real set into files."""
    contents = read_contents(source)
    for split, path in missing.items():
        if path.is_file():  # made by another process while this one waited
            continue
        rows, file_split = choose_rows(contents, source.name, split, sizes, seed), file_split_of(contents, split)
        if not rows.size:
            count = len(contents.labels[file_split])
            raise DataError(f"{source}: {count} images of '{file_split}' are too few to make split '{split}'; add some")
        remove_unfinished(path)
        labels = contents.labels[file_split][rows]
        _decode(path, source, file_split, rows, labels, image_size, f"decoding {task.title}, {split}")


def _decode(
    path: Path, source: Source, file_split: str, rows: np.ndarray, labels: np.ndarray, side: int, label: str
) -> None:
    """Decode rows into a file that holds labels, images and a hash of the images."""
    shape = (len(rows), 3, side, side)
    hashes: list[bytes] = [b""] * len(rows)
    size = in_words(np.prod(shape, dtype=np.int64))
    with new_file(path, {"labels": (torch.int64, shape[:1]), "images": (torch.uint8, shape)}) as file:
        file.write("labels", 0, labels)

        def keep(place: int, image: np.ndarray) -> None:
            file.write("images", place, image)
            hashes[place] = hashlib.sha256(np.ascontiguousarray(image)).digest()

        with closing(decode_rows(source, file_split, rows, side, keep)) as done:
            for _ in progress(done, label, total=len(rows), postfix=lambda: f"{size}, mapped from now on"):
                pass
        file.digests["images"] = hashlib.sha256(b"".join(hashes)).hexdigest()


def _save(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        save_file(
            {"images": torch.from_numpy(np.ascontiguousarray(images)), "labels": torch.from_numpy(labels)}, temporary
        )

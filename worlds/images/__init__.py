"""The eight procedural image tasks of the tiny profile, one in the spirit of each of the paper's.

Every image follows from names (task, split, seed, chunk) alone, so two splits never share an image and the result
is the same whether one process draws or two. This package needs no torch: a worker process starts in a moment.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from lib.runtime.names import named_rng
from lib.runtime.processes import cores, end_with_parent

MODULES: dict[str, str] = {  # task -> module, in the order of the paper's eight
    name: f"{__name__}.{name}"
    for name in (
        "scenes",
        "vehicles",
        "aerial",
        "land_cover",
        "street_digits",
        "traffic_signs",
        "handwritten_digits",
        "textures",
    )
}
TASK_WILD = 0.05  # how widely the tasks' own images vary; the web that the tiny CLIP learns from is wilder
CHUNK = 64  # images per random stream: what a worker draws at a time
WORTH_WORKERS = 600  # below this many images, starting worker processes takes longer than drawing


def __getattr__(name: str) -> dict[str, ModuleType]:
    """`DRAWN`, task name -> module, made at its first use: a worker process imports one task, not eight."""
    if name == "DRAWN":
        return {task: drawing(task) for task in MODULES}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def drawing(task: str) -> ModuleType:
    """The module that draws a task: CLASSES, ALIASES, TEMPLATES and `draw(rng, label, wild)`.

    `draw` makes one picture, uint8 [32, 32, 3]: of the class `CLASSES[label]`, from the source of randomness `rng` (the
    same state draws the same picture); `wild`, 0 to 1, is how far it may stray from a plain one in surroundings,
    framing, light and camera (`TASK_WILD` in the tasks, up to 0.7 in the web).

    Raises:
        KeyError: if there is no such task.
    """
    return importlib.import_module(MODULES[task])


@dataclass(frozen=True)
class Job:
    """One set of images to draw.

    Attributes:
        task: one of `MODULES`.
        split: name of the stream; another name means other images. The study's splits, or e.g. "web".
        count: number of images.
        seed: another seed, other images.
        wild: 0..1, how widely the images vary beyond what their class says.
    """

    task: str
    split: str
    count: int
    seed: int = 0
    wild: float = TASK_WILD

    def labels(self) -> np.ndarray:
        """Balanced class numbers in random order, int64 [count]: no class has over one image more than another."""
        classes = len(drawing(self.task).CLASSES)
        return named_rng(self.task, self.split, self.seed, "labels").permutation(np.arange(self.count) % classes)


def draw_chunk(module: str, names: tuple[str | int, ...], labels: np.ndarray, wild: float) -> np.ndarray:
    """The images of some labels, drawn one after the other from one named stream: uint8 [len(labels), 3, 32, 32]."""
    draw, rng = importlib.import_module(module).draw, named_rng(*names)
    images = [draw(rng, int(label), wild) for label in labels]
    for label, image in zip(labels, images, strict=True):
        if image.shape != (32, 32, 3) or image.dtype != np.uint8:
            raise ValueError(f"{module}.draw gave {image.dtype} {image.shape} for label {label}, not uint8 (32, 32, 3)")
    return np.stack(images).transpose(0, 3, 1, 2).copy()


def draw_splits(jobs: Sequence[Job], workers: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw several sets at once, so that the worker processes are started only once.

    Args:
        jobs: what to draw.
        workers: number of processes; 1 draws in this one. By default two (or one on a single core) when there is
            enough to draw. Where no process can be started, this one draws. The images are the same in any case.

    Returns:
        Per job: images, uint8 [count, 3, 32, 32], and labels, int64 [count].
    """
    if workers is None:
        workers = min(2, cores()) if sum(job.count for job in jobs) >= WORTH_WORKERS else 1
    labels = [job.labels() for job in jobs]
    pieces = [
        (MODULES[job.task], (job.task, job.split, job.seed, start // CHUNK), drawn[start : start + CHUNK], job.wild)
        for job, drawn in zip(jobs, labels, strict=True)
        for start in range(0, job.count, CHUNK)
    ]
    chunks = None
    if workers > 1 and len(pieces) > 1:
        try:
            context = multiprocessing.get_context("spawn")  # safe beside torch's threads, unlike fork
            with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
                chunks = list(pool.map(draw_chunk, *zip(*pieces, strict=True)))
        except (BrokenProcessPool, OSError):
            chunks = None  # e.g. a sandbox without processes, or a script without an `if __name__ == "__main__"`
    if chunks is None:
        chunks = [draw_chunk(*piece) for piece in pieces]
    results, place = [], 0
    for job, drawn in zip(jobs, labels, strict=True):
        used = -(-job.count // CHUNK)
        mine = chunks[place : place + used]
        results.append((np.concatenate(mine) if mine else np.empty((0, 3, 32, 32), np.uint8), drawn))
        place += used
    return results


def draw_split(
    task: str, split: str, count: int, seed: int = 0, wild: float = TASK_WILD, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one set of images of a task; see `Job` and `draw_splits`.

    Returns:
        Images, uint8 [count, 3, 32, 32], and labels, int64 [count], balanced and shuffled.

    Raises:
        KeyError: if there is no such task.
    """
    return draw_splits([Job(task, split, count, seed, wild)], workers)[0]

"""The captioned "web" that the tiny CLIP is pre-trained on: the tasks' concepts, wilder pictures, careless captions.

A web picture shows the same concepts as the tasks but with more nuisance. Its caption rarely uses the class name
that a task's prompt will use: mostly another wording, sometimes nothing specific, sometimes something wrong. So the
features become good while the prompts fit badly, which is the situation of CLIP on special data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.runtime.names import named_rng
from worlds.images import DRAWN, Job, draw_splits

PHRASES = (
    "{}", "my {}", "look at this {}", "{} again", "a {} i saw today", "{} for sale", "nice {}", "the {} near our house",
    "{} seen on holiday", "picture of {}", "old {}", "{} number 7", "someone's {}", "{} , no filter", "is this a {}",
)  # fmt: skip
NOTHING = (
    "a nice picture", "holiday 2019", "my best shot", "no idea what this is", "test image", "from my phone",
    "look at the colours", "uploaded by a friend", "untitled",
)  # fmt: skip
WILDNESS = (0.15, 0.4, 0.7)  # how freely the pictures are drawn, in equal parts


def caption(rng: np.random.Generator, family: str, label: int, class_name: float, nothing: float, wrong: float) -> str:
    """Word a careless caption.

    Args:
        rng: source of randomness.
        family: a task's name.
        label: the class shown.
        class_name: probability that the caption uses the class name instead of another wording.
        nothing: probability that it says nothing about the content.
        wrong: probability that it names another class of the same family.
    """
    module = DRAWN[family]
    if rng.random() < nothing:
        return NOTHING[rng.integers(len(NOTHING))]
    if rng.random() < wrong:
        label = int(rng.integers(len(module.CLASSES)))
    name = module.CLASSES[label]
    if rng.random() >= class_name:
        name = module.ALIASES[name][rng.integers(len(module.ALIASES[name]))]
    return PHRASES[rng.integers(len(PHRASES))].format(name)


def web_jobs(families: Sequence[str], count: int, seed: int) -> list[Job]:
    """What to draw of the web world: equally many pictures of some tasks' concepts in each degree of wildness."""
    each = count // (len(families) * len(WILDNESS))
    return [Job(family, f"web {wild}", each, seed, wild) for family in families for wild in WILDNESS]


def draw_web(count: int, seed: int, *, class_name: float, nothing: float, wrong: float) -> tuple[np.ndarray, list[str]]:
    """Draw captioned pictures of the web world, equally many of every task's concepts.

    Args:
        count: number of pictures, rounded down to a multiple of tasks times degrees of wildness.
        seed: names the world.
        class_name: see `caption`.
        nothing: see `caption`.
        wrong: see `caption`.

    Returns:
        uint8 [N, 3, 32, 32] and N captions.
    """
    jobs = web_jobs(list(DRAWN), count, seed)
    rng = named_rng("captions", seed)
    images, captions = [], []
    for job, (pictures, labels) in zip(jobs, draw_splits(jobs), strict=True):
        images.append(pictures)
        captions += [caption(rng, job.task, int(label), class_name, nothing, wrong) for label in labels]
    return np.concatenate(images), captions

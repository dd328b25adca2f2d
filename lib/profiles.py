"""Profiles: a model family, its tasks and its budgets under one name."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import get_type_hints

DRAWN_TASKS = (
    "scenes vehicles aerial land_cover street_digits traffic_signs handwritten_digits textures"  # the paper's order
)
REAL_TASKS = "sun397 stanford_cars resisc45 eurosat cifar10 gtsrb mnist dtd"  # CIFAR-10 stands in SVHN's place


# What a notebook can be told besides the fields of a profile, and of which type.
SETTINGS = {"profile": str, "seed": int, "data_root": str, "device": str, "precision": str}
# Fields that are one of a few words.
CHOICES = {
    "head": ("text", "class-mean"),
    "final_mask": ("sample", "hard", "expected"),
    "ablation_grid": ("short", "whole"),
}


@dataclass(frozen=True)
class Profile:
    """Everything that determines a study except its seed and the device.

    Attributes:
        name: the profile's name.
        model: "" for the shipped tiny CLIP, else a folder in open_clip's format or an open_clip model name.
        pretrained: weights for a model name, e.g. "openai".
        tasks: names of the tasks, separated by spaces.
        head: "text" (frozen prompt embeddings) or "class-mean" (frozen mean features of the training images).
        head_scale: factor between cosine similarity and logit in every head (CLIP: 100). The tiny CLIP's own, 12.5, is
            what careless captions taught it; with it no prediction can be sure, so no expert either.
        train_images: training images per task: how many are drawn, or at most taken from a real set.
        validation_images: likewise, for choosing hyperparameters.
        adaptation_images: likewise, unlabelled, for test-time adaptation.
        test_images: likewise, held out.
        fine_tuning_steps: optimiser steps per expert.
        fine_tuning_batch: images per step.
        fine_tuning_rate: peak learning rate of AdamW (linear warm-up, cosine decay).
        scaling_factor: of Task Arithmetic and Ties-Merging (paper: 0.3).
        adaptation_batch: images per task and step (paper: 16).
        mask_steps: steps of mask learning (paper: 2000).
        mask_rate: Adam's learning rate for the logits (paper: 1e-3).
        inner_rate: Adam's learning rate for the inner level's coefficients (paper: 1).
        temperature: of the Concrete mask (paper: 0.5).
        adaptation_steps: steps of test-time adaptation (paper: 1000).
        adaptation_rate: Adam's learning rate for the coefficients (paper: 1e-3).
        final_mask: "sample" (the paper's), "hard" or "expected", see `lib.protocol`.
        curve_images: held-out images per task on which curves of accuracy are scored.
        evaluate_every: steps between two scores on such a curve.
        ablation_steps: steps of every phase in the ablation notebooks (08, 10 to 13).
        ablation_grid: "short" runs the few most telling points of every ablation, "whole" all of them.
        full: name of the profile with the full budgets, whose saved tables the results notebooks show; "" for this one.
    """

    name: str
    model: str = ""
    pretrained: str = ""
    tasks: str = DRAWN_TASKS
    head: str = "text"
    head_scale: float = 40.0
    train_images: int = 4000
    validation_images: int = 250
    adaptation_images: int = 500
    test_images: int = 500
    fine_tuning_steps: int = 420
    fine_tuning_batch: int = 64
    fine_tuning_rate: float = 1e-3
    scaling_factor: float = 0.3
    adaptation_batch: int = 16
    mask_steps: int = 80
    mask_rate: float = 3e-3
    inner_rate: float = 1e-2
    temperature: float = 0.5
    adaptation_steps: int = 80
    adaptation_rate: float = 3e-3
    final_mask: str = "sample"
    curve_images: int = 125
    evaluate_every: int = 40
    ablation_steps: int = 20
    ablation_grid: str = "short"
    full: str = ""

    @property
    def label(self) -> str:
        """The name and what differs from that profile, e.g. `tiny+mask_steps=50`: where results are filed."""
        original = PROFILES[self.name]
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(original, field.name)
        }
        if "tasks" in changed:
            changed["tasks"] = ",".join(self.task_names)
        return self.name + "".join(f"+{name}={value}" for name, value in changed.items()).replace("/", "_")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, one by one."""
        return tuple(self.tasks.replace(",", " ").split())

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split."""
        return {
            "train": self.train_images,
            "validation": self.validation_images,
            "adaptation": self.adaptation_images,
            "test": self.test_images,
        }


# `make reproduce`: the same model, tasks and experts as "tiny", more steps, every point of every ablation.
FULL = {
    "mask_steps": 500,
    "adaptation_steps": 300,
    "evaluate_every": 50,
    "ablation_steps": 60,
    "ablation_grid": "whole",
}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("tiny", full="tiny-full"),
        Profile("tiny-full", **FULL),
        Profile(
            "tiny-real",
            tasks=REAL_TASKS,
            head="class-mean",
            train_images=6000,
            fine_tuning_steps=500,
            mask_steps=200,
            adaptation_steps=200,
        ),
    )
}


def closest(name: str, known: tuple[str, ...]) -> str:
    """A hint such as " (did you mean 'tiny'?)", or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def get_profile(name: str, **overrides: object) -> Profile:
    """Look up a profile and change some of its fields.

    Raises:
        ValueError: for an unknown profile, an unknown field, a value of the wrong type or out of range; the message
            names what is known.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile '{name}'{closest(name, tuple(PROFILES))}; known: {', '.join(PROFILES)}")
    hints = get_type_hints(Profile)
    fields = tuple(field.name for field in dataclasses.fields(Profile) if field.name != "name")
    for field, value in overrides.items():
        if field not in fields:
            raise ValueError(f"unknown parameter '{field}'{closest(field, fields)}; known: {', '.join(fields)}")
        if not has_type(value, hints[field]):
            raise ValueError(
                f"parameter '{field}' is {value!r} ({type(value).__name__}), expected {hints[field].__name__}"
            )
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"parameter '{field}' is {value}, expected a positive number")
    profile = dataclasses.replace(PROFILES[name], **overrides)
    for field, allowed in CHOICES.items():
        if getattr(profile, field) not in allowed:
            words = " or ".join(f"'{choice}'" for choice in allowed)
            raise ValueError(f"parameter '{field}' is '{getattr(profile, field)}', expected {words}")
    if not profile.task_names or len(set(profile.task_names)) < len(profile.task_names):
        raise ValueError(f"parameter 'tasks' is '{profile.tasks}': name at least one task, none of them twice")
    return profile


def has_type(value: object, expected: type) -> bool:
    """Whether a notebook parameter has its type; a whole number may stand for a float, but True is no number."""
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def typed(text: str) -> bool | int | float | str | None:
    """The value that papermill's `-p` reads from `text`: True, False, None, a whole number, a number, else text."""
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Profiles: a model family, its tasks and its budgets under one name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, get_type_hints

from lib.files.lineages import OWN, lineage_of, pattern_of
from lib.runtime.parameters import closest, has_type

DRAWN_TASKS = (
    "scenes vehicles aerial land_cover street_digits traffic_signs handwritten_digits textures"  # the paper's order
)
REAL_TASKS = "sun397 stanford_cars resisc45 eurosat cifar10 gtsrb mnist dtd"  # CIFAR-10 stands in SVHN's place
PAPER_TASKS = "sun397 stanford_cars resisc45 eurosat svhn gtsrb mnist dtd"
GLUE_TASKS = "cola mnli mrpc qnli qqp rte sst2 stsb"
DRAWN_TEXT_TASKS = "acceptability inference paraphrases answering duplicates entailment sentiment similarity"

# What a notebook can be told besides the fields of a profile, and of which type.
SETTINGS = {"profile": str, "seed": int, "data_root": str, "device": str, "precision": str}
# Fields that are one of a few words.
CHOICES = {
    "head": ("text", "class-mean", "linear-probe"),
    "task_vector": ("weights", "adapter"),
    "final_mask": ("sample", "hard", "expected"),
    "ablation_grid": ("short", "whole"),
    "task_vector_dtype": ("fp32", "bf16", "mapped"),
}
MAY_BE_ZERO = ("image_size", "lora_dropout", "micro_batch")  # every other number is positive
SPLITS = ("train", "validation", "adaptation", "test")


@dataclass(frozen=True)
class Profile:
    """Everything that determines a study except its seed and the device; what vision and language have in common.

    Attributes:
        name: the profile's name.
        model: "" for the model that the study ships, else a folder or the name of a model.
        tasks: names of the tasks, separated by spaces.
        fine_tuning_steps: optimiser steps per expert.
        fine_tuning_batch: examples per step.
        fine_tuning_rate: peak learning rate of AdamW (linear warm-up, cosine decay).
        kept_steps: after how many of these steps experts are kept as well, unfinished; numbers separated by spaces.
        scaling_factor: of Task Arithmetic and Ties-Merging (paper: 0.3).
        adaptation_batch: examples per task and step (paper: 16 images, 8 texts).
        mask_steps: steps of mask learning (paper: 2000).
        mask_rate: Adam's learning rate for the logits (paper: 1e-3, for LoRA 1e-4).
        inner_rate: Adam's learning rate for the inner level's coefficients (paper: 1, for LoRA 0.1).
        temperature: of the Concrete mask (paper: 0.5).
        adaptation_steps: steps of test-time adaptation (paper: 1000).
        adaptation_rate: Adam's learning rate for the coefficients (paper: 1e-3, for LoRA 1e-4).
        final_mask: "sample" (the paper's), "hard" or "expected", see `lib.adaptation.protocol`.
        evaluate_every: steps between two scores on a curve of accuracy.
        task_vector_dtype: what adaptation keeps of the task vectors: "fp32"; "bf16", half the memory, rounded to 8
            bits and added up in float32; or "mapped", float32 in a file from where a step reads them.
        micro_batch: at most so many examples of all tasks go through the model together, but at least those of one
            task; 0 lets the objective choose. The gradient is the same, the activations take less memory.
        full: name of the profile with the full budgets, whose saved tables the results notebooks show; "" for this one.
    """

    family: ClassVar[str]
    default: ClassVar[str]  # the profile that needs nothing but what the study ships

    name: str
    model: str = ""
    tasks: str = ""
    fine_tuning_steps: int = 420
    fine_tuning_batch: int = 64
    fine_tuning_rate: float = 1e-3
    kept_steps: str = ""
    scaling_factor: float = 0.3
    adaptation_batch: int = 16
    mask_steps: int = 80
    mask_rate: float = 3e-3
    inner_rate: float = 1e-2
    temperature: float = 0.5
    adaptation_steps: int = 80
    adaptation_rate: float = 3e-3
    final_mask: str = "sample"
    evaluate_every: int = 40
    task_vector_dtype: str = "fp32"
    micro_batch: int = 0
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
        label = self.name + "".join(f"+{name}={value}" for name, value in changed.items())
        return label.replace("/", "_").replace("{", "").replace("}", "")  # braces mean something to Snakemake

    @property
    def lineage(self) -> str:
        """Whose fine-tuning the experts come from: "own", or as in `lib.files.lineages`."""
        return OWN

    @property
    def kept(self) -> tuple[int, ...]:
        """`kept_steps` as numbers."""
        return tuple(int(step) for step in self.kept_steps.replace(",", " ").split())

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, one by one."""
        return tuple(self.tasks.replace(",", " ").split())


@dataclass(frozen=True)
class VisionProfile(Profile):
    """Image encoders: CLIP's, or any that timm builds (`model` is then "timm:NAME", see `lib.vision.backbones`).

    Attributes:
        pretrained: weights for a model name: "openai"; for timm "hub", a safetensors file or a folder with one.
        image_size: side of the images in pixels; 0 takes the model's own.
        head: "text" (frozen prompt embeddings), "class-mean" (frozen mean features of the training images) or
            "linear-probe" (frozen directions of a logistic regression on these features).
        head_scale: factor between cosine similarity and logit in every head (CLIP: 100). The tiny CLIP's own, 12.5, is
            what careless captions taught it; with it no prediction can be sure, so no expert either.
        experts: where finished experts lie, a folder, a file or a name on the hub with {task} in it (the lineage's own
            name of the set), or "hugging-face" for that lineage's repositories; "" trains them here.
        train_images: training images per task: how many are drawn, or at most taken from a real set.
        validation_images: likewise, for choosing hyperparameters.
        adaptation_images: likewise, unlabelled, for test-time adaptation.
        test_images: likewise, held out.
        curve_images: held-out images per task on which curves of accuracy are scored.
        ablation_steps: steps of every phase in the ablation notebooks (08, 10 to 13).
        ablation_grid: "short" runs the few most telling points of every ablation, "whole" all of them.
    """

    family = "vision"
    default = "tiny"

    tasks: str = DRAWN_TASKS
    pretrained: str = ""
    image_size: int = 0
    head: str = "text"
    head_scale: float = 40.0
    experts: str = ""
    train_images: int = 4000
    validation_images: int = 250
    adaptation_images: int = 500
    test_images: int = 500
    curve_images: int = 125
    ablation_steps: int = 20
    ablation_grid: str = "short"

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split."""
        return {split: getattr(self, f"{split}_images") for split in SPLITS}

    @property
    def curve_size(self) -> int:
        """Examples per task on which curves are scored."""
        return self.curve_images

    @property
    def lineage(self) -> str:
        """Whose fine-tuning the experts come from: "own", "hugging-face" or "task-vectors"."""
        return lineage_of(self.experts, self.task_names)


@dataclass(frozen=True)
class RealProfile(VisionProfile):
    """Real images and a real backbone: nothing of it is shipped, so it runs by itself (`make real`)."""

    family = "real"
    default = "deit-tiny"


@dataclass(frozen=True)
class LanguageProfile(Profile):
    """T5 with LoRA adapters (https://arxiv.org/abs/2106.09685) on text-to-text tasks.

    Attributes:
        task_vector: "weights" merges in the space of the adapted weights, tau = alpha / rank * B A, as the authors'
            scripts do; "adapter" in the space of the adapters' own parameters A and B.
        lora_rank: r (paper: 16).
        lora_alpha: the product B A is scaled by alpha / r (the authors: 32).
        lora_targets: which linear layers have an adapter, by the last part of their name (the authors: "q v").
        lora_dropout: in front of A while training (the authors: 0.1).
        adapters: where finished experts lie, a folder or a name on the hub with {task} in it; "" trains them here.
        max_length: longer prompts are cut to as many tokens.
        train_texts: training examples per task: how many are drawn, or at most taken from a real set.
        validation_texts: likewise, for choosing hyperparameters.
        adaptation_texts: likewise, unlabelled, for test-time adaptation.
        test_texts: likewise, held out.
        curve_texts: held-out examples per task on which curves of accuracy are scored.
    """

    family = "language"
    default = "tiny-t5"

    tasks: str = DRAWN_TEXT_TASKS
    task_vector: str = "weights"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: str = "q v"
    lora_dropout: float = 0.0
    adapters: str = ""
    max_length: int = 128
    train_texts: int = 4000
    validation_texts: int = 250
    adaptation_texts: int = 500
    test_texts: int = 500
    curve_texts: int = 125

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split."""
        return {split: getattr(self, f"{split}_texts") for split in SPLITS}

    @property
    def curve_size(self) -> int:
        """Examples per task on which curves are scored."""
        return self.curve_texts

    @property
    def lineage(self) -> str:
        """Whose fine-tuning the experts come from: "own", or as published figures call adapters, e.g. "lora-16"."""
        return f"lora-{self.lora_rank}" if self.adapters else OWN


# `make reproduce`: the same model, tasks and experts as "tiny", more steps, every point of every ablation.
FULL = {
    "mask_steps": 500,
    "adaptation_steps": 300,
    "evaluate_every": 50,
    "ablation_steps": 60,
    "ablation_grid": "whole",
}

# The paper's protocol for CLIP. Fine-tuning as for the original task vectors, https://arxiv.org/abs/2212.04089: 2000
# steps of 128 images, AdamW at 1e-5, 200 steps of warm-up (our tenth), cosine decay.
CLIP = {
    "tasks": PAPER_TASKS,
    "pretrained": "openai",
    "head_scale": 100.0,
    "fine_tuning_steps": 2000,
    "fine_tuning_batch": 128,
    "fine_tuning_rate": 1e-5,
    "adaptation_batch": 16,
    "mask_steps": 2000,
    "mask_rate": 1e-3,
    "inner_rate": 1.0,
    "adaptation_steps": 1000,
    "adaptation_rate": 1e-3,
    "evaluate_every": 200,
    "train_images": 1_000_000,
    "validation_images": 1000,
    "adaptation_images": 1_000_000,
    "test_images": 1_000_000,
    "curve_images": 500,
    "ablation_steps": 200,
    "ablation_grid": "whole",
}

TEXT = {
    "fine_tuning_batch": 32,
    "fine_tuning_steps": 400,
    "adaptation_batch": 8,
    "curve_texts": 60,
}
# The paper's protocol for Flan-T5, as far as the authors' scripts say it.
FLAN = {
    "tasks": GLUE_TASKS,
    "fine_tuning_steps": 2000,
    "fine_tuning_batch": 16,
    "fine_tuning_rate": 4e-5,
    "lora_dropout": 0.1,
    "adaptation_batch": 8,
    "mask_steps": 2000,
    "mask_rate": 1e-4,
    "inner_rate": 0.1,
    "adaptation_steps": 1000,
    "adaptation_rate": 1e-4,
    "evaluate_every": 200,
    "max_length": 512,
    "train_texts": 1_000_000,
    "validation_texts": 1000,
    "adaptation_texts": 1_000_000,
    "test_texts": 1_000_000,
    "curve_texts": 500,
}

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        VisionProfile("tiny", full="tiny-full"),
        VisionProfile("tiny-full", **FULL),
        VisionProfile(
            "tiny-real",
            tasks=REAL_TASKS,
            head="class-mean",
            train_images=6000,
            fine_tuning_steps=500,
            mask_steps=200,
            adaptation_steps=200,
        ),
        VisionProfile("clip-vit-b-32", model="ViT-B-32", **CLIP),
        VisionProfile("clip-vit-b-16", model="ViT-B-16", **CLIP),
        VisionProfile("clip-vit-l-14", model="ViT-L-14", **CLIP),
        RealProfile(
            "deit-tiny",
            model="timm:deit_tiny_patch16_224",
            pretrained="hub",
            image_size=96,
            tasks=REAL_TASKS,
            head="linear-probe",
            head_scale=20.0,
            train_images=6000,
            fine_tuning_steps=2000,
            fine_tuning_batch=32,
            fine_tuning_rate=1e-4,
            kept_steps="60 200 600",
            adaptation_batch=8,
            test_images=300,
        ),
        LanguageProfile("tiny-t5", **TEXT),
        LanguageProfile("tiny-t5-real", tasks=GLUE_TASKS, max_length=256, **TEXT),
        LanguageProfile("flan-t5-base", model="google/flan-t5-base", **FLAN),
        LanguageProfile("flan-t5-large", model="google/flan-t5-large", **FLAN),
    )
}


def family_of(notebook: str) -> str:
    """Which profiles a notebook runs with, by its number: 15 is on real images, 20 to 29 are on language."""
    if notebook.startswith("15"):
        return RealProfile.family
    return LanguageProfile.family if notebook.startswith("2") else VisionProfile.family


def field_names(kind: type[Profile]) -> tuple[str, ...]:
    """What can be changed in a profile of a kind."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.name != "name")


def get_profile(name: str, **overrides: object) -> Profile:
    """Look up a profile and change some of its fields.

    Raises:
        ValueError: for an unknown profile, an unknown field, a value of the wrong type or out of range; the message
            names what is known.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile '{name}'{closest(name, tuple(PROFILES))}; known: {', '.join(PROFILES)}")
    kind = type(PROFILES[name])
    hints, fields = get_type_hints(kind), field_names(kind)
    for field, value in overrides.items():
        if field not in fields:
            raise ValueError(f"unknown parameter '{field}'{closest(field, fields)}; known: {', '.join(fields)}")
        if not has_type(value, hints[field]):
            raise ValueError(
                f"parameter '{field}' is {value!r} ({type(value).__name__}), expected {hints[field].__name__}"
            )
        if isinstance(value, (int, float)) and not (value > 0 or (value == 0 and field in MAY_BE_ZERO)):
            raise ValueError(f"parameter '{field}' is {value}, expected a positive number")
    profile = dataclasses.replace(PROFILES[name], **overrides)
    for field, allowed in CHOICES.items():
        if getattr(profile, field, allowed[0]) not in allowed:
            words = " or ".join(f"'{choice}'" for choice in allowed)
            raise ValueError(f"parameter '{field}' is '{getattr(profile, field)}', expected {words}")
    words = profile.kept_steps.replace(",", " ").split()
    if odd := [word for word in words if not (word.isdecimal() and 0 < int(word) < profile.fine_tuning_steps)]:
        below = f"expected numbers below fine_tuning_steps={profile.fine_tuning_steps}"
        raise ValueError(f"parameter 'kept_steps' names '{odd[0]}', {below}")
    if experts := getattr(profile, "experts", ""):
        pattern_of(experts, profile.model)
    if not profile.task_names or len(set(profile.task_names)) < len(profile.task_names):
        raise ValueError(f"parameter 'tasks' is '{profile.tasks}': name at least one task, none of them twice")
    return profile

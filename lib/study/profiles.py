"""Profiles: a model family, its tasks and its budgets under one name.

`data/profiles.toml` has their values and says what each means; here is declared what a value may be.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from lib.files.lineages import GIVEN, OWN, PUBLISHED, check_pattern, lineage_of, pattern_of
from lib.runtime.disk import ROOT
from lib.runtime.names import shortened
from lib.runtime.parameters import STRICT, checked, closest, refuse_unknown

FILE = ROOT / "data" / "profiles.toml"
LABEL_BYTES = 56  # of a label; with what `lib.study.inputs.label_of` adds they are 100, and file systems take 255
SPLITS = ("train", "validation", "adaptation", "test")

Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """What a notebook can be told besides the fields of its profile.

    Attributes:
        profile: the profile's name.
        seed: names every random choice of fine-tuning and adaptation.
        data_root: folder of a local mirror of data sets, or "" for the hub.
        device: see `lib.runtime.device.choose_runtime`.
        precision: likewise.
    """

    profile: str
    seed: CountOrZero = 0
    data_root: str = ""
    device: str = "auto"
    precision: str = "auto"


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(frozen=True, config=STRICT)
class Profile:
    """Everything that determines a study except its seed and the device; what vision and language have in common.

    What each field means: `[shared.any]` in data/profiles.toml.
    """

    family: ClassVar[str]
    default: ClassVar[str]  # the profile that needs nothing but what the study ships
    unit: ClassVar[str]  # what there is a number of in each split

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    model: str
    tasks: str
    fine_tuning_steps: Count
    fine_tuning_batch: Count
    fine_tuning_rate: Rate
    kept_steps: str
    scaling_factor: Rate
    adaptation_batch: Count
    mask_steps: Count
    mask_rate: Rate
    inner_rate: Rate
    temperature: Rate
    adaptation_steps: Count
    adaptation_rate: Rate
    final_mask: Literal["sample", "binary", "expected", "hard"]
    evaluate_every: Count
    task_vector_dtype: Literal["fp32", "bf16", "mapped"]
    micro_batch: CountOrZero
    full: str

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: str) -> str:
        names = tasks.replace(",", " ").split()
        if not names or len(set(names)) < len(names):
            raise ValueError(f"parameter 'tasks' is '{tasks}': name at least one task, none of them twice")
        return tasks

    @model_validator(mode="after")
    def _kept_before_the_end(self) -> Profile:
        words = self.kept_steps.replace(",", " ").split()
        if odd := [word for word in words if not (word.isdecimal() and 0 < int(word) < self.fine_tuning_steps)]:
            below = f"expected numbers below fine_tuning_steps={self.fine_tuning_steps}"
            raise ValueError(f"parameter 'kept_steps' names '{odd[0]}', {below}")
        return self

    @property
    def label(self) -> str:
        """The name and what differs from that profile, e.g. `tiny+mask_steps=50`; much of it as a hash."""
        original = PROFILES[self.name]
        changed = {name: value for name, value in vars(self).items() if value != getattr(original, name)}
        if "tasks" in changed:
            changed["tasks"] = ",".join(self.task_names)
        label = self.name + "".join(f"+{name}={value}" for name, value in changed.items())
        label = label.replace("/", "_").replace("{", "").replace("}", "")  # braces mean something to Snakemake
        return shortened(label, LABEL_BYTES)

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

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split and task."""
        return {split: getattr(self, f"{split}_{self.unit}") for split in SPLITS}

    @property
    def curve_size(self) -> int:
        """Examples per task on which curves are scored."""
        return getattr(self, f"curve_{self.unit}")


@dataclass(frozen=True, config=STRICT)
class VisionProfile(Profile):
    """Image encoders: CLIP's, or any that timm builds (`model` is then "timm:NAME", see `lib.vision.backbones`).

    What each field means: `[shared.images]` in data/profiles.toml.
    """

    family, default, unit = "vision", "tiny", "images"

    pretrained: str
    image_size: CountOrZero
    image_column: str
    label_column: str
    head: Literal["text", "class-mean", "linear-probe", "expert"]
    head_scale: Rate
    experts: str
    train_images: Count
    validation_images: Count
    adaptation_images: Count
    test_images: Count
    curve_images: Count
    ablation_steps: Count
    ablation_grid: Literal["short", "whole"]

    @model_validator(mode="after")
    def _experts_can_be_found(self) -> VisionProfile:
        assert not self.experts or pattern_of(self.experts, self.model, self.task_names)
        later = self.family == OwnProfile.family and not self.model  # notebook 30 makes some, of timm
        if self.head == "expert" and not (later or (self.experts and self.model.startswith("timm:"))):
            raise ValueError("parameter 'head' is 'expert': only finished experts of timm come with one (CLIP: 'text')")
        return self

    @property
    def lineage(self) -> str:
        """Whose fine-tuning the experts come from: "own", "hugging-face", "task-vectors" or "given"."""
        return lineage_of(self.experts, self.task_names)


@dataclass(frozen=True, config=STRICT)
class RealProfile(VisionProfile):
    """Real images and a real backbone: nothing of it is shipped, so it runs by itself (`make real`)."""

    family, default = "real", "deit-tiny"


@dataclass(frozen=True, config=STRICT)
class OwnProfile(VisionProfile):
    """Somebody's own experts and images, merged and written out (notebook 30, `make merge`)."""

    family, default = "own", "your-own"
    method: str
    library: str
    out: str


@dataclass(frozen=True, config=STRICT)
class LanguageProfile(Profile):
    """T5 with LoRA adapters (https://arxiv.org/abs/2106.09685) on text-to-text tasks.

    What each field means: `[shared.texts]` in data/profiles.toml.
    """

    family, default, unit = "language", "tiny-t5", "texts"

    task_vector: Literal["weights", "adapter"]
    lora_rank: Count
    lora_alpha: Count
    lora_targets: str
    lora_dropout: Annotated[float, Field(ge=0)]
    adapters: str
    max_length: Count
    train_texts: Count
    validation_texts: Count
    adaptation_texts: Count
    test_texts: Count
    curve_texts: Count

    @model_validator(mode="after")
    def _adapters_can_be_found(self) -> LanguageProfile:
        if self.adapters:
            check_pattern("adapters", self.adapters, self.task_names)
        return self

    @property
    def lineage(self) -> str:
        """Whose fine-tuning the experts come from: "own", "given", or as published figures call them, "lora-16"."""
        published = f"lora-{self.lora_rank}" if PUBLISHED.search(self.adapters) else GIVEN
        return published if self.adapters else OWN


FAMILIES: dict[str, type[Profile]] = {
    kind.family: kind for kind in (VisionProfile, RealProfile, OwnProfile, LanguageProfile)
}


def read_profiles(path: Path = FILE) -> dict[str, Profile]:
    """Read the profiles of a TOML file.

    Raises:
        ValueError: if the file cannot be read or a section of it is no profile; one sentence that names the section.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); correct it there") from None
    found = {}
    for name in (name for name in sections if name != "shared"):
        try:
            values = _values(name, sections)
            if (family := values.pop("family", "")) not in FAMILIES:
                raise ValueError(f"family is '{family}', expected one of {', '.join(FAMILIES)}")
            found[name] = checked(FAMILIES[family], {"name": name, **values})
        except ValueError as error:
            raise ValueError(f"{path}, section '{name}': {error}") from None
    return found


def _values(name: str, sections: Mapping[str, Any], users: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a section on top of those of its base."""
    shared = sections.get("shared")
    section = sections.get(name, shared.get(name) if isinstance(shared, dict) else None)
    if not isinstance(section, dict) or name in users:
        raise ValueError(f"base '{name}' is no other section of the file" if users else "it is no section with values")
    below = _values(str(section["base"]), sections, (*users, name)) if "base" in section else {}
    return below | {field: value for field, value in section.items() if field != "base"}


PROFILES = read_profiles()
# The study's sets of tasks, each from a profile that has it.
DRAWN_TASKS, REAL_TASKS, PAPER_TASKS, DRAWN_TEXT_TASKS, GLUE_TASKS = (
    PROFILES[name].tasks for name in ("tiny", "tiny-real", "clip-vit-b-32", "tiny-t5", "flan-t5-base")
)


def family_of(notebook: str) -> str:
    """Which profiles a notebook runs with, by its number: 15 is real images, 20 to 29 language, 30 somebody's own."""
    if notebook.startswith(("15", "30")):
        return (RealProfile if notebook.startswith("15") else OwnProfile).family
    return LanguageProfile.family if notebook.startswith("2") else VisionProfile.family


def text_names(kind: type[Profile]) -> tuple[str, ...]:
    """Which of these are text, whatever it looks like."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.type == "str")


def field_names(kind: type[Profile]) -> tuple[str, ...]:
    """What can be changed in a profile of a kind."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.name != "name")


def get_profile(name: str, /, **overrides: object) -> Profile:
    """Look up a profile and change some of its fields.

    Raises:
        ValueError: for an unknown profile, an unknown field, a value of the wrong type or out of range; the message
            names what is known.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile '{name}'{closest(name, tuple(PROFILES))}; known: {', '.join(PROFILES)}")
    original = PROFILES[name]
    refuse_unknown(overrides, field_names(type(original)))
    return checked(type(original), vars(original) | overrides)

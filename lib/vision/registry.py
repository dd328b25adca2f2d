"""The official image sets that the study knows: data/registry/images.toml."""

from __future__ import annotations

from dataclasses import dataclass, field

from lib.files.registry import TABLES, read_registry


@dataclass(frozen=True)
class RealSet:
    """An official data set: where the hub has it, what it must hold there, and how its classes are prompted.

    The file says what each attribute means.
    """

    name: str
    title: str
    hub: str
    classes: int
    train: int
    test: int
    templates: tuple[str, ...]
    folder: str = "data"
    prompted: dict[str, str] = field(default_factory=dict)


REGISTRY: dict[str, RealSet] = read_registry(TABLES / "images.toml", RealSet)

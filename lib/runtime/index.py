"""The index of a room: its public names, whose modules are imported when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def index(room: str, names: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports nothing by itself (https://peps.python.org/pep-0562/).

    It is for notebooks. Inside `lib` modules import from modules, so that keys see what a result depends on.

    Args:
        room: the package's `__name__`.
        names: module in it -> the public names it has, separated by spaces.
    """
    places = {name: module for module, own in names.items() for name in own.split()}

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{places[name]}"), name)

    return find, lambda: sorted(places), sorted(places)

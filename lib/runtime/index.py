"""An index of a room whose modules are imported when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def index(room: str, places: Mapping[str, str]) -> tuple[Callable[[str], object], list[str]]:
    """`__getattr__` and `__all__` of a package that imports nothing by itself (https://peps.python.org/pep-0562/).

    Args:
        room: the package's `__name__`.
        places: public name -> name of the module in it that has it.
    """

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{places[name]}"), name)

    return find, sorted(places)

"""Types of what notebooks are told: values as papermill and the command line give them."""

from __future__ import annotations

import difflib


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


def closest(name: str, known: tuple[str, ...]) -> str:
    """A hint such as " (did you mean 'tiny'?)", or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""

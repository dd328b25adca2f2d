"""Parameters as notebooks, files and the command line give them, checked against the dataclass that declares them."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

Declared = TypeVar("Declared")

# For pydantic's dataclasses: "3" is no number, True is none, nor is NaN; a whole number may stand for a float.
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
# What pydantic misses -> how this study says it.
TYPES = {"string_type": "str", "int_type": "int", "float_type": "float", "bool_type": "bool"}
RANGES = {
    "greater_than": "a positive number",
    "greater_than_equal": "0 or a positive number",
    "finite_number": "a finite number",
}


def checked(kind: type[Declared], given: Mapping[str, object]) -> Declared:
    """Make a dataclass of pydantic's from values that its fields' annotations must allow.

    Raises:
        ValueError: for an unknown name, a missing one, a wrong type or a value out of range: one sentence.
    """
    refuse_unknown(given, [field.name for field in dataclasses.fields(kind)])
    try:
        return kind(**given)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0])) from None


def refuse_unknown(given: Mapping[str, object], known: Sequence[str]) -> None:
    """Let no misspelt parameter be ignored.

    Raises:
        ValueError: naming the first unknown one, the known one that it resembles, and all known ones.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"unknown parameter '{name}'{closest(name, known)}; known: {', '.join(known)}")


def _sentence(problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors in the words of this study."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "value_error":  # raised by a validator of our own
        return str(context["error"])
    name = problem["loc"][-1]
    if kind == "missing":
        return f"parameter '{name}' has no value"
    if kind in TYPES:
        return f"parameter '{name}' is {value!r} ({type(value).__name__}), expected {TYPES[kind]}"
    return f"parameter '{name}' is {value!r}, expected {RANGES.get(kind) or context.get('expected') or problem['msg']}"


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


def closest(name: str, known: Sequence[str]) -> str:
    """A hint such as " (did you mean 'tiny'?)", or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def names_in_its_cell(cells: Sequence[str]) -> set[str]:
    """What the last parameters cell among those run so far sets, by its source, and papermill's beside it.

    It is the cell that sets `profile`; nothing if there is none, as outside of IPython.
    """
    found: set[str] = set()
    for source in reversed(cells):
        with suppress(SyntaxError):  # IPython's own, such as a magic
            named = (node.targets for node in ast.parse(source).body if isinstance(node, ast.Assign))
            names = {target.id for targets in named for target in targets if isinstance(target, ast.Name)}
            if "profile" in names:
                found |= names
            elif found:
                break
    return found

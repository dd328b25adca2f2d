"""The text-to-text tasks that the study knows: data/registry/texts.toml."""

from __future__ import annotations

from dataclasses import dataclass

from lib.files.registry import TABLES, read_registry
from lib.runtime.parameters import closest

HIGHEST = 5.0  # similarity is graded from 0 to this


@dataclass(frozen=True)
class TextTask:
    """A task whose rows become a prompt and a target text; the file says what each attribute means."""

    name: str
    title: str
    columns: tuple[str, ...]
    prompt: str
    words: tuple[str, ...] = ()
    glue: str = ""
    held_out: str = "validation"
    classes: tuple[str, ...] = ()
    train: int = 0
    test: int = 0

    @property
    def metric(self) -> str:
        """How the task is scored: "accuracy", or "Spearman's rho" for a graded one."""
        return "accuracy" if self.words else "Spearman's rho"

    def target(self, label: int | float) -> str:
        """The text to answer: the label's word, or the grade with one decimal.

        Raises:
            ValueError: if there is no such label.
        """
        if isinstance(label, (int, float)):
            if not self.words and 0 <= label <= HIGHEST:
                return f"{label:.1f}"
            if self.words and label in range(len(self.words)):
                return self.words[int(label)]
        count = len(self.words)
        expected = f"not one of the {count} classes (0 to {count - 1})" if count else "no number from 0 to 5"
        raise ValueError(f"label {label!r} is {expected}")


_KNOWN = read_registry(TABLES / "texts.toml", TextTask)
HUB = "nyu-mll/glue"
GRADED = tuple(name for name, task in _KNOWN.items() if task.metric != "accuracy")  # no mean of accuracies has these
GLUE: dict[str, TextTask] = {name: task for name, task in _KNOWN.items() if task.glue}
DRAWN: dict[str, TextTask] = {name: task for name, task in _KNOWN.items() if not task.glue}


def text_task(name: str) -> TextTask:
    """Look up a task by name.

    Raises:
        ValueError: naming the closest one and all that there are.
    """
    if name not in _KNOWN:
        hint = closest(name, tuple(_KNOWN))
        raise ValueError(f"unknown task '{name}'{hint}; drawn: {', '.join(DRAWN)}; GLUE: {', '.join(GLUE)}")
    return _KNOWN[name]

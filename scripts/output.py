"""What a running notebook shows: which cell runs, and what it prints as it prints it, on a stream and in a log."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import nbformat

Cell = nbformat.NotebookNode


class Report:
    """Writes what a running notebook does to a stream, line by line; papermill uses it as the cells' output file."""

    def __init__(self, name: str, notebook: Cell, parameters: dict[str, Any], stream: TextIO | None = None) -> None:
        """Take the notebook as it is before its parameters are injected."""
        self.name = name
        self.stream = stream or sys.stdout
        self.headings = _headings(notebook)
        tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
        runnable = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
        self.cells = runnable + bool(parameters and "injected-parameters" not in tags)  # papermill adds that cell
        self.current = 0
        self.title = ""
        self._unfinished = ""

    def start_cell(self, cell: Cell, cell_index: int) -> None:
        """Say which cell starts now (the hook that nbclient calls)."""
        self.flush_line()
        self.current += 1
        first = next(line for line in cell.source.splitlines() if line.strip())
        heading = self.headings.get(cell.get("id"))
        self.title = f"{heading}: {first.strip()}" if heading else first.strip()
        self.say(f"cell {self.current}/{self.cells}  {shortened(self.title, 90)}")

    def say(self, text: str) -> None:
        """Write one line about this notebook."""
        print(f"[{self.name}] {text}", file=self.stream, flush=True)

    def write(self, text: str) -> None:
        """Pass on what a cell printed, below the notebook's number, once its line is complete."""
        *lines, self._unfinished = (self._unfinished + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                print(f"  {self.name.partition('_')[0]}  {line}", file=self.stream, flush=True)

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""

    def flush_line(self) -> None:
        """Write a last line that the cell did not end."""
        if self._unfinished:
            self.write("\n")


class Logged:
    """A stream that writes into a log, too."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> None:
        """Write to both."""
        self.stream.write(text)
        self.log.write(text)

    def flush(self) -> None:
        """Flush both."""
        self.stream.flush()
        self.log.flush()


def _headings(notebook: Cell) -> dict[str, str]:
    """For every cell's id the nearest heading above it."""
    heading, found = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = lines[-1].lstrip("# ") if lines else heading
        found[cell.get("id")] = heading
    return found


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"

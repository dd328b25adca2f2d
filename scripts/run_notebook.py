"""Run one notebook from the command line, showing what it does: `python -m scripts.run_notebook IN OUT -p seed 1`.

papermill does the work; this adds what is missing when nobody looks at a browser: which cell runs, what it prints as
it prints it, a short message when it fails, and an output file that has its name only once the run has finished.
Plain `papermill IN OUT -p seed 1` works just as well.

On several GPUs: `torchrun --standalone --nproc-per-node 4 -m scripts.run_notebook IN OUT`. Every process runs the
whole notebook, and what they share is said in `lib.runtime.ranks`. The first one shows and writes what one process
does; what another one prints is shown if it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import platform
import re
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from lib.runtime.launch import Launch, launched
from lib.runtime.parameters import typed
from lib.runtime.progress import duration

Cell = nbformat.NotebookNode
# How torch words it when a message to or from another process fails, which says nothing about why that one is gone.
OTHER_PROCESS = re.compile(r"gloo/|NCCL|Dist(?:Backend|Network|Store)?Error|Connection (?:closed|reset) by peer")
LONG = 30.0  # seconds, in which torchrun notices that a process has ended
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookStopped(Exception):
    """A notebook could not be run to its end; the message says where and what to do."""


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
        self.say(f"cell {self.current}/{self.cells}  {_shortened(self.title, 90)}")

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


def run_notebook(
    notebook: Path, output: Path, parameters: dict[str, Any] | None = None, stream: TextIO | None = None
) -> Path:
    """Execute `notebook` with `parameters` and put the executed copy at `output`.

    The kernel is the Python that runs this function, its working directory the current one. While it runs, the copy
    is called `<output>.partial.ipynb`; a run that fails or is killed leaves that for reading, and `output` as it was.
    Of several processes only the first leaves `output`; the others have partial copies with their number.

    Args:
        notebook: the notebook to run.
        output: where the executed copy goes; its folder is made if needed.
        parameters: values for the notebook's cell tagged `parameters`.
        stream: where progress is shown, standard output unless given.

    Returns:
        `output`.

    Raises:
        NotebookStopped: if there is no such notebook, a cell fails, or the kernel dies.
    """
    parameters = parameters or {}
    if not notebook.is_file():
        known = ", ".join(sorted(path.name for path in notebook.parent.glob("*.ipynb"))) or "none"
        raise NotebookStopped(f"there is no notebook {notebook}; notebooks in that folder: {known}")
    try:
        source = nbformat.read(notebook, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, OSError) as error:
        raise NotebookStopped(f"{notebook} is no readable notebook: {str(error).splitlines()[0]}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    rank = launched().rank
    partial = output.with_name(f"{output.stem}.{f'process{rank}.' if rank else ''}partial.ipynb")
    report = Report(notebook.stem, source, parameters, stream)
    values = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    report.say(f"{report.cells} cells" + (f" with {values}" if values else ""))
    start = time.monotonic()
    try:
        papermill.execute_notebook(
            notebook,
            partial,
            parameters,
            kernel_name="python3",
            language="python",  # a notebook need not say so itself
            progress_bar=False,
            stdout_file=report,
            stderr_file=report,
            on_cell_execute=report.start_cell,
            extra_arguments=["--log-level=50"],  # the kernel's remarks on transport and shutdown help nobody here
        )
    except PapermillExecutionError as error:
        report.flush_line()
        raise NotebookStopped(_failure(report, f"{error.ename}: {error.evalue}", partial)) from error
    except DeadKernelError as error:
        report.flush_line()
        cause = "the notebook's Python process ended without an error (killed, or out of memory)"
        raise NotebookStopped(_failure(report, cause, partial)) from error
    except NoSuchKernel as error:
        raise NotebookStopped("there is no kernel 'python3' here; run `make setup`") from error
    report.flush_line()
    if rank:
        partial.unlink()
    else:
        os.replace(partial, output)
    report.say(f"finished in {duration(time.monotonic() - start)}")
    return output


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 when the notebook finished, 1 when it stopped, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m scripts.run_notebook", description="Run one notebook, visibly.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    pair = {"nargs": 2, "metavar": ("NAME", "VALUE"), "action": "append", "default": []}
    parser.add_argument("-p", "--parameters", **pair, help="a parameter; numbers, True, False and None are recognised")
    parser.add_argument("-r", "--parameters_raw", **pair, help="a parameter that stays text whatever it looks like")
    parser.add_argument("--with-parent", action="store_true", help="stop when the process that started the run is gone")
    parser.add_argument("--with-log", action="store_true", help="append what is shown to OUTPUT's name with .log")
    given = parser.parse_args(arguments)
    parameters = {name: typed(value) for name, value in given.parameters} | dict(given.parameters_raw)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # what it would log is shown by Report
    if given.with_parent:
        _stop_with_parent()
    log = given.output.with_suffix(".log") if given.with_log else Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)
    launch = launched()
    with log.open("a", encoding="utf-8") as file:  # what earlier attempts wrote stays
        begin = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, {platform.node()}"
        if launch.rank:
            shown, begin = io.StringIO(), f"{begin}, process {launch.rank} of 0 to {launch.processes - 1}"
        else:
            shown = Logged(sys.stdout, file)
            print(begin, file=file, flush=True)
        try:
            run_notebook(given.notebook, given.output, parameters, shown)
        except NotebookStopped as error:
            if not may_tell(launch, str(error)):
                return 1
            if launch.rank:
                print(f"{begin}\n{shown.getvalue()}", file=file, flush=True)
                error = f"Process {launch.rank} of 0 to {launch.processes - 1}: {error}"
            print(f"\n{error}\n", file=Logged(sys.stderr, file), flush=True)
            return 1
        except KeyboardInterrupt:
            if not launch.rank:
                print(f"\n{given.notebook} was interrupted; the same command goes on.\n", file=sys.stderr, flush=True)
            return 130
    return 0


def patience(launch: Launch, error: str) -> float:
    """Seconds to keep an error to oneself.

    One that all have is for the first process to tell; one that only lost another process lets that one speak.
    """
    lost = LONG if launch.processes > 1 and OTHER_PROCESS.search(error) else 0.0
    return lost + 2.0 * launch.rank


def may_tell(launch: Launch, error: str) -> bool:
    """Whether this process is the one to say why the run failed, so that it is said once.

    torchrun ends all processes as soon as one has failed, so one that may not tell must not go first: it waits.
    """
    time.sleep(patience(launch, error))
    if launch.processes == 1 or _first_to_ask():
        return True
    time.sleep(LONG)
    return False


def _first_to_ask() -> bool:
    """Whether no other process of this run has asked before; torchrun itself keeps count."""
    from torch.distributed import TCPStore  # now, when nothing is left to wait for it

    try:
        counter = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=30))
        return counter.add("study/failed", 1) == 1
    except RuntimeError:  # torchrun is gone, and with it whoever else might tell
        return True


def _failure(report: Report, cause: str, partial: Path) -> str:
    lines = ANSI.sub("", cause).strip().splitlines()
    return "\n".join(
        [
            f"{report.name} stopped in cell {report.current} of {report.cells} ({_shortened(report.title, 90)})",
            *(f"    {line}" for line in lines[:12]),
            f"    What ran so far, with the whole traceback: {partial}",
            "    To go on: fix the cause and give the same command again; finished steps are not repeated.",
        ]
    )


def _headings(notebook: Cell) -> dict[str, str]:
    """For every cell's id the nearest heading above it."""
    heading, found = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = lines[-1].lstrip("# ") if lines else heading
        found[cell.get("id")] = heading
    return found


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _stop_with_parent(every: float = 1.0) -> None:
    """End this process once the one that started it is gone; the kernel, which looks after its own parent, follows.

    A SIGKILL of the batch runner reaches nobody else; without this the notebook would go on unseen and write into the
    same files as the run that continues. torchrun, too, has a parent to look after, and does not.
    """

    def above() -> list[psutil.Process | None]:
        parent = psutil.Process().parent()
        return [parent] if launched().processes == 1 else [parent, parent.parent()]

    started_by = above()

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while above() == started_by:
                time.sleep(every)
        os._exit(1)  # at once: the main thread may be waiting for the kernel for minutes

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

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
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from lib.runtime.launch import Launch, launched
from lib.runtime.parameters import typed
from lib.runtime.progress import duration
from scripts.output import Logged, Report, shortened

# How torch words it when a message to or from another process fails, which says nothing about why that one is gone.
OTHER_PROCESS = re.compile(r"gloo/|NCCL|Dist(?:Backend|Network|Store)?Error|Connection (?:closed|reset) by peer")
PATIENCE = 300  # seconds for a kernel to start: it imports from what may be a slow disk that many jobs read at once
LONG = 30.0  # seconds, in which torchrun notices that a process has ended
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookStopped(Exception):
    """A notebook could not be run to its end; the message says where and what to do."""


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this as the kernel, whatever kernels are installed where Jupyter looks for them."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How it is started."""
        return KernelSpec(**get_kernel_dict())


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
        NotebookStopped: if there is no such notebook, a cell fails, the kernel does not start (tried twice) or dies, or
            the output cannot be written.
    """
    parameters = parameters or {}
    if not notebook.is_file():
        known = ", ".join(sorted(path.name for path in notebook.parent.glob("*.ipynb"))) or "none"
        raise NotebookStopped(f"there is no notebook {notebook}; notebooks in that folder: {known}")
    try:
        source = nbformat.read(notebook, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError, OSError) as error:  # among them what is no JSON
        raise NotebookStopped(f"{notebook} is no readable notebook: {str(error).splitlines()[0]}") from error
    rank = launched().rank
    partial = output.with_name(f"{output.stem}.{f'process{rank}.' if rank else ''}partial.ipynb")
    report = Report(notebook.stem, source, parameters, stream)
    values = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    report.say(f"{report.cells} cells" + (f" with {values}" if values else ""))
    start = time.monotonic()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _execute(notebook, partial, parameters, report)
        report.flush_line()
        if rank:
            partial.unlink()
        else:
            os.replace(partial, output)
    except PapermillExecutionError as error:
        report.flush_line()
        raise NotebookStopped(_failure(report, f"{error.ename}: {error.evalue}", partial)) from error
    except DeadKernelError as error:
        report.flush_line()
        cause = "the notebook's Python process ended without an error (killed, or out of memory)"
        raise NotebookStopped(_failure(report, cause, partial)) from error
    except OSError as error:
        raise NotebookStopped(f"{report.name} stopped: {error}; make room or name another place") from error
    report.say(f"finished in {duration(time.monotonic() - start)}")
    return output


def _execute(notebook: Path, partial: Path, parameters: dict[str, Any], report: Report) -> None:
    """Let papermill run a notebook; a kernel that did not start is tried once more."""
    for last in (False, True):
        try:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters,
                kernel_name="python3",  # what the executed copy notes
                kernel_manager_class=ThisPython,
                language="python",  # a notebook need not say so itself
                progress_bar=False,
                stdout_file=report,
                stderr_file=report,
                on_cell_execute=report.start_cell,
                start_timeout=PATIENCE,
                extra_arguments=["--log-level=50"],  # the kernel's remarks on transport and shutdown help nobody here
            )
            return
        except RuntimeError as error:
            if report.current or isinstance(error, DeadKernelError):  # it had started
                raise
            if last:
                raise NotebookStopped(
                    f"{report.name} was not begun: its Python, {sys.executable} -m ipykernel_launcher, did not start "
                    f"({error}); what it said is above. Give the same command again, or set up anew: make distclean"
                ) from error
            report.say("its Python did not start; once more")


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
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", encoding="utf-8")  # what earlier attempts wrote stays
    except OSError as error:
        print(f"\n{given.notebook} was not begun: {error}; make room or name another place\n", file=sys.stderr)
        return 1
    launch = launched()
    with file:
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
            f"{report.name} stopped in cell {report.current} of {report.cells} ({shortened(report.title, 90)})",
            *(f"    {line}" for line in lines[:12]),
            f"    What ran so far, with the whole traceback: {partial}",
            "    To go on: fix the cause and give the same command again; finished steps are not repeated.",
        ]
    )


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

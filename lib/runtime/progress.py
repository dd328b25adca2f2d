"""Progress of a long loop: a bar where somebody watches a terminal, else one plain line every few seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_counter: Synchronized | None = None  # in a worker process: where its steps are counted instead of shown


def progress(
    iterable: Iterable[Item],
    label: str,
    total: int | None = None,
    every: float = 5.0,
    postfix: Callable[[], str] | None = None,
    begin: int = 0,
) -> Iterator[Item]:
    """Yield the items of `iterable` and show how far the loop is.

    On a terminal and in JupyterLab this is a tqdm bar. Elsewhere (papermill, nbval, a log file) it is one line every
    `every` seconds, `label  120/500  24 %  3.1 s, about 9.8 s left`, and always a last one, so that the outputs of
    a committed notebook hold one line per loop rather than the remains of a bar.

    Args:
        iterable: what the loop goes through.
        label: the words before the numbers.
        total: number of items, those of `begin` too; taken from `len(iterable)` where that exists, else no share and no
            time left is shown.
        every: seconds between two lines, at least.
        postfix: called whenever a line is drawn; returns extra words for it, such as the current loss.
        begin: items that were done before, by a run that this one continues.

    Yields:
        The items, unchanged.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = begin + len(iterable)
    if _counter is not None:
        yield from _counted(iterable, begin)
        return
    if _somebody_watches():
        yield from _bar(iterable, label, total, postfix, begin)
        return
    start = last = time.monotonic()
    first, done = start, begin
    try:
        for done, item in enumerate(iterable, start=begin + 1):
            yield item  # what follows runs when the loop comes back for the next item, so item `done` is finished
            now, mine = time.monotonic(), done - begin
            first = now if mine == 1 else first
            if now - last >= every and done != total:
                # The first item may have waited for what comes before it (a process to start, a kernel to compile).
                left = (now - first) / (mine - 1) * (total - done) if total and mine > 1 else None
                _print_line(label, done, total, now - start, postfix, left)
                last = now
    except GeneratorExit:  # `break`, or an error in the loop's body: item `done` was begun but is not counted
        done -= 1
        raise
    finally:
        _print_line(label, done, total, time.monotonic() - start, postfix)


def _somebody_watches() -> bool:
    """Whether a redrawn bar makes sense: a terminal, or a kernel that a Jupyter server opened for a person."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)()) or "JPY_SESSION_NAME" in os.environ


def count_into(counter: Synchronized) -> None:
    """Let the loops of this process count their steps there and show nothing: another process shows them."""
    global _counter
    _counter = counter


def _counted(iterable: Iterable[Item], begin: int) -> Iterator[Item]:
    with _counter.get_lock():
        _counter.value += begin
    for item in iterable:
        yield item
        with _counter.get_lock():
            _counter.value += 1


def _bar(
    iterable: Iterable[Item], label: str, total: int | None, postfix: Callable[[], str] | None, begin: int
) -> Iterator[Item]:
    options = {"desc": label, "total": total, "initial": begin, "file": sys.stderr, "dynamic_ncols": True}
    said = 0.0
    with tqdm(iterable, **options) as bar:
        for item in bar:
            yield item
            if postfix is not None and time.monotonic() - said >= 1:  # not every time: it may have to ask a GPU
                bar.set_postfix_str(postfix(), refresh=False)
                said = time.monotonic()
        if postfix is not None:
            bar.set_postfix_str(postfix(), refresh=False)


def _print_line(
    label: str,
    done: int,
    total: int | None,
    seconds: float,
    postfix: Callable[[], str] | None,
    left: float | None = None,
) -> None:
    count = f"{done}/{total}  {100 * done / total:.0f} %" if total else f"{done}"
    line = f"{label}  {count}  {duration(seconds)}"
    if left is not None:
        line += f", about {duration(left)} left"
    if postfix is not None:
        line += f"  {postfix()}"
    print(line, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: `3.1 s`, `2 min 05 s`, `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

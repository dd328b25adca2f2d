"""Worker processes: one function on many items side by side, one process and one thread for each.

A model this small does not keep two cores busy: on 2 cores two processes of one thread train nearly twice as fast as
one process of two. And one thread per item makes an item's bits independent of the number of cores.

Nothing here imports torch before it is needed: a worker that only draws pictures starts in a moment.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from ctypes import c_long
from multiprocessing.sharedctypes import Synchronized
from types import ModuleType

from lib.runtime import progress as shown


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(function: Callable[[object], object], items: Sequence[object], label: str, steps: int = 0) -> None:
    """Call a function with every item, each call in a process of its own, for what it leaves in the store.

    A worker shows nothing; the steps of all loops in all workers (`lib.runtime.progress`) are counted together here.

    Args:
        function: what to call. It travels with what it refers to, so one that was defined in a notebook will do.
        items: its argument, one call each.
        label: shown with the progress.
        steps: how many steps a call takes, for the total that is shown; 0 where that is not known.

    Raises:
        Exception: whatever stopped a call.
    """
    call = _packed(function)
    context = multiprocessing.get_context("spawn")  # safe beside torch's threads, unlike fork
    done = context.Value(c_long, 0)
    workers = min(cores(), len(items))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(done,)) as pool:
        futures = [pool.submit(_call, call, item) for item in items]
        for _ in shown.progress(_count(done, futures), label, total=steps * len(items) or None):
            pass
        for future in futures:
            future.result()


def _packed(function: Callable[[object], object]) -> bytes:
    """A function, also one of a notebook, with all that it refers to; modules by their names."""
    import dill

    class Pickler(dill.Pickler):
        dispatch = type(dill.Pickler.dispatch)(dill.Pickler.dispatch)

    def save_module(pickler: Pickler, module: ModuleType) -> None:
        # dill would send the variables of this study's modules along, and overwrite the worker's with them
        pickler.save_reduce(importlib.import_module, (module.__name__,), obj=module)

    Pickler.dispatch[ModuleType] = save_module
    packed = io.BytesIO()
    Pickler(packed, recurse=True).dump(function)
    return packed.getvalue()


def _count(done: Synchronized, futures: Sequence[Future]) -> Iterator[int]:
    """Yield once for every step that some worker has done, until all workers are done or one has failed."""
    seen = 0
    while True:
        over = all(future.done() for future in futures) or any(f.done() and f.exception() for f in futures)
        while seen < done.value:
            seen += 1
            yield seen
        if over:
            for future in futures:
                future.cancel()
            return
        time.sleep(0.2)


def _start(done: Synchronized) -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    shown.count_into(done)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the parent shows the progress of all workers


def _call(function: bytes, item: object) -> None:
    import dill

    dill.loads(function)(item)


def end_with_parent() -> None:
    """Let a worker end when its parent is killed, which would otherwise leave it waiting for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

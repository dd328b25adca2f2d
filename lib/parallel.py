"""Training the missing experts side by side, one process and one thread each.

A model this small does not keep two cores busy: on 2 cores two processes of one thread train nearly twice as fast as
one process of two. And one thread per expert makes an expert's bits independent of the number of cores.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from ctypes import c_long
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING

import torch

from lib.drawing import end_with_parent
from lib.progress import progress
from lib.study import Study

if TYPE_CHECKING:
    from lib.base_workspace import BaseWorkspace

_steps: Synchronized | None = None  # in a worker: the steps done by all workers together


def train_experts(kind: type[BaseWorkspace], study: Study, tasks: Sequence[str]) -> None:
    """Train the experts of some tasks and leave them in the study's store.

    Args:
        kind: the class of the workspace that trains them.
        study: what to train, and where to store it.
        tasks: names of tasks; their data should be in the cache already, or every worker would make it.

    Raises:
        Exception: whatever stopped the training of an expert.
    """
    context = multiprocessing.get_context("spawn")  # safe beside torch's threads, unlike fork
    steps = context.Value(c_long, 0)
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(tasks))
    total = len(tasks) * study.profile.fine_tuning_steps
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(steps,)) as pool:
        futures = [pool.submit(_train, kind, study, task) for task in tasks]
        for _ in progress(_count(steps, futures), f"fine-tuning {len(tasks)} experts, step", total=total):
            pass
        for future in futures:
            future.result()


def _count(steps: Synchronized, futures: Sequence[Future]) -> Iterator[int]:
    """Yield once for every step that some worker has done, until all workers are done or one has failed."""
    seen = 0
    while True:
        over = all(future.done() for future in futures) or any(f.done() and f.exception() for f in futures)
        while seen < steps.value:
            seen += 1
            yield seen
        if over:
            for future in futures:
                future.cancel()
            return
        time.sleep(0.2)


def _start(steps: Synchronized) -> None:
    global _steps
    _steps = steps
    end_with_parent()
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the parent shows the progress of all workers


def _train(kind: type[BaseWorkspace], study: Study, task: str) -> None:
    kind(study).make_expert(task, on_step=_one_more)


def _one_more() -> None:
    with _steps.get_lock():
        _steps.value += 1

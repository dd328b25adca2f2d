"""Several processes that run one notebook together: who they are, and how they agree.

torchrun starts the same notebook in every process (see `launch`), and opening a study joins them. From then on

- adaptation is computed by all of them, each with its own tasks and its own part of the mask (`together`);
- what else takes long is made by one, and the others wait until the store has it (`store`);
- the first process writes tables and shows progress, and everything else in a notebook is simply done by each.

In a process that torchrun did not start, and in worker processes, there is one process and nothing here does anything.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as distributed

from lib.runtime.device import Runtime
from lib.runtime.launch import launched

Value = TypeVar("Value")
TIMEOUT = timedelta(hours=1)  # for a message; processes are rarely minutes apart, and torchrun notices when one ends


def join(runtime: Runtime) -> None:
    """Join the other processes of this run, once; without torchrun do nothing.

    Args:
        runtime: where this process computes, as `lib.runtime.device.choose_runtime` says.
    """
    if launched().processes == 1 or distributed.is_initialized():
        return
    backend = "gloo"
    if runtime.device != "cpu":
        torch.cuda.set_device(runtime.device)
        backend = "cpu:gloo,cuda:nccl"  # vectors go from GPU to GPU, words like "is it there?" between the CPUs
    distributed.init_process_group(backend, timeout=TIMEOUT)


def count() -> int:
    """How many processes run this notebook together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def number() -> int:
    """Which of them this is: 0, 1, ..."""
    return distributed.get_rank() if count() > 1 else 0


def everyone(value: Value) -> list[Value]:
    """What each process gives, in their order. All of them must come here, and none goes on before all have come.

    Args:
        value: something small, with tensors on the CPU.
    """
    if count() == 1:
        return [value]
    values: list[Value] = [value] * count()
    distributed.all_gather_object(values, value)
    return values


def of_first(value: Value) -> Value:
    """What the first process gives; likewise."""
    return everyone(value)[0]

"""What a phase of adaptation will need of memory, part by part, before it starts.

`plan` is arithmetic: from the sizes of model, tasks and batch to bytes. `check` fills it in for a phase and
stops with one sentence when the memory that is free will not do, naming the setting that mends it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.adaptation.levels import Levels
from lib.adaptation.objectives import PredictionObjective
from lib.runtime import memory
from lib.vectors.mapped import in_words, is_mapped

FLOAT = 4  # bytes
SMALL = 10_000_000  # parameters of a model that fits into any computer's memory: no plan is made for it on a CPU
VECTOR_BYTES = {"fp32": 4, "bf16": 2, "mapped": 4}  # of an element of a task vector
# What a pass holds beside what autograd keeps: gradients on their way back, gaps between blocks of memory.
PASSING = 1.3
DRAWING = 5  # vectors of length D at once while the final mask is drawn, when the activations are gone


@dataclass(frozen=True)
class Needs:
    """What the memory of a phase follows from.

    Attributes:
        parameters: D.
        tasks: T.
        rows: inputs of all tasks in a step.
        rows_at_once: of them, how many go through the model together.
        row_bytes: what autograd keeps for one input.
        input_bytes: one input as the model reads it.
        copies_bytes: what autograd keeps however many inputs there are: the weights in bfloat16 under autocast.
        frozen_bytes: parts of the model that are not merged, such as a text tower.
        learn_mask, coefficients: whether logits of a mask are learned, with Adam's moments, and merging coefficients.
        fixed_mask, exact: whether all happens inside a mask learned before, and whether the hypergradient is exact.
        vectors: "fp32", "bf16" or "mapped".
        accelerator: whether the device is not the CPU.
        processes: how many share mask, moments and task vectors (`lib.concrete.sharding`); rows are those of this one.
    """

    parameters: int
    tasks: int
    rows: int
    rows_at_once: int
    row_bytes: int
    input_bytes: int = 0
    copies_bytes: int = 0
    frozen_bytes: int = 0
    learn_mask: bool = False
    coefficients: bool = True
    fixed_mask: bool = False
    exact: bool = False
    vectors: str = "fp32"
    accelerator: bool = False
    processes: int = 1


def plan(needs: Needs) -> dict[str, int]:
    """Bytes per part on the device that computes; the phase needs their sum.

    Pages of a mapped file are not counted on a CPU: the system drops them when memory is short. An accelerator holds
    one task vector of them at a time.
    """
    vector, own = FLOAT * needs.parameters, FLOAT * -(-needs.parameters // needs.processes)
    stacked = VECTOR_BYTES[needs.vectors] * own // FLOAT * needs.tasks
    if needs.vectors == "mapped":
        stacked = vector * needs.accelerator
    activations = round(PASSING * needs.row_bytes * min(needs.rows, needs.rows_at_once)) + needs.copies_bytes
    inputs = needs.input_bytes * needs.rows * (1 + (needs.learn_mask and needs.coefficients))  # two levels, two batches
    parts = {
        "task vectors": stacked,
        "their sum": own * (not needs.coefficients and needs.tasks > 1),
        "theta0, merged model and gradient": 3 * vector,
        "mask logits and moments": 3 * own * needs.learn_mask,
        "mask": own * needs.fixed_mask,
        "exact hypergradient": (6 * vector + 2 * activations) * needs.exact,  # the graph of the first backward pass
        "frozen parts": needs.frozen_bytes,
        "inputs": inputs,
        f"activations of {min(needs.rows, needs.rows_at_once)} inputs": activations,
        "drawing the mask": max(0, DRAWING * vector - activations - inputs) * needs.learn_mask,
    }
    return {name: size for name, size in parts.items() if size}


def sentence(label: str, parts: Mapping[str, int], device: str, room: float | None) -> str:
    """The plan in one line."""
    listed = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())
    there = "" if room is None else f"; {in_words(room)} can be had"
    return f"{label} needs about {in_words(sum(parts.values()))} on {device} ({listed}){there}"


def mend(needs: Needs, room: float) -> str:
    """The least change of settings with which the plan fits, in words.

    Args:
        needs: what does not fit.
        room: bytes that can be had.
    """
    batch = max(1, needs.rows // -(-needs.tasks // needs.processes))
    for changes in _changes(needs, batch):
        if sum(plan(dataclasses.replace(needs, **changes)).values()) <= room:
            names = {"rows_at_once": "micro_batch", "vectors": "task_vector_dtype"}
            return "set " + " and ".join(f"{names[name]}={value}" for name, value in changes.items())
    return "merge fewer tasks, choose a smaller model, or device=cpu"


def _changes(needs: Needs, batch: int) -> Iterator[dict[str, object]]:
    """From the cheapest: fewer inputs at once; task vectors in bfloat16, which rounds; mapped ones, which are slow."""
    fewer = [batch * part for part in (needs.tasks // 2, needs.tasks // 4, 1) if 0 < batch * part < needs.rows_at_once]
    yield from ({"rows_at_once": rows} for rows in fewer)
    for vectors in ("bf16", "mapped"):
        if vectors != needs.vectors and needs.vectors != "mapped":
            yield {"vectors": vectors}
            yield from ({"vectors": vectors, "rows_at_once": rows} for rows in fewer)


def announce(label: str, levels: Levels) -> None:
    """Print the plan of a phase, unless its model is small enough for any computer's memory.

    Raises:
        MemoryError: if it does not fit, with the settings that mend it.
    """
    objective = getattr(levels.objective_at, "objective", levels.objective_at)  # of several processes, the whole one
    theta0, shard = levels.theta0, levels.shard
    if not isinstance(objective, PredictionObjective) or not isinstance(theta0, Tensor):
        return
    if theta0.device.type != "cpu" or shard.layout.length > SMALL:
        flags = {"learn_mask": levels.learn_mask, "coefficients": levels.learn_coefficients, "exact": levels.exact}
        flags |= {"fixed_mask": levels.fixed_mask is not None, "processes": shard.ranks}
        whole = shard.gather(theta0)[: len(objective.model.gradient)]
        print(check(label, objective, whole, levels.task_vectors, **flags))


def check(
    label: str,
    objective: PredictionObjective,
    theta0: Tensor,
    task_vectors: Tensor,
    *,
    processes: int = 1,
    room: Callable[[str], int | None] | None = None,
    **flags: int,
) -> str:
    """Plan a phase and compare it with the memory that is free.

    Args:
        label: what the phase is called.
        objective: what it minimises.
        theta0: pre-trained parameters [D], where the phase computes.
        task_vectors: [T, D].
        processes: how many share the work; `task_vectors` are then this one's part, wherever it is now.
        room: how many bytes are free on a device; by default `free_memory`.
        flags: `learn_mask`, `coefficients`, `fixed_mask`, `exact` of `Needs`.

    Returns:
        The plan in one line.

    Raises:
        MemoryError: if it does not fit, with the settings that mend it.
    """
    device = str(theta0.device)
    kind = "bf16" if task_vectors.element_size() == 2 else "fp32"
    elsewhere = is_mapped(task_vectors) or task_vectors.device != theta0.device
    if elsewhere and processes == 1:
        kind = "mapped"
    rows = sum(len(own) for task, own in objective.rows(0).items() if task in objective.mine)
    needs = Needs(
        parameters=theta0.numel(),
        tasks=len(task_vectors),
        rows=rows,
        rows_at_once=objective.rows_together(),
        **measured(objective, theta0),
        frozen_bytes=objective.frozen_bytes,
        **flags,
        vectors=kind,
        accelerator=theta0.device.type != "cpu",
        processes=processes,
    )
    parts, free = plan(needs), (room or free_memory)(device)
    held = [theta0, objective.model.gradient] + [task_vectors] * (not elsewhere)  # they are there already
    if free is not None and device == "cpu":
        free //= processes  # they share one memory
    total = None if free is None else free + objective.frozen_bytes + sum(tensor.nbytes for tensor in held)
    text = sentence(label, parts, device, total)
    if total is not None and sum(parts.values()) > total:
        raise MemoryError(f"{text}: {mend(needs, total)}")
    return text


def measured(objective: PredictionObjective, theta0: Tensor) -> dict[str, int]:
    """`row_bytes`, `input_bytes` and `copies_bytes` of `Needs`, from passes of two and of three inputs.

    Not of one: BatchNorm has no variance of a single value.
    """
    module = objective.model.move_to(theta0)
    kept, inputs = [], []
    for count in (2, 3):
        rows = {0: torch.arange(count) % objective.counts[0]}
        given = objective.inputs(rows)
        tensors = list(given.values()) if isinstance(given, Mapping) else [given]
        inputs.append(sum(tensor.nbytes for tensor in tensors))
        ours = {tensor.untyped_storage().data_ptr() for tensor in (theta0, *tensors)}
        kept.append(_kept_by_autograd(lambda rows=rows, given=given: objective.logits(module, given, rows), ours))
    row = max(0, kept[1] - kept[0])
    return {"row_bytes": row, "input_bytes": inputs[1] - inputs[0], "copies_bytes": max(0, kept[0] - 2 * row)}


def _kept_by_autograd(forward: Callable[[], object], ours: set[int]) -> int:
    """Bytes of the storages that autograd keeps for the way back through a pass, without those at `ours`."""
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no storage's place is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    sizes = [tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in ours]
    del result
    return sum(sizes)


def free_memory(device: str) -> int:
    """Bytes that this process can still have on a device."""
    kind = device.split(":")[0]
    if kind == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return memory.free_memory()

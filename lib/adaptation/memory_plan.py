"""What a phase of adaptation will need of memory, part by part, before it starts.

The arithmetic is in `lib.adaptation.needs`. `check` fills it in for a phase and stops with one sentence when the memory
that is free will not do, naming the setting that mends it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lib.adaptation.levels import Levels
from lib.adaptation.needs import Needs, plan
from lib.adaptation.objectives import PredictionObjective
from lib.runtime import memory
from lib.vectors.mapped import in_words, is_mapped

SMALL = 10_000_000  # parameters of a model that fits into any computer's memory: no plan is made for it on a CPU


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

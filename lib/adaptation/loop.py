r"""Test-time adaptation: ONE loop for AdaMerging, Concrete Task Arithmetic and Concrete AdaMerging.

Algorithm 1 of https://arxiv.org/abs/2312.06173 in eight lines, and where each of them is:

    1   logits x and coefficients lambda at their initial values                               Levels(...)
    2   for every step                                                                         descend
    3       draw a mask m ~ Concrete(x), and rescale it: m_hat = m / mean_l(m)                 Levels.draw_mask
    4       merge inside it: theta = theta0 + m_hat * sum_t lambda_t tau_t              \
    5       inner level: lambda* = lambda - rate * dL/dlambda, m held fixed             /      Levels.inner_step
    6       merge at lambda*                                                            \
    7       upper level: x = x - rate * dL/dx, lambda* held fixed                       /      Levels.upper_step
    8   the mask that stays, and coefficients to start from                                    Adapted

L is any objective on unlabelled batches. A method leaves out the lines of what it does not learn:

    what is learned        coefficients="task" | "layer" | None     learn_mask      fixed mask
    AdaMerging             "task" or "layer"                        False           None
    Concrete Task Arith.   None                                     True            None
    Concrete AdaMerging    "task" or "layer" (inner level)          True            None
      then adaptation      "task" or "layer"                        False           the learned mask

What the paper leaves open is in `lib.adaptation.protocol`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lib.adaptation import memory_plan
from lib.adaptation.failures import signatures
from lib.adaptation.levels import Levels
from lib.adaptation.protocol import Protocol
from lib.adaptation.together import divided, shared_by_processes
from lib.concrete.merge_step import MergeStep
from lib.concrete.sharding import Shard
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.progress import progress
from lib.vectors.flat_model import Objective
from lib.vectors.layout import Layout

LOOK_EVERY = 25  # steps between two looks at the curve: till then its numbers stay on the device, which goes on working
PATIENCE = 100  # steps after which a loss that has not fallen is worth a warning: batches differ more than steps move
Row = dict[str, float | Tensor]  # of a curve; numbers that a device made may still be there


@dataclass(frozen=True)
class Adapted:
    """Outcome of the loop.

    Attributes:
        coefficients: merging coefficients [T] or [T, L] (their initial value when only a mask was learned).
        logits: mask logits [D], or None when no mask was learned.
        curve: one row per step: step, loss (nats, summed over tasks), mask_mean, lowest_density, and what the
            objective, `watch` and `evaluate` said.
    """

    coefficients: Tensor
    logits: Tensor | None
    curve: pd.DataFrame


def adapt(
    objective_at: Callable[[int], Objective],
    theta0: Tensor | Callable[[Tensor], None],
    task_vectors: Tensor,
    layout: Layout,
    *,
    steps: int,
    coefficients: str | None = "layer",
    learn_mask: bool = False,
    rescaled_mask: Tensor | None = None,
    initial_coefficient: float = 0.3,
    learning_rate: float = 1e-3,
    mask_learning_rate: float = 1e-3,
    temperature: float = 0.5,
    seed: int = 0,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    watch: Callable[[MergeStep], dict[str, float]] | None = None,
    evaluate: Callable[[Tensor], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    label: str = "adaptation",
    checkpoint: Checkpoint | None = None,
    backend: str = "auto",
    shard: Shard | None = None,
) -> Adapted:
    """Minimise the objective over coefficients, mask logits, or both (see the module's table).

    Processes that run a notebook together (`lib.runtime.ranks`) share the work: each lets its own tasks through the
    model and holds its own part of mask, moments and task vectors. The result is that of one process up to rounding.

    Args:
        objective_at: number of a batch -> objective on that unlabelled batch, which maps theta [D] to (loss, G [D]).
            The two levels of a bi-level step take batches of their own. It may have what
            `lib.adaptation.objectives.PredictionObjective` has beside that: `report`, `reset`, `state`, `load_state`.
        theta0: pre-trained parameters [D], or a function that writes them into a vector (see `MergeStep`).
        task_vectors: [T, D], in float32 or half precision, on theta0's device or, mapped, on the CPU; sums of them are
            made in float32. To learn a mask alone, their sum [1, D] says as much (see `lib.vectors.streaming`).
        layout: where the layers lie.
        steps: number of steps.
        coefficients: "task", "layer", or None to leave them at their initial value.
        learn_mask: learn mask logits (upper level); coefficients are then the inner level.
        rescaled_mask: a fixed mask m_hat [D] to merge inside.
        initial_coefficient: lambda at the start, and before every inner step (paper: 0.3).
        learning_rate: the coefficients' (paper: 1e-3 in adaptation, 1 in the inner level).
        mask_learning_rate: Adam's for the logits (paper: 1e-3 over 2000 steps).
        temperature: of the mask's samples (paper: 0.5).
        seed: names the mask's noise.
        protocol: what the paper and its codes leave open or do differently.
        watch: called after every step; the numbers it returns become columns of the curve.
        evaluate: called every `evaluate_every` steps and after the last with the theta [D] that the run would end with
            now; likewise. Nothing it returns reaches the loop, so it may look at labels.
        evaluate_every: 0 for never.
        label: shown with the progress.
        checkpoint: where to save and from where to continue; of several processes a `SharedCheckpoint`.
        backend: "compiled", "eager" or "auto", see `MergeStep`.
        shard: this process's part under torch.distributed, for a caller who has divided everything already: theta0,
            task_vectors and rescaled_mask are that part, and the objective sees this process's share of the batch.

    Returns:
        What was learned, and the curve of the loss.

    Raises:
        ValueError: for arguments that contradict each other, or a loss that is not finite (naming the step).
        MemoryError: if a large model's plan does not fit, with the settings that mend it.
    """
    if evaluate and not isinstance(theta0, Tensor):
        raise ValueError("evaluate needs theta0 as a tensor")
    length, tasks = layout.length, len(task_vectors)
    given = objective_at, theta0, task_vectors, rescaled_mask
    if shared_by_processes(objective_at=objective_at, protocol=protocol, shard=shard):
        shard, *given = divided(layout, *given)
    *point, mask = given
    levels = Levels(
        *point, shard or Shard(layout), coefficients=coefficients, learn_mask=learn_mask, rescaled_mask=mask,
        initial_coefficient=initial_coefficient, learning_rate=learning_rate, mask_learning_rate=mask_learning_rate,
        temperature=temperature, seed=seed, protocol=protocol, backend=backend,
    )  # fmt: skip
    memory_plan.announce(label, levels)

    def step_of(step: int) -> Row:
        return one_step(levels, step) | (watch(levels.merging) if watch else {})

    score = (lambda: evaluate(levels.outcome()[:length])) if evaluate else None
    curve = descend(levels, step_of, steps, label=label, checkpoint=checkpoint, score=score, score_every=evaluate_every)
    found, logits = levels.final_coefficients, levels.logits
    found = found if coefficients else found.expand(tasks)
    return Adapted(found.clone(), None if logits is None else logits[:length], curve)


def one_step(levels: Levels, step: int) -> Row:
    """Lines 3 to 7 of Algorithm 1, as far as the method has them.

    Returns:
        A row of the curve: step, what the mask is like, loss of all processes, what the objective reports. Numbers
        that a device made are still there: to read one would be to wait for all that the device has to do.
    """
    row: Row = {"step": step}
    if levels.learn_mask:
        row |= levels.draw_mask(step)
    if levels.learn_coefficients:
        levels.inner_step(step)
    if levels.learn_mask:
        levels.upper_step(step)
    return row | {"loss": levels.shard.total(levels.loss)} | levels.report


adapt.together = shared_by_processes


class Learned(typing.Protocol):
    """What a loop moves, as far as a checkpoint must know it."""

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""


def descend(
    learned: Learned,
    one_step: Callable[[int], Row],
    steps: int,
    *,
    label: str,
    checkpoint: Checkpoint | None = None,
    score: Callable[[], dict[str, float]] | None = None,
    score_every: int = 0,
) -> pd.DataFrame:
    """Line 2: step after step, with progress, warnings and checkpoints.

    Args:
        learned: what the steps move.
        one_step: the number of a step -> take it, and say its row of the curve: step, loss, ...
        steps: number of steps, those of a checkpoint included.
        label: shown with the progress.
        checkpoint: where to save and from where to continue.
        score: called every `score_every` steps and after the last; the numbers it returns become columns.
        score_every: 0 for never.

    Returns:
        The curve: one row per step.

    Raises:
        ValueError: for a loss that is not finite (naming the step).
    """
    checkpoint, curve = checkpoint or Checkpoint(None), []
    if saved := checkpoint.load():
        learned.load_state(saved)
        curve = saved["curve"]
    said = set(signatures(curve, PATIENCE))

    def recent_loss() -> str:
        return f"loss {float(curve[-1]['loss']):.3f}" if curve else ""

    for step in progress(range(len(curve), steps), label, total=steps, postfix=recent_loss, begin=len(curve)):
        row = one_step(step)
        if score and score_every and ((step + 1) % score_every == 0 or step + 1 == steps):
            row |= score()
        curve.append({name: value if isinstance(value, Tensor) else float(value) for name, value in row.items()})
        curve[-1]["step"] = step
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
            _warn(label, _read(label, curve), said)
        checkpoint.save(lambda: {"curve": _read(label, curve), **learned.state()})
    return pd.DataFrame(curve)


def _read(label: str, curve: list[Row]) -> list[dict[str, float]]:
    """The curve as plain numbers, in place; those of the steps since the last look come from the device in one copy.

    Raises:
        ValueError: if a loss is not finite, naming the first step.
    """
    recent = curve[-LOOK_EVERY:]
    waiting = [(row, name) for row in recent for name, value in row.items() if isinstance(value, Tensor)]
    numbers = torch.stack([row[name].detach() for row, name in waiting]).tolist() if waiting else []
    for (row, name), number in zip(waiting, numbers, strict=True):
        row[name] = number
    for row in recent:
        if not math.isfinite(row["loss"]):
            raise ValueError(f"{label}: the loss is {row['loss']} at step {row['step']}; lower the learning rate")
    return curve


def _warn(label: str, curve: list[dict[str, float]], said: set[str]) -> None:
    """Say each failure signature once."""
    for name, sentence in signatures(curve, PATIENCE).items():
        if name not in said:
            tqdm.write(f"{label}: {sentence}")
            said.add(name)

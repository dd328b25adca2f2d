"""Fine-tuning: one expert per task from one pre-trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.progress import progress
from lib.vectors.batch_norm import load_statistics, statistics
from lib.vectors.flat_model import FlatModel

WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps
CURVE = ("task", "step", "loss", "validation_accuracy")


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth of the steps, then a half cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class Expert:
    """What fine-tuning on one task leaves.

    Attributes:
        theta: parameters [D].
        statistics: BatchNorm's running statistics by name; {} without BatchNorm.
        curve: learning curve: task, step, loss (nats), validation_accuracy (0 to 1).
        kept: experts as they were after fewer steps, by number of steps.
    """

    theta: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CURVE)))
    kept: dict[int, Expert] = field(default_factory=dict)


def fine_tune(
    model: FlatModel,
    theta0: Tensor,
    loss_at: Callable[[nn.Module, int], Tensor],
    accuracy: Callable[[nn.Module], float],
    *,
    task: str,
    steps: int,
    learning_rate: float,
    keep: Collection[int] = (),
    checkpoint: Checkpoint | None = None,
) -> Expert:
    """Train a model on one task (AdamW, warm-up, cosine decay).

    The loss of a step is a function of that step, and a checkpoint holds parameters and optimiser state, so a run that
    was killed and continued gives the same bits as one that was not. BatchNorm's running statistics start as the
    pre-trained model's, and the module is left with the expert's own.

    Args:
        model: what is trained.
        theta0: where to start [D]; left unchanged.
        loss_at: the training loss on the batch of a step.
        accuracy: on validation examples, for the learning curve only.
        task: shown with the progress and in the curve.
        steps: optimiser steps.
        learning_rate: AdamW's peak.
        keep: after how many steps the unfinished expert is kept as well.
        checkpoint: where to save and from where to continue.

    Returns:
        The expert.

    Raises:
        ValueError: if the loss stops being finite (naming task and step).
    """
    checkpoint = checkpoint or Checkpoint(None)
    theta = theta0.clone()
    load_statistics(model.move_to(theta), model.initial_statistics)
    optimiser = torch.optim.AdamW([theta], lr=learning_rate, weight_decay=WEIGHT_DECAY)
    done, curve, recent, kept = 0, [], float("nan"), {}
    if saved := checkpoint.load():
        theta.copy_(saved["theta"])
        optimiser.load_state_dict(saved["optimiser"])
        load_statistics(model.module, saved["statistics"])
        done, curve, recent = saved["step"], [tuple(row) for row in saved["curve"]], saved["recent"]
        kept = saved["kept"]
    look = max(1, steps // 8)  # points on the learning curve

    for step in progress(range(done, steps), f"fine-tuning {task}", total=steps, begin=done):
        module = model.move_to(theta).train()
        loss = loss_at(module, step)
        if not torch.isfinite(loss):
            raise ValueError(f"fine-tuning {task}: the loss is {loss.item()} at step {step}; lower the learning rate")
        loss.backward()
        optimiser.param_groups[0]["lr"] = learning_rate_at(step, steps, learning_rate)
        theta.grad = model.gradient
        optimiser.step()
        recent = loss.item() if math.isnan(recent) else 0.9 * recent + 0.1 * loss.item()
        if (step + 1) % look == 0 or step + 1 == steps:
            curve.append((task, step + 1, recent, accuracy(module.eval())))
        if step + 1 in keep:
            kept[step + 1] = (theta.clone(), statistics(model.module))

        def state(step: int = step, recent: float = recent) -> dict:
            so_far = {"step": step + 1, "recent": recent, "curve": curve, "kept": kept}
            model_so_far = {"theta": theta, "statistics": statistics(model.module)}
            return {**model_so_far, "optimiser": optimiser.state_dict(), **so_far}

        checkpoint.save(state)
    early = {number: Expert(*parts) for number, parts in kept.items()}
    return Expert(theta, statistics(model.module), pd.DataFrame(curve, columns=list(CURVE)), early)

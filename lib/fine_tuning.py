"""Fine-tuning: one expert per task from one pre-trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import pandas as pd
import torch
from torch import Tensor, nn

from lib.batch_norm import load_statistics, statistics
from lib.batches import gather
from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.models import Preprocess
from lib.progress import progress
from lib.rng import batch_indices, generator
from lib.store import Checkpoint

VERSION = 1  # part of every artifact key; raise it when the recipe's arithmetic changes
WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps
CURVE = ("task", "step", "loss", "validation_accuracy")


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth of the steps, then a half cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def shifted(pixels: Tensor, reach: int, *names: str | int) -> Tensor:
    """Move every image by up to `reach` pixels in each direction (edges repeated): the only augmentation.

    Args:
        pixels: uint8 [N, 3, H, W].
        reach: largest shift; 0 leaves the images alone.
        names: what the shift is for, as in `rng.generator`.
    """
    if reach == 0:
        return pixels
    count, _, height, width = pixels.shape
    moves = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator("shift", *names))
    padded = pixels.new_empty(count, 3, height + 2 * reach, width + 2 * reach)
    inner = padded[:, :, reach:-reach]
    inner[..., reach:-reach] = pixels
    inner[..., :reach], inner[..., -reach:] = pixels[..., :1], pixels[..., -1:]
    padded[:, :, :reach], padded[:, :, -reach:] = inner[:, :, :1], inner[:, :, -1:]
    # Windows copied one by one: on large images thirty times as fast as one indexing by four index tensors.
    places = moves.flatten(1).T.tolist()
    shown = zip(padded, places, strict=True)
    return torch.stack([image[:, down : down + height, right : right + width] for image, (down, right) in shown])


def image_loss(
    head: Tensor,
    train: tuple[Tensor, Tensor],
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    task: str,
    batch: int,
    seed: int,
) -> Callable[[nn.Module, int], Tensor]:
    """Cross-entropy of an image encoder under a frozen head, on the batch of a step.

    Args:
        head: frozen classification head [C, width].
        train: uint8 images [N, 3, H, W] and int64 labels [N].
        preprocess: pixels to input.
        runtime: device and precision.
        task: names the order of the batches and the shifts.
        batch: images per step.
        seed: likewise.
    """
    images, labels = train
    head = head.to(runtime.device)

    def loss_at(encoder: nn.Module, step: int) -> Tensor:
        rows = batch_indices(len(images), batch, step, "fine-tuning", task, seed)
        pixels = preprocess(shifted(gather([images], [rows], runtime.device), 2, task, seed, step))
        with runtime.autocast():
            features = encoder(pixels)
        logits = torch.nn.functional.normalize(features.float(), dim=-1) @ head.T
        return torch.nn.functional.cross_entropy(logits, labels[rows].to(runtime.device))

    return loss_at


def fine_tune(
    model: FlatModel,
    theta0: Tensor,
    loss_at: Callable[[nn.Module, int], Tensor],
    accuracy: Callable[[nn.Module], float],
    *,
    task: str,
    steps: int,
    learning_rate: float,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
    keep: Collection[int] = (),
    on_kept: Callable[[int, dict[str, Tensor]], None] = lambda step, expert: None,
) -> tuple[Tensor, pd.DataFrame]:
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
        checkpoint: where to save and from where to continue.
        on_step: called after every step, and once for each step that a checkpoint already holds.
        keep: after how many steps `on_kept` is called.
        on_kept: takes that number and the unfinished expert: "theta" and BatchNorm's running statistics.

    Returns:
        The expert's parameters [D], and its learning curve (task, step, loss, validation_accuracy).

    Raises:
        ValueError: if the loss stops being finite (naming task and step).
    """
    checkpoint = checkpoint or Checkpoint(None)
    theta = theta0.clone()
    load_statistics(model.move_to(theta), model.initial_statistics)
    optimiser = torch.optim.AdamW([theta], lr=learning_rate, weight_decay=WEIGHT_DECAY)
    done, curve, recent = 0, [], float("nan")
    if saved := checkpoint.load():
        theta.copy_(saved["theta"])
        optimiser.load_state_dict(saved["optimiser"])
        load_statistics(model.module, saved["statistics"])
        done, curve, recent = saved["step"], [tuple(row) for row in saved["curve"]], saved["recent"]
    for _ in range(done):
        on_step()
    look = max(1, steps // 8)  # points on the learning curve

    for step in progress(range(done, steps), f"fine-tuning {task}", total=steps - done):
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
            on_kept(step + 1, {"theta": theta.clone(), **statistics(model.module)})

        def state(step: int = step, recent: float = recent) -> dict:
            progress_so_far = {"step": step + 1, "recent": recent, "curve": curve}
            model_so_far = {"theta": theta, "statistics": statistics(model.module)}
            return {**model_so_far, "optimiser": optimiser.state_dict(), **progress_so_far}

        checkpoint.save(state)
        on_step()
    return theta, pd.DataFrame(curve, columns=list(CURVE))

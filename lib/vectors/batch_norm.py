"""BatchNorm and merging: whose running statistics a merged model normalises with.

A BatchNorm layer has two kinds of state. Its scale and shift are parameters, so they are part of theta and are merged
like all others. Its running mean and variance are *measurements* of activations under the weights of training. They are
no parameters: they are not in theta, no method merges them, and they are wrong for any other weights, merged ones
above all (REPAIR, https://arxiv.org/abs/2211.08403). The study has one rule for each use:

- the pre-trained model has those of its checkpoint; every fine-tuning starts from them;
- an expert has those of its own fine-tuning, stored beside its theta;
- a merged model has them measured anew, at the merged weights, on unlabelled images of all its tasks, whatever the
  method (`reestimate_batch_norm`);
- while adapting, each step normalises with the mean and variance of its own batch, in which all tasks are mixed, and
  differentiates through them, as TENT does (https://arxiv.org/abs/2006.10726); running statistics are neither read nor
  written (`batch_statistics`). That is what re-estimation averages over many such batches.

Merging whole files (`lib.vectors.streaming`) knows no models: it treats running statistics like any other entry, so
re-estimate them afterwards.

LayerNorm and GroupNorm normalise each image by itself and have no such state; for them everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Mapping[str, Tensor]
BATCHES, ROWS = 8, 256  # of a re-estimation: 2048 images, far more than a mean and a variance per channel need


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers with running statistics, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }


def _running(module: nn.Module) -> dict[str, Tensor]:
    """All running statistics themselves, named as in the module's state dict."""
    return {
        f"{name}.{buffer}" if name else buffer: value
        for name, part in batch_norms(module).items()
        for buffer, value in part.named_buffers(recurse=False)
    }


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all running statistics, named as in the module's state dict; {} without BatchNorm."""
    return {name: value.clone() for name, value in _running(module).items()}


def load_statistics(module: nn.Module, given: Statistics) -> None:
    """Set all running statistics, in place.

    Raises:
        ValueError: if they are not those of this module.
    """
    own = _running(module)
    if own.keys() != given.keys():
        odd = sorted(own.keys() ^ given.keys())[0]
        raise ValueError(f"running statistics '{odd}' are in the model or in what was given, but not in both")
    for name, value in own.items():
        value.copy_(given[name])


@torch.no_grad()
def reestimate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure all running statistics anew: the plain average over batches of each batch's mean and variance.

    As `torch.optim.swa_utils.update_bn` does, but everything else stays in evaluation mode (no dropout). One pass is
    enough: while it runs, each layer already reads what the layers before it give when normalised by their batch. The
    variance within a batch of one task leaves out the spread between tasks, so mix all tasks in every batch.

    Args:
        module: a network; without BatchNorm it is left alone and no batch is drawn.
        batches: its inputs, float32 [B, 3, H, W] each, of about the same size; no labels.

    Raises:
        ValueError: if there is no batch.
    """
    layers = batch_norms(module).values()
    if not layers:
        return
    module.eval()
    momenta = [part.momentum for part in layers]
    for part in layers:
        part.reset_running_stats()
        part.momentum = None  # torch's word for a cumulative average
        part.training = True
    count = 0
    try:
        for batch in batches:
            module(batch)
            count += 1
    finally:
        for part, momentum in zip(layers, momenta, strict=True):
            part.momentum, part.training = momentum, False
    if not count:
        raise ValueError("no batch to re-estimate BatchNorm's running statistics on: give at least one")


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm uses the mean and variance of the batch it is given; running statistics stay as they are."""
    layers = batch_norms(module).values()
    before = [(part.training, part.track_running_stats) for part in layers]
    for part in layers:
        part.training, part.track_running_stats = True, False
    try:
        yield
    finally:
        for part, (training, tracks) in zip(layers, before, strict=True):
            part.training, part.track_running_stats = training, tracks

"""Learns a Concrete mask and coefficients on a small network; started by torchrun (several ranks) or alone.

Each of two halves of the batch has its own loss. Two ranks take one half each; one process takes both, one after the
other, and adds up. Either way the gradient is the sum of the same two vectors.
"""

import sys

import torch
import torch.distributed as distributed
from torch import nn

from lib.adaptation.loop import adapt
from lib.concrete.sharding import Shard
from lib.vectors.flat_model import FlatModel


def halves(model: FlatModel):
    """Two objectives, one per half of a batch of 32 inputs: entropy of the network's predictions."""

    def objective_of(half: int):
        def at(step: int):
            inputs = torch.randn(32, 20, generator=torch.Generator().manual_seed(step))[16 * half : 16 * half + 16]

            def objective(theta):
                log_p = model.move_to(theta)(inputs).log_softmax(-1)
                loss = -(log_p.exp() * log_p).sum(-1).mean()
                loss.backward()
                return loss.item(), model.gradient.clone()

            return objective

        return at

    return [objective_of(0), objective_of(1)]


def both(first, second):
    def at(step: int):
        def objective(theta):
            (loss_a, g_a), (loss_b, g_b) = first(step)(theta), second(step)(theta)
            return loss_a + loss_b, g_a + g_b

        return objective

    return at


def main(path: str, backend: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = FlatModel(nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 10)), parts=2)
    layout, theta0 = model.layout, model.initial()
    task_vectors = 0.3 * torch.randn(4, layout.length) * layout.inside()
    shard = Shard.mine(layout)
    objectives = halves(model)
    found = adapt(
        objectives[shard.rank] if shard.ranks == 2 else both(*objectives),
        theta0[shard.elements].clone(),
        task_vectors[:, shard.elements].clone(),
        layout,
        steps=8,
        coefficients="layer",
        learn_mask=True,
        mask_learning_rate=0.1,
        learning_rate=0.1,
        backend=backend,
        shard=shard,
    )
    losses = torch.tensor(found.curve["loss"].tolist())
    if shard.rank == 0:
        torch.save({"logits": found.logits, "losses": losses, "density": found.curve["mask_mean"].tolist()}, path)


if __name__ == "__main__":
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    main(*sys.argv[1:])
    if distributed.is_initialized():
        distributed.destroy_process_group()

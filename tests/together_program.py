"""Runs every adaptive method on a small world and breaks one run off; started by torchrun (several ranks) or alone.

Three processes meet every oddity at once: two tasks, so that one process has none, and four blocks, so that one process
has only the empty ones that a layout in parts gets at its end.
"""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from small_world import World

from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.adaptation.together import SharedObjective
from lib.concrete.sharding import Shard
from lib.runtime import ranks
from lib.runtime.checkpoint import SharedCheckpoint
from lib.runtime.device import Runtime
from lib.study.recipes import RECIPES, merge_by_name

TASKS = ("three", "one")


class Scored(World):
    """The world, with a score that says where in R^D a model is."""

    def evaluate(self, theta, method, *splits, tasks=(), corruption="", limit=None):
        score = float((theta * torch.linspace(0, 1, len(theta))).sum())
        return pd.DataFrame({"task": list(tasks), "accuracy": [score] * len(tasks)})


def parts_of(merged):
    """What a method found, as tensors."""
    curves = [curve.drop(columns="step") for curve in (merged.mask_curve, merged.curve) if curve is not None]
    tensors = [merged.theta, merged.coefficients, *(torch.tensor(curve.fillna(0).to_numpy()) for curve in curves)]
    return tensors if merged.logits is None else [*tensors, merged.logits]


class BrokenOff(SharedObjective):
    """Ends the run before a step."""

    def __init__(self, objective, shard, last):
        super().__init__(objective, shard)
        self.last = last

    def __call__(self, step):
        if step == self.last:
            raise KeyboardInterrupt
        return super().__call__(step)


def six_steps(world, checkpoint, last=None):
    """Mask learning, to its end or until it is broken off, from its start or from what a checkpoint holds."""
    setting = world.setting(TASKS, objective="information-maximisation", batch=2)  # fewer rows than classes
    shard = Shard.mine(replace(world.layout, parts=ranks.count()))
    objective = BrokenOff(world.objective(setting), shard, last)
    vectors = shard.part(setting.task_vectors)
    options = {"steps": 6, "learn_mask": True, "coefficients": None, "mask_learning_rate": 0.1}
    found = adapt(
        objective, shard.part(world.theta0), vectors, shard.layout, shard=shard, checkpoint=checkpoint, **options
    )
    return [found.logits[: world.layout.length], torch.tensor(found.curve.drop(columns="step").to_numpy())]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks.join(Runtime())
    world = Scored(folder / f"root{ranks.count()}")
    setting = world.setting(TASKS)
    found = {name: parts_of(merge_by_name(world, name, setting, curves=True)) for name in RECIPES}
    exact = Protocol(hypergradient="exact")
    found["exact"] = parts_of(merge_by_name(world, "Concrete AdaMerging (layer-wise)", setting, protocol=exact))
    found["whole"] = six_steps(world, SharedCheckpoint(folder / "none.pt", every=1e9))
    half = folder / "half.pt"
    if ranks.count() > 1:
        with suppress(KeyboardInterrupt):
            six_steps(world, SharedCheckpoint(half, every=0), last=3)
    found["continued"] = six_steps(world, SharedCheckpoint(half, every=1e9))
    for others in ranks.everyone(found):
        for name, tensors in others.items():
            assert all(map(torch.equal, tensors, found[name])), f"{name} is not the same in every process"
    if ranks.number() == 0:
        torch.save(found, folder / f"{ranks.count()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

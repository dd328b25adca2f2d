"""The planted world: experts are perfect, merging interferes, a mask mends it, and a learned one finds that mask."""

import pytest
import torch

from lib import concrete
from lib.adaptation.loop import adapt
from worlds.planted import plant, precision_and_recall


def loss_with(world, mask):
    total = world.scaling_factor * world.task_vectors.sum(0)
    rescaled = concrete.rescale(mask, world.layout)
    return world.losses(concrete.merge_sum(world.theta0, total, rescaled)).mean().item()


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_experts_are_perfect_and_only_the_planted_mask_merges_them(density):
    world = plant(tasks=4, size=2000, density=density, seed=1)
    for task, vector in enumerate(world.task_vectors):
        assert world.losses(world.theta0 + vector)[task] == 0
    whole = loss_with(world, world.layout.inside())
    assert loss_with(world, world.shared) < whole / 50


def test_the_objective_is_the_gradient_of_the_losses_when_there_is_no_noise():
    world = plant(tasks=3, layers=2, size=50)
    theta = torch.randn(world.layout.length).requires_grad_()
    (world.losses(theta).sum() * world.layout.parameters).backward()
    loss, gradient = world.objective(noise=0.0, seed=0)(0)(theta.detach())
    torch.testing.assert_close(gradient, theta.grad)
    assert loss == pytest.approx(world.losses(theta).sum().item())


def test_a_learned_mask_converges_to_the_planted_one():
    world = plant(size=1000, seed=5)
    learned = adapt(
        world.objective(noise=3.0, seed=5), world.theta0, world.task_vectors, world.layout,
        steps=300, coefficients=None, learn_mask=True, initial_coefficient=world.scaling_factor,
        mask_learning_rate=0.05,
        watch=lambda merging: precision_and_recall((merging.logits > 0) * world.layout.inside(), world.shared),
    )  # fmt: skip
    found = learned.curve.iloc[-1]
    assert found["precision"] > 0.99
    assert found["recall"] > 0.99
    assert learned.curve["recall"].iloc[0] < 0.8


def test_precision_and_recall_on_a_worked_example():
    chosen, wanted = torch.tensor([1.0, 1, 0, 0, 1]), torch.tensor([1.0, 0, 1, 0, 1])
    assert precision_and_recall(chosen, wanted) == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3)}
    assert precision_and_recall(torch.zeros(5), wanted) == {"precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize("bad", [{"tasks": 1}, {"density": 0.0}, {"density": 1.0}])
def test_worlds_without_interference_are_refused(bad):
    with pytest.raises(ValueError, match="planting needs two tasks"):
        plant(**bad)

"""The one adaptation loop on objectives whose answer is known."""

import numpy as np
import pytest
import torch
from stopping import dies_at

from lib import concrete
from lib.adaptation.loop import adapt
from lib.runtime.checkpoint import Checkpoint
from lib.vectors.layout import Layout


def problem(tasks=3, seed=0):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(40), "b": torch.zeros(30)}, block=8)
    inside = layout.inside()
    return torch.randn(layout.length) * inside, torch.randn(tasks, layout.length) * inside, layout


def towards(target):
    """Squared distance to a target: loss and gradient, whatever the step."""

    def objective(theta):
        return (theta - target).square().sum().item() / 2, theta - target

    return lambda step: objective


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_adamerging_finds_the_coefficients_of_a_merged_target(granularity):
    theta0, vectors, layout = problem()
    wanted = torch.rand(3, 2) if granularity == "layer" else torch.rand(3)
    target = concrete.merge(theta0, vectors, wanted, layout)
    found = adapt(towards(target), theta0, vectors, layout, steps=400, coefficients=granularity, learning_rate=0.02)
    torch.testing.assert_close(found.coefficients, wanted, atol=0.01, rtol=0)
    assert found.curve["loss"].iloc[-1] < 1e-2 < found.curve["loss"].iloc[0]


@pytest.mark.parametrize("inner", [None, "task", "layer"])
def test_the_mask_finds_a_planted_subspace(inner):
    """Entries of the sum that the target lacks must be masked out, the others kept."""
    theta0, vectors, layout = problem()
    planted = (torch.rand(layout.length) < 0.5).float() * layout.inside()
    start = torch.full((3,), 0.3)
    target = concrete.merge(theta0, vectors, start, layout, concrete.rescale(planted, layout))
    found = adapt(
        towards(target), theta0, vectors, layout,
        steps=600, coefficients=inner, learn_mask=True, mask_learning_rate=0.05, learning_rate=1e-3,
    )  # fmt: skip
    clear = (concrete.weighted_sum(vectors, start, layout).abs() > 0.3) & (layout.inside() > 0)
    agreement = ((found.logits > 0).float() == planted)[clear].float().mean()
    assert agreement > 0.9
    assert torch.equal(found.coefficients.flatten(), torch.full_like(found.coefficients.flatten(), 0.3))


@pytest.mark.parametrize(
    "mode",
    [
        {"coefficients": "layer"},
        {"coefficients": "layer", "learn_mask": True},
        {"coefficients": None, "learn_mask": True},
    ],
)
def test_an_interrupted_run_continues_to_the_same_bits(tmp_path, mode):
    theta0, vectors, layout = problem()
    target = theta0 + vectors[0]
    mode |= {"evaluate": lambda theta: {"accuracy": np.float64(theta.sum())}, "evaluate_every": 2}
    whole = adapt(towards(target), theta0, vectors, layout, steps=12, **mode)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", every=0)
    with pytest.raises(KeyboardInterrupt):
        adapt(dies_at(7, towards(target)), theta0, vectors, layout, steps=12, checkpoint=checkpoint, **mode)
    resumed = adapt(towards(target), theta0, vectors, layout, steps=12, checkpoint=checkpoint, **mode)
    assert torch.equal(whole.coefficients, resumed.coefficients)
    if whole.logits is not None:
        assert torch.equal(whole.logits, resumed.logits)
    assert whole.curve.equals(resumed.curve)


def test_arguments_that_contradict_each_other():
    theta0, vectors, layout = problem()
    objective = towards(theta0)
    with pytest.raises(ValueError, match="coefficients='row'"):
        adapt(objective, theta0, vectors, layout, steps=1, coefficients="row")
    with pytest.raises(ValueError, match="not both"):
        adapt(objective, theta0, vectors, layout, steps=1, learn_mask=True, rescaled_mask=torch.ones(layout.length))
    with pytest.raises(ValueError, match="nothing to learn"):
        adapt(objective, theta0, vectors, layout, steps=1, coefficients=None)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    theta0, vectors, layout = problem()

    def diverges(step):
        return lambda theta: (float("nan") if step == 3 else 1.0, torch.zeros_like(theta))

    with pytest.raises(ValueError, match="at step 3"):
        adapt(diverges, theta0, vectors, layout, steps=9)

"""The named choices of the adaptation loop, each against what it says."""

import pytest
import torch

from lib import concrete
from lib.adaptation.loop import adapt
from lib.adaptation.protocol import CHOICES, Protocol
from lib.concrete.noise import uniform
from lib.runtime.rng import seed_of
from lib.vectors.flat_model import Differentiable
from lib.vectors.layout import Layout


def problem(tasks=3, seed=0):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(40), "b": torch.zeros(30)}, block=8)
    inside = layout.inside().double()
    theta0, vectors = torch.randn(layout.length).double() * inside, torch.randn(tasks, layout.length).double() * inside
    return theta0, vectors, layout


def curved(layout):
    """An objective with curvature that differs from batch to batch."""

    def at(step):
        torch.manual_seed(100 + step)
        target, weight = torch.randn(layout.length).double(), torch.rand(layout.length).double()

        return Differentiable(lambda theta: (weight * (theta - target).cosh()).sum())

    return at


def by_the_book(layout, theta0, vectors, *, steps, layer_wise, protocol, rate, mask_rate, temperature=0.5):
    """Algorithm 1 written out with torch's own Adam and autograd, for the same noise and batches."""
    shape = (len(vectors), layout.layers) if layer_wise else (len(vectors),)
    start = torch.full(shape, 0.3, dtype=torch.float64)
    logits = torch.full((layout.length,), protocol.initial_logits, dtype=torch.float64, requires_grad=True)
    lambdas = start.clone().requires_grad_()
    inner, outer = torch.optim.Adam([lambdas], lr=rate), torch.optim.Adam([logits], lr=mask_rate)
    objectives = curved(layout)

    def theta_at(used, number):
        noise = uniform(layout, seed_of("mask", 0), number, torch.float64)
        mask = concrete.sample_mask(logits, temperature, noise, layout)
        mask = concrete.rescale(mask, layout) if protocol.rescale else mask
        return concrete.merge(theta0, vectors, used, layout, mask)

    def loss_at(theta, number):
        _, gradient = objectives(number)(theta.detach())
        return (theta * gradient).sum()  # the same gradient

    fresh = protocol.outer_sample == "fresh"
    for step in range(steps):
        at = lambdas.detach() if protocol.inner_gradient_at == "previous" else start
        at = (at.clamp(0, 1) if protocol.clamp else at).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_at(theta_at(at, 2 * step if fresh else step), 2 * step), at)
        lambdas.data = start.clone()
        if protocol.moments == "reset":
            inner = torch.optim.Adam([lambdas], lr=rate)
        lambdas.grad = gradient
        inner.step()
        outer.zero_grad()
        used = lambdas.detach().clamp(0, 1) if protocol.clamp else lambdas.detach()
        theta = theta_at(used, 2 * step + 1 if fresh else step)
        loss_at(theta, 2 * step + 1).backward()
        outer.step()
    return logits.detach()


@pytest.mark.parametrize("layer_wise", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"clamp": True, "inner_gradient_at": "previous"},
        {"outer_sample": "fresh"},
        {"inner_gradient_at": "previous"},
        {"moments": "reset"},
        {"initial_logits": 2.0},
        {"rescale": False},
    ],
    ids=str,
)
def test_every_choice_equals_algorithm_1_written_out(choice, layer_wise):
    theta0, vectors, layout = problem()
    protocol = Protocol(**choice)
    options = {"steps": 6, "protocol": protocol}
    found = adapt(
        curved(layout), theta0, vectors, layout, learn_mask=True, coefficients="layer" if layer_wise else "task",
        learning_rate=0.4, mask_learning_rate=0.1, **options,
    )  # fmt: skip
    wanted = by_the_book(layout, theta0, vectors, layer_wise=layer_wise, rate=0.4, mask_rate=0.1, **options)
    inside = layout.inside().bool()
    torch.testing.assert_close(found.logits[inside], wanted[inside], atol=1e-7, rtol=1e-7)


def test_choices_change_the_result():
    """Otherwise the test above could not fail."""
    theta0, vectors, layout = problem()
    choices = [{}, {"outer_sample": "fresh"}, {"inner_gradient_at": "previous"}, {"moments": "reset"},
               {"initial_logits": 2.0}, {"rescale": False}, {"hypergradient": "exact"},
               {"inner_optimiser": "sgd"}, {"l2": 0.5}, {"tie": True}]  # fmt: skip
    found = [
        adapt(
            curved(layout), theta0, vectors, layout, learn_mask=True, coefficients="layer", steps=3,
            learning_rate=0.1, mask_learning_rate=0.1, protocol=Protocol(**choice),
        ).logits
        for choice in choices
    ]  # fmt: skip
    for a in range(len(found)):
        for b in range(a):
            if {"l2"} not in (set(choices[a]), set(choices[b])):  # at the initial value there is nothing to pull back
                assert not torch.allclose(found[a], found[b]), (choices[a], choices[b])


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_clamp_tie_and_l2_of_adamerging(granularity):
    theta0, vectors, layout = problem()
    far = concrete.merge(theta0, vectors, torch.tensor([2.0, -1.0, 0.5]).double(), layout)

    def towards(step):
        return lambda theta: ((theta - far).square().sum().item() / 2, theta - far)

    def found(**choice):
        options = {"steps": 300, "coefficients": granularity, "learning_rate": 0.02, "protocol": Protocol(**choice)}
        return adapt(towards, theta0, vectors, layout, **options).coefficients

    assert found().max() > 1.5
    clamped = found(clamp=True)
    assert clamped.min() >= 0
    assert clamped.max() <= 1
    tied = found(tie=True)
    assert (tied == tied[:1]).all()
    assert (found(l2=1e4) - 0.3).abs().max() < 0.02 < (found() - 0.3).abs().max()


def test_final_masks():
    layout = problem()[2]
    logits = torch.linspace(-3, 3, layout.length)
    hard = concrete.final_mask(logits, layout, "hard", rescaled=False)
    assert torch.equal(hard, (logits > 0).float() * layout.inside())
    assert torch.equal(
        concrete.final_mask(logits, layout, "expected", rescaled=False), concrete.expected_mask(logits, layout)
    )
    sample = concrete.final_mask(logits, layout, "sample", seed=1, rescaled=False)
    assert not torch.equal(sample, concrete.final_mask(logits, layout, "sample", seed=2, rescaled=False))
    for kind in CHOICES["final_mask"]:
        mask = concrete.final_mask(logits, layout, kind)
        torch.testing.assert_close(concrete.layer_means(mask, layout), torch.ones(layout.layers))
    with pytest.raises(ValueError, match="final_mask='soft'"):
        concrete.final_mask(logits, layout, "soft")


def test_a_binary_mask_is_drawn_with_the_probability_of_its_logits():
    layout = Layout(("a", "b"), ((200, 200), (50,)))
    for logit in (-2.0, 0.0, 0.3):
        logits = torch.full((layout.length,), logit)
        mask = concrete.final_mask(logits, layout, "binary", seed=3, rescaled=False)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert (mask * (1 - layout.inside())).sum() == 0
        share = mask.sum().item() / layout.parameters
        assert share == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=0.01), "five standard errors"
        limit = concrete.final_mask(logits, layout, "sample", temperature=1e-6, seed=3, rescaled=False)
        assert torch.equal(mask, limit.round()), "what a sample becomes as the temperature goes to zero"
    assert not torch.equal(mask, concrete.final_mask(logits, layout, "binary", seed=4, rescaled=False))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"outer_sample": "new"}, "outer_sample='new', expected one of 'shared', 'fresh'"),
        ({"moments": True}, "moments=True"),
        ({"l2": -1.0}, "l2=-1.0"),
        ({"hypergradient": "exact", "outer_sample": "fresh"}, "needs outer_sample='shared'"),
    ],
)
def test_a_wrong_choice_names_what_is_known(choice, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**choice)


def test_evaluation_changes_nothing_and_makes_a_curve():
    theta0, vectors, layout = problem()
    seen = []

    def evaluate(theta):
        seen.append(theta.clone())
        return {"accuracy": 0.5, "averaging": 0.6}

    for mode in ({"learn_mask": True}, {}):
        plain = adapt(curved(layout), theta0, vectors, layout, steps=7, **mode)
        scored = adapt(curved(layout), theta0, vectors, layout, steps=7, evaluate=evaluate, evaluate_every=3, **mode)
        assert torch.equal(plain.coefficients, scored.coefficients)
        assert list(scored.curve["accuracy"].notna()) == [False, False, True, False, False, True, True]
        assert torch.isnan(torch.tensor(scored.curve["accuracy"][0]))
    last = concrete.merge(theta0, vectors, scored.coefficients, layout)
    torch.testing.assert_close(seen[-1], last)

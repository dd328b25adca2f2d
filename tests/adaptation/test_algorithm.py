"""`adapt` is Algorithm 1 of the paper: against its lines in plain float64, with only the noise in common."""

import pandas as pd
import pytest
import torch
from torch import nn

from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.concrete.noise import uniform
from lib.runtime.device import Runtime
from lib.runtime.rng import seed_of
from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

STEPS, START, TEMPERATURE, RATE, MASK_RATE = 7, 0.3, 0.5, 0.05, 0.02
SIZES = (40, 30)


def world(tasks=3):
    """theta0 and task vectors of two layers, in float64, and an objective that differs from batch to batch."""
    torch.manual_seed(0)
    layout = Layout.of({"a": torch.zeros(SIZES[0]), "b": torch.zeros(SIZES[1])}, block=8)
    inside = layout.inside().double()
    theta0 = torch.randn(layout.length, dtype=torch.float64) * inside
    vectors = torch.randn(tasks, layout.length, dtype=torch.float64) * inside

    def at(batch):
        draw = torch.Generator().manual_seed(100 + batch)
        target = torch.randn(layout.length, dtype=torch.float64, generator=draw)

        def objective(theta):
            away = theta - target
            return away.cosh().log().sum().item(), away.tanh()

        return objective

    return layout, theta0, vectors, at


def adam_step(values, gradient, moments, rate):
    """Kingma and Ba's Algorithm 1; `moments` is changed in place."""
    moments["t"] += 1
    moments["m"] = 0.9 * moments["m"] + 0.1 * gradient
    moments["v"] = 0.999 * moments["v"] + 0.001 * gradient**2
    m, v = moments["m"] / (1 - 0.9 ** moments["t"]), moments["v"] / (1 - 0.999 ** moments["t"])
    return values - rate * m / (v.sqrt() + 1e-8)


def fresh(values):
    return {"m": torch.zeros_like(values), "v": torch.zeros_like(values), "t": 0}


class Layers:
    """The two layers of the flat vector as plain slices."""

    def __init__(self, layout):
        self.slices = [slice(first, first + size) for first, size in zip(layout.offsets, SIZES, strict=False)]

    def masked(self, x, u):
        """m and m / mean(m), layer by layer; zero in the padding."""
        m, rescaled = torch.zeros_like(x), torch.zeros_like(x)
        for own in self.slices:
            m[own] = torch.sigmoid((u[own].log() - (1 - u[own]).log() + x[own]) / TEMPERATURE)
            rescaled[own] = m[own] / m[own].mean()
        return m, rescaled

    def merged(self, theta0, vectors, lambdas, mask):
        """theta0 + m_hat * sum_t lambda_{t,l} tau_t, and the sum; `lambdas` [T, L]."""
        summed = torch.zeros_like(theta0)
        for layer, own in enumerate(self.slices):
            for task, vector in enumerate(vectors):
                summed[own] += lambdas[task, layer] * vector[own]
        return theta0 + mask * summed, summed

    def by_coefficients(self, gradient, vectors, mask):
        """dL/dlambda_{t,l} = sum_{i in l} G_i m_hat_i tau_{t,i}."""
        rows = [[(gradient[own] * mask[own] * vector[own]).sum() for own in self.slices] for vector in vectors]
        return torch.tensor(rows, dtype=torch.float64)

    def by_logits(self, gradient, summed, m):
        """dL/dx through the rescaled mask, the coefficients held fixed."""
        found = torch.zeros_like(gradient)
        for own in self.slices:
            mean, product = m[own].mean(), gradient[own] * summed[own]
            by_m = product / mean - (product * m[own]).sum() / (mean**2 * len(m[own]))
            found[own] = by_m * m[own] * (1 - m[own]) / TEMPERATURE
        return found


def algorithm_1(granularity, optimiser, seed):
    """Both levels: logits, and the loss of every upper step."""
    layout, theta0, vectors, at = world()
    layers, logits, losses = Layers(layout), torch.zeros_like(theta0), []
    upper, inner = fresh(logits), None
    for step in range(STEPS):
        u = uniform(layout, seed_of("mask", seed), step, torch.float64)
        m, mask = layers.masked(logits, u)  # line 3
        lambdas = torch.full((len(vectors), 2), START, dtype=torch.float64)
        if granularity is not None:
            theta, _ = layers.merged(theta0, vectors, lambdas, mask)  # line 4
            gradient = layers.by_coefficients(at(2 * step)(theta)[1], vectors, mask)  # line 5
            if granularity == "task":
                gradient = gradient.sum(1)
            start = torch.full_like(gradient, START)
            inner = inner or fresh(start)
            moved = start - RATE * gradient if optimiser == "sgd" else adam_step(start, gradient, inner, RATE)
            lambdas = moved if granularity == "layer" else moved[:, None].expand(-1, 2)
        theta, summed = layers.merged(theta0, vectors, lambdas, mask)  # line 6
        loss, gradient = at(2 * step + 1 if granularity else step)(theta)
        logits = adam_step(logits, layers.by_logits(gradient, summed, m), upper, MASK_RATE)  # line 7
        losses.append(loss)
    return logits, losses


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("seed", [0, 5])
def test_both_levels_are_the_lines_of_algorithm_1(granularity, optimiser, seed):
    layout, theta0, vectors, at = world()
    found = adapt(
        at, theta0, vectors, layout, steps=STEPS, coefficients=granularity, learn_mask=True, seed=seed,
        initial_coefficient=START, learning_rate=RATE, mask_learning_rate=MASK_RATE, temperature=TEMPERATURE,
        protocol=Protocol(inner_optimiser=optimiser),
    )  # fmt: skip
    logits, losses = algorithm_1(granularity, optimiser, seed)
    assert logits.abs().max() > 3 * MASK_RATE, "the logits have moved"
    torch.testing.assert_close(found.logits, logits, atol=1e-9, rtol=1e-9)
    assert found.curve["loss"].tolist() == pytest.approx(losses, rel=1e-10)
    assert torch.equal(found.coefficients, torch.full_like(found.coefficients, START)), "line 8: they start anew"


def test_the_two_optimisers_and_granularities_differ():
    """Otherwise the test above could not fail."""
    results = [algorithm_1(granularity, optimiser, 0)[0] for granularity, optimiser in (
        ("task", "sgd"), ("task", "adam"), ("layer", "sgd"), ("layer", "adam"), (None, ""))]  # fmt: skip
    for number, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-6 for other in results[:number])


def test_the_upper_level_alone_is_concrete_task_arithmetic():
    layout, theta0, vectors, at = world()
    options = {"initial_coefficient": START, "mask_learning_rate": MASK_RATE, "temperature": TEMPERATURE}
    found = adapt(at, theta0, vectors, layout, steps=STEPS, coefficients=None, learn_mask=True, **options)
    logits, losses = algorithm_1(None, "", 0)
    torch.testing.assert_close(found.logits, logits, atol=1e-9, rtol=1e-9)
    assert found.curve["loss"].tolist() == pytest.approx(losses, rel=1e-10)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_inner_level_alone_is_adamerging(masked, optimiser):
    """Layer-wise, in the whole space and inside a mask; each step from where the last one ended.

    Adam, whatever the optimiser of an inner level: where there is one level only, there is no inner one.
    """
    layout, theta0, vectors, at = world()
    layers = Layers(layout)
    mask = layers.masked(torch.linspace(-2, 2, layout.length).double(), torch.full_like(theta0, 0.3))[1]
    found = adapt(
        at, theta0, vectors, layout, steps=STEPS, coefficients="layer", learning_rate=RATE, initial_coefficient=START,
        rescaled_mask=mask if masked else None, protocol=Protocol(inner_optimiser=optimiser),
    )  # fmt: skip
    used = mask if masked else layout.inside().double()
    lambdas, losses = torch.full((3, 2), START, dtype=torch.float64), []
    moments = fresh(lambdas)
    for step in range(STEPS):
        loss, gradient = at(step)(layers.merged(theta0, vectors, lambdas, used)[0])
        gradient = layers.by_coefficients(gradient, vectors, used)
        lambdas = adam_step(lambdas, gradient, moments, RATE)
        losses.append(loss)
    assert (lambdas - START).abs().max() > RATE
    torch.testing.assert_close(found.coefficients, lambdas, atol=1e-9, rtol=1e-9)
    assert found.curve["loss"].tolist() == pytest.approx(losses, rel=1e-10)


@pytest.mark.parametrize("mode", [{}, {"learn_mask": True}, {"learn_mask": True, "coefficients": None}])
def test_a_second_run_with_the_same_objective_gives_the_same(mode):
    """What the first has seen, running mean predictions where classes outnumber the batch, is forgotten."""
    torch.manual_seed(0)
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 6)))
    theta0 = model.initial()
    vectors = 0.1 * torch.randn(2, model.layout.length) * model.layout.inside()
    heads, sets = [4 * torch.randn(9, 6) for _ in range(2)], [torch.randint(0, 255, (12, 3, 4, 4)) for _ in range(2)]
    objective = ImageObjective(
        model, heads, [images.to(torch.uint8) for images in sets], Preprocess((0.5,) * 3, (0.25,) * 3), Runtime(),
        batch=3, seed=0, objective="information-maximisation",
    )  # fmt: skip
    options = {"steps": 5, "learning_rate": 0.1, "mask_learning_rate": 0.1} | mode
    first, second = (adapt(objective, theta0, vectors, model.layout, **options) for _ in range(2))
    assert any(mean is not None for mean in objective.state())
    pd.testing.assert_frame_equal(first.curve, second.curve, check_exact=True)
    assert torch.equal(first.coefficients, second.coefficients)
    if first.logits is not None:
        assert torch.equal(first.logits, second.logits)
    used = objective(0)(theta0)[0]
    objective.reset()
    assert objective(0)(theta0)[0] != used, "otherwise this test could not fail"

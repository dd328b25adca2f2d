"""The exact gradient of the mask against automatic differentiation through the bi-level formula as it is written."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib import concrete
from lib.adaptation.coefficients import Coefficients, adam
from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.concrete.kernels import BETA_1, BETA_2, EPSILON
from lib.concrete.noise import uniform
from lib.runtime.device import Runtime
from lib.runtime.rng import seed_of
from lib.vectors.flat_model import Differentiable, FlatModel
from lib.vectors.layout import Layout
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

TASKS, STEPS, START, SEED = 3, 4, 0.3, 7
LAYERS = {"a": (6, 5), "b": (6,), "c": (6, 4)}


@pytest.fixture
def world():
    """A two-layer network with flat parameters in float64."""
    draw = torch.Generator().manual_seed(0)
    layout = Layout(tuple(LAYERS), tuple(LAYERS.values()), block=8)
    theta0, vectors = (torch.randn(*n, layout.length, generator=draw, dtype=torch.float64) for n in ((), (TASKS,)))
    return theta0 * layout.inside(), vectors * layout.inside(), layout


def loss_of(batch, theta, layout):
    """Entropy of the network's predictions on the images of a batch."""
    draw = torch.Generator().manual_seed(batch)
    images = torch.randn(9, 5, generator=draw, dtype=torch.float64)
    parts = layout.views(theta)
    hidden = torch.tanh(images @ parts["a"].T + parts["b"])
    log_probabilities = torch.log_softmax(hidden @ parts["c"], dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1).mean()


def objectives(layout):
    return lambda batch: Differentiable(lambda theta: loss_of(batch, theta, layout))


def literal_gradients(world, trace, *, granularity, protocol, rate, temperature):
    """dLoss/dx of every step, and the coefficients it was taken at: Algorithm 1 line by line, left to autograd."""
    theta0, vectors, layout = world
    rows = 1 if protocol.tie else TASKS
    shape = (rows, layout.layers) if granularity == "layer" else (rows,)
    first = second = torch.zeros(shape, dtype=torch.float64)
    found = []

    def merged(values, mask_hat):
        used = values.clamp(0, 1) if protocol.clamp else values
        used = used if granularity == "layer" else used[:, None].expand(-1, layout.layers)
        per_element = used.expand(TASKS, -1)[:, layout.layer_of_block()].repeat_interleave(layout.block, 1)
        return theta0 + (per_element * (mask_hat * vectors)).sum(0)

    for step, logits in enumerate(trace):
        x = logits.clone().requires_grad_()
        u = uniform(layout, seed_of("mask", SEED), step, torch.float64)
        mask = torch.sigmoid((u.log() - (1 - u).log() + x) / temperature) * layout.inside()
        parts = layout.views(mask)
        means = torch.stack([part.mean() for part in parts.values()])
        mask_hat = mask / layout.spread(means) if protocol.rescale else mask
        start = torch.full(shape, START, dtype=torch.float64, requires_grad=True)
        inner = loss_of(2 * step, merged(start, mask_hat), layout)
        gradient = torch.autograd.grad(inner, start, create_graph=True)[0]
        if protocol.inner_optimiser == "sgd":
            moved = start - rate * gradient
        else:
            count = 1 if protocol.moments == "reset" else step + 1
            if protocol.moments == "reset":
                first = second = torch.zeros(shape, dtype=torch.float64)
            first = BETA_1 * first.detach() + (1 - BETA_1) * gradient
            second = BETA_2 * second.detach() + (1 - BETA_2) * gradient**2
            root = (second / (1 - BETA_2**count)).sqrt()
            moved = start - rate * (first / (1 - BETA_1**count)) / (root + EPSILON)
        outer = loss_of(2 * step + 1, merged(moved, mask_hat), layout)
        found.append((torch.autograd.grad(outer, x)[0], moved.detach()))
    return found


def learned_gradients(world, *, granularity, protocol, rate, temperature):
    """The logits before each step of `adapt` and its gradients, read off the first moment of the logits' Adam."""
    theta0, vectors, layout = world
    seen = [(torch.full((layout.length,), protocol.initial_logits, dtype=torch.float64), torch.zeros(layout.length))]

    def watch(merging):
        seen.append((merging.logits.clone(), merging.first_moment.clone()))
        return {}

    adapt(
        objectives(layout), theta0, vectors, layout,
        steps=STEPS, coefficients=granularity, learn_mask=True, initial_coefficient=START, learning_rate=rate,
        mask_learning_rate=0.1, temperature=temperature, seed=SEED, protocol=protocol, watch=watch,
    )  # fmt: skip
    gradients = [(new - BETA_1 * old) / (1 - BETA_1) for (_, old), (_, new) in pairwise(seen)]
    return [logits for logits, _ in seen[:-1]], gradients


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


CASES = [
    ("task", {"inner_optimiser": "sgd"}, 0.5, 0.5),
    ("layer", {"inner_optimiser": "sgd"}, 0.5, 0.5),
    ("layer", {"inner_optimiser": "sgd", "rescale": False}, 0.5, 0.5),
    ("layer", {"inner_optimiser": "sgd", "initial_logits": -1.0}, 0.5, 0.8),
    ("layer", {"inner_optimiser": "sgd", "tie": True}, 0.5, 0.5),
    ("layer", {"inner_optimiser": "sgd", "clamp": True}, 4.0, 0.5),
    ("task", {}, 0.2, 0.5),
    ("layer", {}, 0.2, 0.5),
    ("task", {"tie": True}, 0.2, 0.5),
    ("layer", {"tie": True, "clamp": True}, 0.35, 0.8),
    ("layer", {"clamp": True}, 0.35, 0.5),
]


@pytest.mark.parametrize(("granularity", "choices", "rate", "temperature"), CASES)
def test_the_exact_gradient_is_that_of_the_bilevel_formula(world, granularity, choices, rate, temperature):
    options = {"granularity": granularity, "rate": rate, "temperature": temperature}
    exact = Protocol(hypergradient="exact", **choices)
    trace, gradients = learned_gradients(world, protocol=exact, **options)
    wanted = literal_gradients(world, trace, protocol=exact, **options)
    for gradient, (expected, _) in zip(gradients, wanted, strict=True):
        assert distance(gradient, expected) < 1e-9
    if exact.clamp:
        assert any((moved != moved.clamp(0, 1)).any() for _, moved in wanted), "the case is to leave [0, 1]"

    _, approximate = learned_gradients(world, protocol=Protocol(**choices), **options)
    assert max(distance(one, two) for one, two in zip(approximate, gradients, strict=True)) > 1e-2


def test_first_order_is_exact_where_adam_forgets(world):
    """With its moments reset, Adam moves by +-rate whatever the gradient's size: that step has no derivative."""
    options = {"granularity": "layer", "rate": 0.2, "temperature": 0.5}
    far = {}
    for moments in ("reset", "kept"):
        _, exact = learned_gradients(world, protocol=Protocol(hypergradient="exact", moments=moments), **options)
        _, first_order = learned_gradients(world, protocol=Protocol(moments=moments), **options)
        far[moments] = [distance(one, two) for one, two in zip(first_order, exact, strict=True)]
    assert max(far["reset"]) < 1e-4
    assert far["kept"][0] < 1e-4 < 1e-2 < max(far["kept"][1:])


def test_adam_is_torchs():
    torch.manual_seed(0)
    values = torch.randn(5, 4, dtype=torch.float64)
    leaf = values.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.3)
    moments = (torch.zeros_like(values), torch.zeros_like(values), 0)
    for step in range(6):
        gradient = 10.0 ** -(3 * step) * torch.randn_like(values)
        gradient[0] = 0  # a coefficient without any gradient stays where it is
        leaf.grad = gradient.clone()
        optimiser.step()
        values, moments = adam(values, gradient, moments, 0.3)
        torch.testing.assert_close(values, leaf.detach(), rtol=1e-12, atol=1e-12)
    assert moments[2] == 6


@pytest.mark.parametrize("choices", [{}, {"tie": True}, {"clamp": True}, {"tie": True, "clamp": True}])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_pull_is_the_gradient_of_merged_and_push_its_transpose(world, granularity, choices):
    _, vectors, layout = world
    options = {"initial": START, "learning_rate": 0.1, "protocol": Protocol(**choices), "like": vectors}
    lambdas = Coefficients(TASKS, layout, granularity, **options)
    torch.manual_seed(1)
    at = (2 * torch.rand_like(lambdas.start) - 0.5).requires_grad_()
    by_layer = torch.randn(TASKS, layout.layers, dtype=torch.float64)

    def whole(values):
        merged = lambdas.merged(values)
        return merged if granularity == "layer" else merged[:, None].expand(-1, layout.layers)

    (expected,) = torch.autograd.grad((whole(at) * by_layer).sum(), at)
    torch.testing.assert_close(lambdas.pull(by_layer, at.detach()), expected)
    direction = torch.randn_like(lambdas.start)
    expected = torch.autograd.functional.jvp(whole, at.detach(), direction)[1]
    pushed = lambdas.push(direction, at.detach())
    torch.testing.assert_close(pushed if granularity == "layer" else pushed[:, None].expand_as(expected), expected)


def test_the_hessian_product_is_exact_on_a_quadratic_and_zero_along_nothing(world):
    theta0, vectors, layout = world
    matrix = torch.randn(layout.length, layout.length, dtype=torch.float64)
    matrix = matrix + matrix.T
    quadratic = Differentiable(lambda theta: 0.5 * theta @ matrix @ theta)
    loss, gradient = quadratic(theta0)
    assert loss == pytest.approx((0.5 * theta0 @ matrix @ theta0).item())
    torch.testing.assert_close(gradient, matrix @ theta0)
    for scale in (1e-6, 1.0, 1e6):
        found = quadratic.hessian_product(theta0, scale * vectors[0])
        assert distance(found, scale * matrix @ vectors[0]) < 1e-12
    assert quadratic.hessian_product(theta0, torch.zeros_like(theta0)).abs().max() == 0


def test_an_objective_without_second_derivatives_is_refused(world):
    theta0, vectors, layout = world
    with pytest.raises(ValueError, match=r"needs an objective with a method hessian_product"):
        adapt(
            lambda _: lambda theta: (theta.square().sum().item() / 2, theta), theta0, vectors, layout,
            steps=1, learn_mask=True, protocol=Protocol(hypergradient="exact"),
        )  # fmt: skip


@pytest.mark.parametrize("rows_at_once", [0, 5])
def test_the_product_with_the_hessian_of_a_model_is_that_of_double_backward(rows_at_once):
    """Against torch's own functional derivatives, with a layer in it whose loss jumps: signs, as of one token."""

    class Signs(nn.Module):
        def forward(self, hidden):
            return hidden + 0.5 * nn.functional.normalize(hidden.unsqueeze(-1), dim=-1).squeeze(-1)

    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), Signs(), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 6))
    model = FlatModel(encoder)
    heads = [4 * nn.functional.normalize(torch.randn(classes, 6), dim=-1) for classes in (3, 20)]
    images = [torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8) for _ in heads]
    options = {"batch": 5, "seed": 0, "objective": "information-maximisation", "rows_at_once": rows_at_once}
    batches = ImageObjective(model, heads, images, Preprocess((0.5,) * 3, (0.25,) * 3), Runtime(), **options)
    theta, direction = model.initial(), torch.randn(model.layout.length) * model.layout.inside()
    batches(0)(theta)  # so that the second batch has a running mean
    objective = batches(1)
    found = objective.hessian_product(theta, direction).clone()

    def gradient(point):
        pulled = []
        for task, rows in batches.rows(1).items():
            pixels = batches.preprocess(images[task][rows])

            def loss(point, task=task, pixels=pixels):
                features = functional_call(encoder, model.layout.views(point), (pixels,))
                logits = nn.functional.normalize(features, dim=-1) @ heads[task].T
                return batches.loss(task, logits, objective.before[task])[0]

            pulled.append(torch.func.grad(loss)(point))
        return sum(pulled)

    wanted = torch.func.jvp(gradient, (theta,), (direction,))[1]
    assert distance(found, wanted) < 1e-4
    step = 0.2 / direction.norm()
    blurred = (gradient(theta + step * direction) - gradient(theta - step * direction)) / (2 * step)
    assert distance(blurred, wanted) > 0.05, "a difference across jumps is another thing"


def test_what_the_exact_gradient_adds_goes_through_the_same_closed_form(world):
    """`concrete.logit_gradient` is linear in G S."""
    _, vectors, layout = world
    mask = concrete.sample_mask(vectors[2], 0.5, uniform(layout, 1, 0, torch.float64), layout)
    ones = torch.ones_like(mask)
    both = concrete.logit_gradient(vectors[0] * vectors[1] + vectors[2], ones, mask, 0.5, layout)
    parts = concrete.logit_gradient(vectors[0], vectors[1], mask, 0.5, layout)
    parts = parts + concrete.logit_gradient(vectors[2], ones, mask, 0.5, layout)
    torch.testing.assert_close(both, parts)

"""The Concrete mask: its distribution, its closed-form gradients against autograd, its extremes."""

import pytest
import torch

from lib import concrete
from lib.vectors.layout import Layout


def problem(seed=0, tasks=3, layer_wise=True):
    """Random float64 tensors on a layout with padding, and a smooth loss of theta."""
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(2, 2, 2)}, block=4)
    inside = layout.inside().double()
    theta0 = torch.randn(layout.length, dtype=torch.float64) * inside
    vectors = torch.randn(tasks, layout.length, dtype=torch.float64) * inside
    shape = (tasks, layout.layers) if layer_wise else (tasks,)
    coefficients = torch.rand(shape, dtype=torch.float64) + 0.1
    logits = torch.randn(layout.length, dtype=torch.float64)
    uniform = torch.rand(layout.length, dtype=torch.float64)
    weight = torch.randn(layout.length, dtype=torch.float64)
    return layout, theta0, vectors, coefficients, logits, uniform, lambda theta: (theta * weight).sin().sum()


def literal_merge(layout, theta0, vectors, coefficients, logits, uniform, temperature):
    """The paper's formulas word by word: a mask per layer, T masked and scaled task vectors, summed."""
    merged = []
    for index, (start, size) in enumerate(zip(layout.offsets, layout.sizes, strict=False)):
        part = slice(start, start + size)
        u, x = uniform[part], logits[part]
        mask = torch.sigmoid((torch.log(u) - torch.log(1 - u) + x) / temperature)
        mask = mask / mask.mean()
        layer = theta0[part].clone()
        for task in range(len(vectors)):
            scale = coefficients[task, index] if coefficients.dim() == 2 else coefficients[task]
            layer = layer + scale * (mask * vectors[task, part])
        merged.append(torch.nn.functional.pad(layer, (0, layout.offsets[index + 1] - start - size)))
    return torch.cat(merged)


def fast_merge(layout, theta0, vectors, coefficients, logits, uniform, temperature):
    mask = concrete.sample_mask(logits, temperature, uniform, layout)
    return concrete.merge(theta0, vectors, coefficients, layout, concrete.rescale(mask, layout)), mask


@pytest.mark.parametrize("layer_wise", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_merge_and_gradients_equal_autograd_through_the_literal_formula(layer_wise, temperature):
    layout, theta0, vectors, coefficients, logits, uniform, loss_of = problem(layer_wise=layer_wise)
    x, c = logits.clone().requires_grad_(), coefficients.clone().requires_grad_()
    literal = literal_merge(layout, theta0, vectors, c, x, uniform, temperature)
    loss_of(literal).backward()

    theta, mask = fast_merge(layout, theta0, vectors, coefficients, logits, uniform, temperature)
    torch.testing.assert_close(theta, literal.detach(), rtol=1e-12, atol=1e-12)
    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf)
    rescaled = concrete.rescale(mask, layout)
    by_coefficients = concrete.coefficient_gradient(gradient, vectors, layout, rescaled, layer_wise)
    torch.testing.assert_close(by_coefficients, c.grad, rtol=1e-10, atol=1e-12)
    summed = concrete.weighted_sum(vectors, coefficients, layout)
    by_logits = concrete.logit_gradient(gradient, summed, mask, temperature, layout)
    torch.testing.assert_close(by_logits, x.grad, rtol=1e-10, atol=1e-12)


class ClosedForm(torch.autograd.Function):
    """The closed form dressed as an autograd function, so that torch's gradcheck can test it by finite differences."""

    @staticmethod
    def forward(ctx, logits, coefficients, layout, theta0, vectors, uniform, temperature):
        theta, mask = fast_merge(layout, theta0, vectors, coefficients, logits, uniform, temperature)
        ctx.saved = (layout, vectors, coefficients, mask, temperature)
        return theta

    @staticmethod
    def backward(ctx, gradient):
        layout, vectors, coefficients, mask, temperature = ctx.saved
        summed = concrete.weighted_sum(vectors, coefficients, layout)
        rescaled = concrete.rescale(mask, layout)
        return (
            concrete.logit_gradient(gradient, summed, mask, temperature, layout),
            concrete.coefficient_gradient(gradient, vectors, layout, rescaled, coefficients.dim() == 2),
            *(None,) * 5,
        )


@pytest.mark.parametrize("layer_wise", [True, False])
def test_gradcheck(layer_wise):
    layout, theta0, vectors, coefficients, logits, uniform, _ = problem(3, layer_wise=layer_wise)
    arguments = (logits.requires_grad_(), coefficients.requires_grad_(), layout, theta0, vectors, uniform, 0.5)
    assert torch.autograd.gradcheck(ClosedForm.apply, arguments)


def test_a_mask_of_ones_is_task_arithmetic():
    layout, theta0, vectors, coefficients, *_ = problem()
    ones = concrete.rescale(layout.inside().double(), layout)
    inside = concrete.merge(theta0, vectors, coefficients, layout, ones)
    torch.testing.assert_close(inside, concrete.merge(theta0, vectors, coefficients, layout))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("u", [0.0, 1e-30, 0.5, 1.0 - 6e-8, 1.0])
def test_extremes_stay_finite(temperature, logit, u):
    layout = Layout.of({"a": torch.zeros(4), "b": torch.zeros(3)}, block=4)
    logits = torch.full((layout.length,), logit)
    mask = concrete.sample_mask(logits, temperature, torch.full((layout.length,), u), layout)
    assert torch.isfinite(mask).all()
    assert ((mask >= 0) & (mask <= 1)).all()
    assert torch.isfinite(concrete.rescale(mask, layout)).all()
    gradient = concrete.logit_gradient(torch.randn(8), torch.randn(8), mask, temperature, layout)
    assert torch.isfinite(gradient).all()


def test_temperature_must_be_positive():
    layout = Layout.of({"a": torch.zeros(4)}, block=4)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            concrete.sample_mask(torch.zeros(4), temperature, torch.rand(4), layout)


def test_samples_are_uniform_at_temperature_one_and_binary_in_the_limit():
    layout = Layout.of({"a": torch.zeros(200_000)})
    uniform = torch.rand(layout.length, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(layout.length)
    sample = concrete.sample_mask(zero, 1.0, uniform, layout)[:200_000].sort().values
    grid = (torch.arange(200_000) + 0.5) / 200_000
    assert (sample - grid).abs().max() < 0.005  # Kolmogorov-Smirnov distance to U(0, 1)
    cold = concrete.sample_mask(zero + 1.0, 0.01, uniform, layout)[:200_000]
    assert ((cold > 0.05) & (cold < 0.95)).float().mean() < 0.02
    assert abs(cold.mean() - torch.sigmoid(torch.tensor(1.0))) < 0.005


def test_rescaled_layers_have_mean_one_and_padding_stays_zero():
    layout, *_, logits, uniform, _ = problem()
    mask = concrete.sample_mask(logits, 0.5, uniform, layout)
    rescaled = concrete.rescale(mask, layout)
    torch.testing.assert_close(layout.layer_sums(rescaled) / layout.counts(mask), torch.ones(3, dtype=torch.float64))
    assert not (rescaled * (1 - layout.inside())).any()

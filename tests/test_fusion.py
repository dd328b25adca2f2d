"""Fusion baselines against closed forms written another way, and their shared properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.fusion import METHODS, task_arithmetic, ties_merging, weight_averaging
from lib.layout import Layout


def problem(tasks=4, seed=0):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, block=4)
    inside = layout.inside().double()
    theta0 = torch.randn(layout.length, dtype=torch.float64) * inside
    return theta0, torch.randn(tasks, layout.length, dtype=torch.float64) * inside, layout


def test_averaging_is_the_mean_of_the_experts():
    theta0, vectors, layout = problem()
    torch.testing.assert_close(
        weight_averaging(theta0, vectors, layout), torch.stack([theta0 + v for v in vectors]).mean(0)
    )


def test_task_arithmetic_with_one_task_and_factor_one_is_the_expert():
    theta0, vectors, layout = problem(tasks=1)
    assert torch.equal(task_arithmetic(theta0, vectors, layout, scaling_factor=1.0), theta0 + vectors[0])


def test_ties_on_a_worked_example():
    layout = Layout.of({"a": torch.zeros(4)}, block=4)
    vectors = torch.tensor([[4.0, -3.0, 1.0, 0.5], [-1.0, -2.0, 5.0, 0.1]])
    # density 1/2 keeps [4, -3, 0, 0] and [0, -2, 5, 0]; elected signs +, -, +; sums 4, -5, 5, 0
    merged = ties_merging(torch.zeros(4), vectors, layout, scaling_factor=1.0, density=0.5)
    torch.testing.assert_close(merged, torch.tensor([4.0, -5.0, 5.0, 0.0]))
    # with everything kept, entry 0 elects + (4 - 1 > 0) and drops the -1
    merged = ties_merging(torch.zeros(4), vectors, layout, scaling_factor=1.0, density=1.0)
    torch.testing.assert_close(merged, torch.tensor([4.0, -5.0, 6.0, 0.6]))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_ties_density_out_of_range(density):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match="density"):
        ties_merging(theta0, vectors, layout, density=density)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused_by_every_method(method):
    theta0, vectors, layout = problem()
    vectors[2, 1] = float("nan")
    with pytest.raises(ValueError, match="task vector 2 holds NaN or Inf in layer 'a'"):
        METHODS[method].merge(theta0, vectors, layout)
    with pytest.raises(ValueError, match="T = 0"):
        METHODS[method].merge(theta0, vectors[:0], layout)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6))
def test_order_of_tasks_does_not_matter_and_zero_vectors_change_nothing(method, seed, tasks):
    theta0, vectors, layout = problem(tasks, seed)
    merge = METHODS[method].merge
    before = (theta0.clone(), vectors.clone())
    merged = merge(theta0, vectors, layout)
    torch.testing.assert_close(merged, merge(theta0, vectors[torch.randperm(tasks)], layout), rtol=1e-12, atol=1e-12)
    assert torch.equal(merge(theta0, torch.zeros_like(vectors), layout), theta0)
    assert torch.equal(theta0, before[0])  # nothing was changed in place
    assert torch.equal(vectors, before[1])


def test_every_method_names_its_paper():
    for method in METHODS.values():
        assert method.paper.startswith("https://arxiv.org/abs/")
        assert method.merge.__doc__

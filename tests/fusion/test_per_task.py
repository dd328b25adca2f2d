"""Methods that give a point per task: worked examples, plain Python, and the properties they share."""

from itertools import pairwise

import pytest
import torch
from fusion_inputs import problem
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.fusion import METHODS, PER_TASK, emr_merging, tall_masks, task_arithmetic
from lib.vectors.layout import Layout


def one_layer(*rows):
    """theta0 = 0, task vectors and layout of a model that is one vector without padding."""
    vectors = torch.tensor(rows, dtype=torch.float64)
    return torch.zeros_like(vectors[0]), vectors, Layout.of({"a": vectors[0]}, block=vectors.shape[1])


# Small whole numbers, so that sums are often zero and comparisons often equal, both exactly.
ROWS = st.integers(1, 12).flatmap(
    lambda size: st.lists(st.lists(st.integers(-3, 3), min_size=size, max_size=size), min_size=1, max_size=5)
)


# TALL masks


def test_tall_masks_on_a_worked_example():
    # the sums are 6, 10, 1, 5; with lambda 1/2 the tasks select 1 0 1 0 (|4| >= |6 - 4| / 2, ...), 1 0 1 0 and 0 1 1 1
    theta0, vectors, layout = one_layer([4.0, 1.0, 3.0, 0.0], [2.0, 1.0, -3.0, 0.0], [0.0, 8.0, 1.0, 5.0])
    points = tall_masks(theta0 + 1, vectors, layout, mask_lambda=0.5)
    assert points.tolist() == [[7, 1, 2, 1], [7, 1, 2, 1], [1, 11, 2, 6]]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, mask_lambda=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]))
def test_tall_masks_entry_by_entry(rows, mask_lambda):
    totals = [sum(column) for column in zip(*rows, strict=True)]
    expected = [
        [total if abs(x) >= mask_lambda * abs(total - x) else 0 for x, total in zip(row, totals, strict=True)]
        for row in rows
    ]
    assert tall_masks(*one_layer(*rows), mask_lambda=mask_lambda).tolist() == expected


def test_tall_masks_select_less_with_a_larger_lambda():
    theta0, vectors, layout = problem()
    everything = task_arithmetic(theta0, vectors, layout, scaling_factor=1.0)
    selected = [tall_masks(theta0, vectors, layout, mask_lambda=factor) != theta0 for factor in (0.0, 0.2, 0.6, 5.0)]
    assert torch.equal(tall_masks(theta0, vectors, layout, mask_lambda=0.0), everything.expand_as(vectors))
    for more, less in pairwise(selected):
        assert more.sum() > less.sum()
        assert not (less & ~more).any()


@pytest.mark.parametrize("mask_lambda", [-0.1, float("nan"), float("inf")])
def test_a_lambda_out_of_range_is_named(mask_lambda):
    with pytest.raises(ValueError, match=f"mask_lambda is {mask_lambda}"):
        tall_masks(*problem(), mask_lambda=mask_lambda)


# EMR-Merging


def test_emr_on_a_worked_example():
    # sums 6, 2, 0, 0; elected 4, 3, nobody, nobody; masks 1 0 0 0 and 1 1 0 0; factors 7 / 4 and 7 / 7
    theta0, vectors, layout = one_layer([4.0, -1.0, 2.0, 0.0], [2.0, 3.0, -2.0, 0.0])
    assert emr_merging(theta0 + 1, vectors, layout).tolist() == [[8, 1, 1, 1], [5, 4, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_emr_entry_by_entry(rows):
    elected = []
    for column in zip(*rows, strict=True):
        up = sum(column) > 0
        elected.append((max if up else min)(column) if sum(column) else 0)
    expected = []
    for row in rows:
        kept = [e if x * e > 0 else 0 for x, e in zip(row, elected, strict=True)]
        size = sum(map(abs, kept))
        expected.append([sum(map(abs, row)) / size * x if size else 0.0 for x in kept])
    theta0, vectors, layout = one_layer(*rows)
    torch.testing.assert_close(emr_merging(theta0, vectors, layout), torch.tensor(expected, dtype=torch.float64))


def test_emr_keeps_the_size_of_each_task():
    theta0, vectors, layout = problem(tasks=5)
    update = emr_merging(theta0, vectors, layout) - theta0
    torch.testing.assert_close(update.abs().sum(1), vectors.abs().sum(1))


def test_emr_of_a_task_that_loses_every_vote_is_theta0():
    theta0, vectors, layout = problem(tasks=2)
    vectors[1] = -3 * vectors[0]
    points = emr_merging(theta0, vectors, layout)
    assert torch.equal(points[0], theta0)
    torch.testing.assert_close(points[1], theta0 + vectors[1])


def test_emr_has_no_smallest_entry():
    """Products of such entries are zero in float32; their signs are not."""
    theta0, vectors, layout = problem(tasks=1, dtype=torch.float32)
    assert torch.equal(emr_merging(0 * theta0, 1e-30 * vectors, layout), 1e-30 * vectors)


# What they share


@pytest.mark.parametrize("method", PER_TASK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_task_gives_the_expert(method, dtype):
    theta0, vectors, layout = problem(tasks=1, dtype=dtype)
    assert torch.equal(PER_TASK[method].merge(theta0, vectors, layout), theta0 + vectors)


@pytest.mark.parametrize("method", PER_TASK)
def test_tasks_that_changed_different_parameters_give_their_experts(method):
    theta0, vectors, layout = problem(tasks=4)
    vectors *= torch.arange(4)[:, None] == torch.arange(layout.length) % 4
    torch.testing.assert_close(PER_TASK[method].merge(theta0, vectors, layout), theta0 + vectors)


@pytest.mark.parametrize("method", PER_TASK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_padding_stays_zero(method, dtype):
    theta0, vectors, layout = problem(dtype=dtype)
    points = PER_TASK[method].merge(theta0, vectors, layout)
    assert points.dtype == dtype
    assert points.shape == vectors.shape
    assert not points[:, layout.inside() == 0].any()


@pytest.mark.parametrize("method", PER_TASK)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6))
def test_points_follow_the_order_of_tasks_and_zero_vectors_change_nothing(method, seed, tasks):
    theta0, vectors, layout = problem(tasks, seed)
    merge, before, order = PER_TASK[method].merge, (theta0.clone(), vectors.clone()), torch.randperm(tasks)
    points = merge(theta0, vectors, layout)
    torch.testing.assert_close(merge(theta0, vectors[order], layout), points[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(merge(theta0, torch.zeros_like(vectors), layout), theta0.expand_as(vectors))
    assert torch.equal(theta0, before[0])  # nothing was changed in place
    assert torch.equal(vectors, before[1])


@pytest.mark.parametrize("method", PER_TASK)
def test_half_precision_is_converted_and_bad_input_refused(method):
    theta0, vectors, layout = problem(dtype=torch.float32)
    merge = PER_TASK[method].merge
    rounded = vectors.bfloat16()
    assert torch.equal(merge(theta0, rounded, layout), merge(theta0, rounded.float(), layout))
    broken = vectors.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(ValueError, match="task vector 2 holds NaN or Inf in layer 'a'"):
        merge(theta0, broken, layout)
    with pytest.raises(ValueError, match="T = 0"):
        merge(theta0, vectors[:0], layout)


def test_every_method_names_its_paper_and_what_it_keeps():
    assert not set(PER_TASK) & set(METHODS)
    assert {name: method.keeps for name, method in PER_TASK.items()} == {
        "tall_masks": "a binary mask",
        "emr_merging": "a binary mask and a factor",
    }
    for method in PER_TASK.values():
        assert method.paper.startswith("https://arxiv.org/abs/")
        assert method.merge.__doc__

"""Fusion methods against closed forms written another way, worked examples, and the properties they share."""

import pytest
import torch
from fusion_inputs import extra, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.fusion import (
    METHODS,
    arithmetic,
    dare,
    iso_c,
    iso_cts,
    task_arithmetic,
    ties_merging,
    tsv_m,
    weight_averaging,
    wudi_merging,
)
from lib.vectors.layout import Layout

SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "wudi_merging")


def one_matrix(*matrices):
    """theta0 = 0, task vectors and layout of a model that is one matrix without padding."""
    stack = torch.stack([torch.as_tensor(matrix, dtype=torch.float64) for matrix in matrices])
    layout = Layout.of({"w": stack[0]}, block=stack[0].numel())
    return torch.zeros(layout.length, dtype=torch.float64), stack.flatten(1), layout


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def needs(method, theta0, vectors, layout, order=None):
    """What a method is given beside the task vectors; what belongs to a task is permuted with the tasks."""
    if method != "dare":
        return extra(method, theta0, vectors, layout, order)
    kept = torch.rand(vectors.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return {"kept": kept if order is None else kept[order]}


# Averages and sums


def test_averaging_is_the_mean_of_the_experts():
    theta0, vectors, layout = problem()
    torch.testing.assert_close(
        weight_averaging(theta0, vectors, layout), torch.stack([theta0 + v for v in vectors]).mean(0)
    )


@pytest.mark.parametrize("method", [task_arithmetic, dare, ties_merging])
def test_one_task_and_factor_one_is_the_expert(method):
    theta0, vectors, layout = problem(tasks=1)
    everything = {dare: {"drop_rate": 0.0}, ties_merging: {"density": 1.0}}.get(method, {})
    assert torch.equal(method(theta0, vectors, layout, scaling_factor=1.0, **everything), theta0 + vectors[0])


# Ties-Merging

EXAMPLE = torch.tensor([[4.0, -3.0, 1.0, 0.5], [-1.0, -2.0, 5.0, 0.1]])


@pytest.mark.parametrize(
    ("rule", "density", "expected"),
    [
        # density 1/2 keeps [4, -3, 0, 0] and [0, -2, 5, 0]; elected signs +, -, +
        ("sum", 0.5, [4.0, -5.0, 5.0, 0.0]),
        ("mean", 0.5, [4.0, -2.5, 5.0, 0.0]),
        # with everything kept, entry 0 elects + (4 - 1 > 0) and drops the -1
        ("sum", 1.0, [4.0, -5.0, 6.0, 0.6]),
        ("mean", 1.0, [4.0, -2.5, 3.0, 0.3]),
    ],
)
def test_ties_on_a_worked_example(rule, density, expected):
    layout = Layout.of({"a": torch.zeros(4)}, block=4)
    expected = torch.tensor(expected)
    merged = ties_merging(torch.zeros(4), EXAMPLE, layout, scaling_factor=2.0, density=density, rule=rule)
    torch.testing.assert_close(merged, 2 * expected)
    default = ties_merging(torch.zeros(4), EXAMPLE, layout, density=density, rule=rule)
    torch.testing.assert_close(default, {"sum": 0.3, "mean": 1.0}[rule] * expected)


def ties_entry_by_entry(vectors, keep, rule):
    """The paper's Algorithm 1 in plain Python, on task vectors without padding."""
    merged = []
    limits = [sorted((abs(x) for x in vector), reverse=True)[keep - 1] for vector in vectors]
    for column in zip(*vectors, strict=True):
        left = [x for x, limit in zip(column, limits, strict=True) if abs(x) >= limit]
        positive, negative = [x for x in left if x > 0], [x for x in left if x < 0]
        up, down = sum(positive), -sum(negative)
        agreeing = positive if up > down else negative if down > up else []
        merged.append(sum(agreeing) / (max(1, len(agreeing)) if rule == "mean" else 1))
    return torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["sum", "mean"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), tasks=st.integers(1, 4), size=st.integers(1, 30), block=st.integers(1, 9))
def test_ties_is_algorithm_1_with_equal_magnitudes_cancellation_and_padding(rule, data, tasks, size, block):
    # small integers, so that magnitudes are often equal, sums are often zero and both are exact
    entries = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    vectors = data.draw(st.lists(entries, min_size=tasks, max_size=tasks))
    keep = data.draw(st.integers(1, size))
    state = {"a": torch.zeros(size // 2), "b": torch.zeros(size - size // 2)}
    layout = Layout.of(state, block)
    flat = torch.zeros(tasks, layout.length, dtype=torch.float64)
    flat[:, layout.inside() > 0] = torch.tensor(vectors, dtype=torch.float64)
    density = (keep + 0.5) / size if keep < size else 1.0
    merged = ties_merging(torch.zeros_like(flat[0]), flat, layout, scaling_factor=1.0, density=density, rule=rule)
    torch.testing.assert_close(merged[layout.inside() > 0], ties_entry_by_entry(vectors, keep, rule))
    assert not merged[layout.inside() == 0].any()


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_ties_does_not_depend_on_how_it_is_sliced(rule, monkeypatch):
    theta0, vectors, layout = problem()
    whole = ties_merging(theta0, vectors, layout, density=0.5, rule=rule)
    monkeypatch.setattr(arithmetic, "SLICE", 7)
    assert torch.equal(ties_merging(theta0, vectors, layout, density=0.5, rule=rule), whole)


# DARE


def test_dare_on_a_worked_example():
    layout = Layout.of({"a": torch.zeros(4)}, block=4)
    kept = torch.tensor([[True, False, True, False], [True, True, False, False]])
    merged = dare(torch.ones(4), EXAMPLE, layout, scaling_factor=0.5, drop_rate=0.75, kept=kept)
    torch.testing.assert_close(merged, 1 + 0.5 * 4 * torch.tensor([4.0 - 1.0, -2.0, 1.0, 0.0]))


def test_dare_drops_the_share_it_is_told_and_keeps_the_expectation():
    size = 100_000
    layout = Layout.of({"a": torch.zeros(size)}, block=size)
    zero, ones = torch.zeros(size), torch.ones(3, size)
    alone = [dare(zero, ones[:1], layout, scaling_factor=1.0, drop_rate=0.9, seed=seed) for seed in (0, 0, 1)]
    torch.testing.assert_close(alone[0].unique(), torch.tensor([0.0, 10.0]))
    assert abs(float(alone[0].mean()) - 1) < 5 * 3 / size**0.5  # the standard deviation of an entry is 3
    assert torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])
    # rows are dropped independently: the number of tasks left per entry is binomial
    left = dare(zero, ones, layout, scaling_factor=0.5, drop_rate=0.5)
    share = torch.bincount(left.round().long(), minlength=4) / size
    torch.testing.assert_close(share, torch.tensor([1, 3, 3, 1]) / 8, atol=0.01, rtol=0)


# Task singular vectors and isotropic merging


def test_tsv_keeps_the_largest_directions_of_each_task():
    # two tasks, r = 4: two directions each; those dropped are 1, 0.5 and 0.25, 0.1
    theta0, vectors, layout = one_matrix(diagonal(3, 2, 1, 0.5), diagonal(0.25, 0.1, 5, 4))
    torch.testing.assert_close(tsv_m(theta0, vectors, layout).view(4, 4), diagonal(3, 2, 5, 4))


def test_tsv_orthogonalises_by_the_polar_factor():
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 6, dtype=torch.float64)
    theta0, vectors, layout = one_matrix(*matrices)
    left, right, values = [], [], []
    for matrix in matrices:  # k = 2 directions each, from the eigenvectors of tau^T tau
        square, basis = torch.linalg.eigh(matrix.T @ matrix)
        values += square[-2:].sqrt()
        right += basis.T[-2:]
        left += [matrix @ v / v.norm() / (matrix @ v).norm() for v in basis.T[-2:]]

    def polar(columns):  # X (X^T X)^(-1/2)
        x = torch.stack(columns, 1)
        square, basis = torch.linalg.eigh(x.T @ x)
        return x @ basis @ torch.diag(square.rsqrt()) @ basis.T

    expected = polar(left) @ torch.diag(torch.stack(values)) @ polar(right).T
    torch.testing.assert_close(tsv_m(theta0, vectors, layout).view(8, 6), expected)


def test_tsv_with_more_tasks_than_directions_keeps_theta0():
    theta0, vectors, layout = problem(tasks=4)  # the matrix has three singular values
    merged = layout.views(tsv_m(theta0, vectors, layout))
    assert torch.equal(merged["a"], layout.views(theta0)["a"])


def test_iso_c_is_the_polar_factor_of_the_sum_times_the_mean_singular_value():
    theta0, vectors, layout = problem(tasks=3)
    total = layout.views(vectors.sum(0))["a"]
    square, basis = torch.linalg.eigh(total @ total.T)  # (S S^T)^(-1/2) S
    expected = square.sqrt().mean() * basis @ torch.diag(square.rsqrt()) @ basis.T @ total
    update = layout.views(iso_c(theta0, vectors, layout, scaling_factor=2.0) - theta0)
    torch.testing.assert_close(update["a"], 2 * expected)
    torch.testing.assert_close(update["b"], 2 * layout.views(vectors.mean(0))["b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iso_c_leaves_alone_what_no_task_touched(dtype):
    # an embedding of which the tasks use three rows: three directions, and none made up for the other rows
    torch.manual_seed(0)
    matrices = torch.zeros(2, 50, 20, dtype=dtype)
    matrices[:, [3, 7, 40]] = torch.randn(2, 3, 20, dtype=dtype)
    merged = iso_c(*(part.to(dtype) for part in one_matrix(*matrices)[:2]), one_matrix(*matrices)[2]).view(50, 20)
    mean = torch.linalg.svdvals(matrices.sum(0))[:3].mean()
    values = torch.zeros(20, dtype=dtype).index_fill(0, torch.arange(3), 1) * mean
    torch.testing.assert_close(torch.linalg.svdvals(merged), values, atol=1e-5, rtol=1e-5)
    merged[[3, 7, 40]] = 0
    assert merged.abs().max() < 1e-5


def low_rank(dtype, rows=160, columns=96, tasks=4, rank=3):
    """Task vectors of LoRA adapters, as a file of adapted weights gives them: (W + B A) - W, each rounded.

    Returns:
        Task vectors [T, D], their layout, and what no task changed: projections [m, m] and [n, n].
    """
    torch.manual_seed(0)
    weights = 0.05 * torch.randn(rows, columns, dtype=dtype)
    left = 0.05 * torch.randn(tasks, rows, rank, dtype=dtype)
    right = 0.05 * torch.randn(tasks, rank, columns, dtype=dtype)
    layout = Layout.of({"a": weights})
    vectors = torch.zeros(tasks, layout.length, dtype=dtype)
    vectors[:, : weights.numel()] = ((weights + left @ right) - weights).flatten(1)
    bases = (torch.linalg.qr(parts.double())[0] for parts in (torch.cat(tuple(left), 1), torch.cat(tuple(right), 0).T))
    outside = [torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T for basis in bases]
    return vectors, layout, *outside


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [tsv_m, iso_c, iso_cts])
def test_of_low_rank_task_vectors_nothing_is_merged_that_no_task_changed(method, dtype):
    vectors, layout, left, right = low_rank(dtype)
    merged = layout.views(method(torch.zeros_like(vectors[0]), vectors, layout))["a"].double()
    outside = (left @ merged).square().sum() + (merged @ right).square().sum()
    assert (outside / merged.square().sum()).item() < 1e-6
    assert torch.linalg.matrix_rank(merged, rtol=1e-4) == 4 * 3


def test_iso_cts_on_a_worked_example():
    # the sum diag(9, 8, 0, 0) hides what the tasks disagree on; half of the directions are common, one for each task
    first, second = torch.zeros(2, 4, 4, dtype=torch.float64)
    first[0, 0], first[2, 2] = 9, 3
    second[1, 1], second[2, 2], second[3, 3] = 8, -1, 2
    theta0, vectors, layout = one_matrix(first, second)
    merged = iso_cts(theta0, vectors, layout, common_space_fraction=0.5).view(4, 4)
    torch.testing.assert_close(merged, (9 + 8 + 3 + 2) / 4 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("tasks", "fraction"), [(3, 1.0), (1, 0.5), (1, 0.0), (4, 0.2)])
def test_iso_cts_is_iso_c_without_specific_directions(tasks, fraction):
    # all common; one task, whose specific directions are those of the sum; fewer directions than tasks
    theta0, vectors, layout = problem(tasks)
    torch.testing.assert_close(
        iso_cts(theta0, vectors, layout, common_space_fraction=fraction), iso_c(theta0, vectors, layout)
    )


# WUDI-Merging


def test_wudi_is_adam_on_the_published_loss():
    theta0, vectors, layout = problem(tasks=3)
    matrices = torch.stack([layout.views(vector)["a"] for vector in vectors])
    merged = matrices.sum(0).requires_grad_()
    adam = torch.optim.Adam([merged], lr=0.01)
    losses = []
    for _ in range(50):
        disturbance = ((merged - matrices) @ matrices.mT).square().sum((1, 2))
        loss = (disturbance / matrices.square().sum((1, 2))).sum()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < losses[0]
    update = layout.views(wudi_merging(theta0, vectors, layout, steps=50, learning_rate=0.01) - theta0)
    torch.testing.assert_close(update["a"], merged.detach())
    torch.testing.assert_close(update["b"], layout.views(vectors.mean(0))["b"])


def test_wudi_starts_from_the_sum_and_converges_to_the_minimum():
    torch.manual_seed(0)
    matrices = torch.randn(2, 5, 3, dtype=torch.float64)
    theta0, vectors, layout = one_matrix(*matrices)
    torch.testing.assert_close(wudi_merging(theta0, vectors, layout, steps=0), vectors.sum(0))
    grams = [m.T @ m / m.square().sum() for m in matrices]  # where the gradient is zero: sum_t (tau - tau_t) G_t = 0
    minimum = sum(m @ g for m, g in zip(matrices, grams, strict=True)) @ torch.linalg.inv(sum(grams))
    found = wudi_merging(theta0, vectors, layout, steps=2000, learning_rate=0.01)
    torch.testing.assert_close(found.view(5, 3), minimum, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wudi_with_one_task_stays_at_the_expert(dtype):
    theta0, vectors, layout = problem(tasks=1, dtype=dtype)
    assert torch.equal(wudi_merging(theta0, vectors, layout), theta0 + vectors[0])


# What they share


def test_tsv_with_one_task_is_the_expert():
    theta0, vectors, layout = problem(tasks=1)
    torch.testing.assert_close(tsv_m(theta0, vectors, layout), theta0 + vectors[0])


@pytest.mark.parametrize("method", SPECTRAL)
def test_kernels_and_vectors_get_the_mean(method):
    theta0, vectors, layout = problem(tasks=3)
    update = layout.views(METHODS[method].merge(theta0, vectors, layout) - theta0)
    mean = layout.views(vectors.mean(0))
    for name in ("b", "c"):
        torch.testing.assert_close(update[name], mean[name])
    assert not torch.allclose(update["a"], mean["a"])


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_task_that_changed_nothing_does_no_harm(method):
    theta0, vectors, layout = problem(tasks=2)
    vectors[1] = 0
    merged = METHODS[method].merge(theta0, vectors, layout)
    assert torch.isfinite(merged).all()
    if method == "wudi_merging":  # nothing to interfere with, so nothing to move
        torch.testing.assert_close(layout.views(merged)["a"], layout.views(theta0 + vectors[0])["a"])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ties_merging, {"density": 0.0}, r"density is 0\.0"),
        (ties_merging, {"density": -0.1}, r"density is -0\.1"),
        (ties_merging, {"density": 1.1}, r"density is 1\.1"),
        (ties_merging, {"density": float("nan")}, "density is nan"),
        (ties_merging, {"rule": "max"}, "rule is 'max', expected one of: sum, mean"),
        (dare, {"drop_rate": 1.0}, r"drop_rate is 1\.0"),
        (dare, {"drop_rate": -0.1}, r"drop_rate is -0\.1"),
        (dare, {"kept": torch.ones(4, 3, dtype=torch.bool)}, r"kept is torch\.bool \[4, 3\]"),
        (dare, {"kept": torch.ones(4, 35)}, r"kept is torch\.float32 .* expected torch\.bool"),
        (iso_cts, {"common_space_fraction": 1.2}, r"common_space_fraction is 1\.2"),
        (iso_cts, {"common_space_fraction": -0.2}, r"common_space_fraction is -0\.2"),
        (wudi_merging, {"steps": -1}, "steps is -1"),
        (wudi_merging, {"learning_rate": 0.0}, r"learning_rate 0\.0"),
    ],
)
def test_options_out_of_range_are_named(method, options, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        method(theta0, vectors, layout, **options)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused_by_every_method(method):
    theta0, vectors, layout = problem()
    merge, options = METHODS[method].merge, needs(method, theta0, vectors, layout)
    for bad in (float("nan"), float("inf")):
        broken = vectors.clone()
        broken[2, 1] = bad
        with pytest.raises(ValueError, match="task vector 2 holds NaN or Inf in layer 'a'"):
            merge(theta0, broken, layout, **options)
    with pytest.raises(ValueError, match="T = 0"):
        merge(theta0, vectors[:0], layout, **options)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"task vectors are {half}: expected both in float32"):
            merge(theta0.to(half), vectors.to(half), layout, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_types_are_kept_and_padding_stays_zero(method, dtype):
    theta0, vectors, layout = problem(dtype=dtype)
    merged = METHODS[method].merge(theta0, vectors, layout, **needs(method, theta0, vectors, layout))
    assert merged.dtype == dtype
    assert merged.shape == theta0.shape
    assert not merged[layout.inside() == 0].any()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6))
def test_order_of_tasks_does_not_matter_and_zero_vectors_change_nothing(method, seed, tasks):
    theta0, vectors, layout = problem(tasks, seed)
    order = torch.randperm(tasks)
    merge, before = METHODS[method].merge, (theta0.clone(), vectors.clone())
    merged = merge(theta0, vectors, layout, **needs(method, theta0, vectors, layout))
    moved = vectors[order]
    again = merge(theta0, moved, layout, **needs(method, theta0, moved, layout, order))
    # singular vectors amplify rounding by one over the distance between singular values
    tolerance = 1e-12 if not METHODS[method].needs_data and method not in SPECTRAL else 1e-7
    torch.testing.assert_close(merged, again, rtol=tolerance, atol=tolerance)
    zero = torch.zeros_like(vectors)
    unchanged = merge(theta0, zero, layout, **needs(method, theta0, zero, layout))
    assert torch.equal(unchanged, theta0)
    assert torch.equal(theta0, before[0])  # nothing was changed in place
    assert torch.equal(vectors, before[1])


def test_every_method_names_its_paper():
    for method in METHODS.values():
        assert method.paper.startswith("https://arxiv.org/abs/")
        assert method.merge.__doc__

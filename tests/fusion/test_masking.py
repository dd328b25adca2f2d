"""Consensus Task Arithmetic, Model Breadcrumbs and Model Stock: worked examples, plain Python, and their limits."""

import pytest
import torch
from fusion_inputs import problem
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.fusion import consensus_task_arithmetic, model_breadcrumbs, model_stock, task_arithmetic, ties_merging
from lib.vectors.layout import Layout


def one_layer(*rows):
    """theta0 = 0, task vectors and layout of a model that is one vector without padding."""
    vectors = torch.tensor(rows, dtype=torch.float64)
    return torch.zeros_like(vectors[0]), vectors, Layout.of({"a": vectors[0]}, block=vectors.shape[1])


def padded(data, tasks, size, block):
    """Small whole numbers in two layers with padding: the rows as lists, theta0 = 0, task vectors and layout.

    Small integers, so that magnitudes are often equal, sums are often zero and both are exact.
    """
    row = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    rows = data.draw(st.lists(row, min_size=tasks, max_size=tasks))
    layout = Layout.of({"a": torch.zeros(size // 2), "b": torch.zeros(size - size // 2)}, block)
    vectors = torch.zeros(tasks, layout.length, dtype=torch.float64)
    vectors[:, layout.inside() > 0] = torch.tensor(rows, dtype=torch.float64)
    return rows, torch.zeros_like(vectors[0]), vectors, layout


# Consensus Task Arithmetic

EXAMPLE = [4.0, 1.0, 3.0, 0.0], [2.0, 1.0, -3.0, 0.0], [0.0, 8.0, 1.0, 5.0]  # sums 6, 10, 1, 5


@pytest.mark.parametrize(
    ("min_tasks", "kept"),
    # with lambda 1/2 the tasks select 1 0 1 0 (|4| >= |6 - 4| / 2, ...), 1 0 1 0 and 0 1 1 1: 2, 1, 3 and 1 votes
    [(0, [6, 10, 1, 5]), (1, [6, 10, 1, 5]), (2, [6, 0, 1, 0]), (3, [0, 0, 1, 0]), (4, [0, 0, 0, 0])],
)
def test_consensus_on_a_worked_example(min_tasks, kept):
    theta0, vectors, layout = one_layer(*EXAMPLE)
    options = {"scaling_factor": 2.0, "mask_lambda": 0.5, "min_tasks": min_tasks}
    merged = consensus_task_arithmetic(theta0 + 1, vectors, layout, **options)
    assert merged.tolist() == [1 + 2 * entry for entry in kept]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tasks=st.integers(1, 5), size=st.integers(2, 20), block=st.integers(1, 9))
def test_consensus_entry_by_entry(data, tasks, size, block):
    rows, theta0, vectors, layout = padded(data, tasks, size, block)
    mask_lambda, k = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])), data.draw(st.integers(0, 5))
    expected = []
    for column in zip(*rows, strict=True):
        votes = sum(abs(x) >= mask_lambda * abs(sum(column) - x) for x in column)
        expected.append(float(sum(column)) if votes >= k else 0.0)
    options = {"scaling_factor": 1.0, "mask_lambda": mask_lambda, "min_tasks": k}
    merged = consensus_task_arithmetic(theta0, vectors, layout, **options)
    assert merged[layout.inside() > 0].tolist() == expected
    assert not merged[layout.inside() == 0].any()


def test_consensus_without_a_vote_is_task_arithmetic():
    theta0, vectors, layout = problem()
    expected = task_arithmetic(theta0, vectors, layout)
    assert torch.equal(consensus_task_arithmetic(theta0, vectors, layout, min_tasks=0), expected)
    assert torch.equal(consensus_task_arithmetic(theta0, vectors, layout, mask_lambda=0.0, min_tasks=4), expected)


def test_consensus_of_one_task():
    theta0, vectors, layout = problem(tasks=1)
    alone = consensus_task_arithmetic(theta0, vectors, layout, scaling_factor=1.0, min_tasks=1)
    assert torch.equal(alone, theta0 + vectors[0])
    assert torch.equal(consensus_task_arithmetic(theta0, vectors, layout), theta0)  # nobody else votes


# Model Breadcrumbs


def test_breadcrumbs_on_a_worked_example():
    # of ten entries: 10 and 9 are outliers, 8, 7 and 6 are kept, whatever the layer's scale and the entries' signs
    order = torch.tensor([3, -10, 7, 1, -6, 9, 2, -8, 4, 5.0], dtype=torch.float64)
    middle = torch.tensor([0, 0, 7, 0, -6, 0, 0, -8, 0, 0.0], dtype=torch.float64)
    layout = Layout.of({"a": order, "b": order}, block=10)
    vectors = torch.stack([torch.cat([order, 100 * order]), torch.cat([-order.flip(0), order])])
    merged = model_breadcrumbs(torch.ones(20), vectors.float(), layout, scaling_factor=0.5, density=0.3, outliers=0.2)
    expected = torch.cat([middle - middle.flip(0), 101 * middle])
    torch.testing.assert_close(merged, 1 + 0.5 * expected.float())


def breadcrumbs_in_order(entries, density, outliers):
    """One layer of one task, by sorting: what is kept, as values; equal magnitudes are kept together."""
    kept = max(1, int(density * len(entries)))
    dropped = min(int(outliers * len(entries)), len(entries) - kept)
    middle = sorted((abs(x) for x in entries), reverse=True)[dropped : dropped + kept]
    return [float(x) if abs(x) in middle else 0.0 for x in entries]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tasks=st.integers(1, 4), size=st.integers(2, 30), block=st.integers(1, 9))
def test_breadcrumbs_by_sorting(data, tasks, size, block):
    rows, theta0, vectors, layout = padded(data, tasks, size, block)
    density = data.draw(st.sampled_from([0.01, 0.2, 0.5, 0.75]))
    outliers = data.draw(st.sampled_from([0.0, 0.1, 0.25]))
    half = size // 2
    kept = [[x for part in (row[:half], row[half:]) for x in breadcrumbs_in_order(part, density, outliers)]
            for row in rows]  # fmt: skip
    merged = model_breadcrumbs(theta0, vectors, layout, scaling_factor=1.0, density=density, outliers=outliers)
    assert merged[layout.inside() > 0].tolist() == [sum(column) for column in zip(*kept, strict=True)]
    assert not merged[layout.inside() == 0].any()


def test_breadcrumbs_without_outliers_trim_as_ties_does():
    torch.manual_seed(0)
    theta0, vectors, layout = one_layer(torch.randn(40).tolist())
    expected = ties_merging(theta0, vectors, layout, scaling_factor=1.0, density=0.3)
    found = model_breadcrumbs(theta0, vectors, layout, scaling_factor=1.0, density=0.3, outliers=0.0)
    assert torch.equal(found, expected)


def test_breadcrumbs_of_one_task_with_everything_kept_are_the_expert():
    theta0, vectors, layout = problem(tasks=1)
    found = model_breadcrumbs(theta0, vectors, layout, scaling_factor=1.0, density=1.0, outliers=0.0)
    assert torch.equal(found, theta0 + vectors[0])


def test_breadcrumbs_drop_an_outlier_of_one_task_only():
    theta0, vectors, layout = problem(tasks=2)
    vectors[0, 0] = 1000.0
    found = model_breadcrumbs(theta0, vectors, layout, scaling_factor=1.0, density=0.8, outliers=0.1)
    assert (found - theta0).abs().max() < 10


# Model Stock


def test_stock_on_a_worked_example():
    # cosine 0.6: t = 2 * 0.6 / 1.6 = 0.75 of the mean (0.8, 0.4)
    theta0, vectors, layout = one_layer([1.0, 0.0], [3.0, 4.0])
    vectors[1] /= 5
    torch.testing.assert_close(model_stock(theta0 + 1, vectors, layout) - 1, vectors.new_tensor([0.6, 0.3]))


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_stock_is_the_nearest_point_to_the_centre(tasks):
    """Experts around a centre at equal distances and right angles: the projection of the centre on what they span."""
    torch.manual_seed(tasks)
    basis = torch.linalg.qr(torch.randn(20, 8, dtype=torch.float64))[0].T
    centre = 2 * basis[0]
    vectors = centre + 3 * basis[1 : tasks + 1]
    nearest = vectors.T @ torch.linalg.lstsq(vectors.T, centre[:, None]).solution
    layout = Layout.of({"a": centre}, block=20)
    torch.testing.assert_close(model_stock(torch.zeros_like(centre), vectors, layout), nearest.squeeze(1))


def test_stock_takes_the_mean_cosine_of_each_layer():
    theta0, vectors, layout = problem(tasks=3)
    vectors += 2 * torch.randn(layout.length) * layout.inside()  # something in common
    update = layout.views(model_stock(theta0, vectors, layout) - theta0)
    for name, mean in layout.views(vectors.mean(0)).items():
        one, two, three = (layout.views(row)[name].flatten() for row in vectors)
        pairs = ((one, two), (one, three), (two, three))
        cosine = sum(torch.nn.functional.cosine_similarity(x, y, dim=0) for x, y in pairs) / 3
        assert cosine > 0
        torch.testing.assert_close(update[name], 3 * cosine / (1 + 2 * cosine) * mean)


def test_stock_keeps_what_all_agree_on_and_drops_what_they_contradict():
    theta0, vectors, layout = problem(tasks=2)
    parts = [layout.views(row) for row in vectors]
    parts[1]["a"].copy_(2 * parts[0]["a"])  # the same direction
    parts[1]["b"].copy_(-2 * parts[0]["b"])  # opposite: c = -1, where t has its pole
    parts[1]["c"].zero_()  # no direction
    update = layout.views(model_stock(theta0, vectors, layout) - theta0)
    torch.testing.assert_close(update["a"], 1.5 * parts[0]["a"])
    assert not update["b"].any()
    assert not update["c"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stock_of_one_task_is_the_expert_and_of_equal_experts_too(dtype):
    theta0, vectors, layout = problem(tasks=1, dtype=dtype)
    assert torch.equal(model_stock(theta0, vectors, layout), theta0 + vectors[0])
    torch.testing.assert_close(model_stock(theta0, vectors.repeat(5, 1), layout), theta0 + vectors[0])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (consensus_task_arithmetic, {"mask_lambda": -0.1}, r"mask_lambda is -0\.1"),
        (consensus_task_arithmetic, {"mask_lambda": float("nan")}, "mask_lambda is nan"),
        (consensus_task_arithmetic, {"min_tasks": -1}, "min_tasks is -1"),
        (model_breadcrumbs, {"density": 0.0}, r"density is 0\.0"),
        (model_breadcrumbs, {"density": float("nan")}, "density is nan"),
        (model_breadcrumbs, {"outliers": -0.1}, r"outliers -0\.1"),
        (model_breadcrumbs, {"outliers": 1.0}, r"outliers 1\.0"),
        (model_breadcrumbs, {"density": 0.9, "outliers": 0.2}, r"density is 0\.9 and outliers 0\.2.* at most 1"),
    ],
)
def test_options_out_of_range_are_named(method, options, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        method(theta0, vectors, layout, **options)

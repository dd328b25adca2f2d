"""Fisher merging, RegMean and RegMean++ on made-up statistics: closed forms, shared properties, bad input."""

from copy import deepcopy

import pytest
import torch
from fusion_inputs import extra
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.fusion import METHODS, fisher_merging, regmean, regmean_plus_plus, weight_averaging
from lib.vectors.layout import Layout

OURS = ("fisher_merging", "regmean", "regmean_plus_plus")


def problem(tasks=3, seed=0):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(2, 3)}, block=4)
    inside = layout.inside().double()
    theta0 = torch.randn(layout.length, dtype=torch.float64) * inside
    return theta0, torch.randn(tasks, layout.length, dtype=torch.float64) * inside, layout


def linear_layer(tasks, inputs, outputs, rows, seed=0):
    """A model that is one linear layer: theta0, task vectors, layout, the experts' weights, and inputs of each task."""
    torch.manual_seed(seed)
    layout = Layout.of({"w": torch.zeros(outputs, inputs)}, block=outputs * inputs)
    weights = torch.randn(tasks, outputs, inputs, dtype=torch.float64)
    theta0 = torch.randn(layout.length, dtype=torch.float64)
    data = torch.randn(tasks, rows, inputs, dtype=torch.float64)
    return theta0, weights.flatten(1) - theta0, layout, weights, data


# Properties of all three


@pytest.mark.parametrize("method", OURS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 5))
def test_shared_properties(method, seed, tasks):
    theta0, vectors, layout = problem(tasks, seed)
    merge, needs = METHODS[method].merge, extra(method, theta0, vectors, layout)
    before = deepcopy((theta0, vectors, {name: value for name, value in needs.items() if name in ("fisher", "grams")}))
    merged, order = merge(theta0, vectors, layout, **needs), torch.randperm(tasks)
    permuted = merge(theta0, vectors[order], layout, **extra(method, theta0, vectors[order], layout, order))
    torch.testing.assert_close(merged, permuted, rtol=1e-10, atol=1e-10)
    assert torch.equal(merge(theta0, torch.zeros_like(vectors), layout, **needs), theta0)
    same = merge(theta0, vectors[:1].repeat(tasks, 1), layout, **needs)
    torch.testing.assert_close(same, theta0 + vectors[0], rtol=1e-12, atol=1e-12)  # T = 1 among others
    assert not (merged * (1 - layout.inside())).any()  # padding stays zero
    assert torch.equal(theta0, before[0])
    assert torch.equal(vectors, before[1])
    for name, value in before[2].items():
        torch.testing.assert_close(needs[name], value, rtol=0, atol=0)


def test_what_each_method_needs():
    assert all(METHODS[method].needs_data for method in OURS)


@pytest.mark.parametrize("method", OURS)
def test_task_vectors_are_checked_before_statistics_are_asked_for(method):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match="T = 0"):
        METHODS[method].merge(theta0, vectors[:0], layout)


# Fisher merging


@pytest.mark.parametrize("normalise", [False, True])
def test_fisher_merging_entry_by_entry(normalise):
    theta0, vectors, layout = problem()
    fisher = torch.rand_like(vectors) * layout.inside()
    floor = 0.01
    scale = [1 / (own.square().sum().sqrt() + floor) if normalise else 1.0 for own in fisher]
    expected = theta0.clone()
    for place in layout.inside().nonzero().flatten().tolist():
        weights = [scale[task] * (fisher[task, place] + floor) for task in range(3)]
        experts = [theta0[place] + vectors[task, place] for task in range(3)]
        expected[place] = sum(w * x for w, x in zip(weights, experts, strict=True)) / sum(weights)
    merged = fisher_merging(theta0, vectors, layout, fisher=fisher, floor=floor, normalise=normalise)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_without_information_experts_are_averaged(floor):
    theta0, vectors, layout = problem()
    average = weight_averaging(theta0, vectors, layout)
    nothing = torch.zeros_like(vectors)
    torch.testing.assert_close(fisher_merging(theta0, vectors, layout, fisher=nothing, floor=floor), average)
    one_entry = nothing.clone()
    one_entry[1, 2] = 3.0  # only task 1 knows anything, and only of entry 2
    merged = fisher_merging(theta0, vectors, layout, fisher=one_entry, floor=0.0)
    assert merged[2] == theta0[2] + vectors[1, 2]
    rest = torch.arange(len(theta0)) != 2
    torch.testing.assert_close(merged[rest], average[rest])


def test_equal_information_averages_and_scale_drops_out():
    theta0, vectors, layout = problem()
    alike = torch.full_like(vectors, 0.3)
    average = weight_averaging(theta0, vectors, layout)
    torch.testing.assert_close(fisher_merging(theta0, vectors, layout, fisher=alike), average)
    fisher = torch.rand_like(vectors)
    merged = fisher_merging(theta0, vectors, layout, fisher=fisher, floor=0.0)
    louder = fisher * torch.tensor([[1.0], [50.0], [0.01]], dtype=torch.float64)
    torch.testing.assert_close(fisher_merging(theta0, vectors, layout, fisher=louder, floor=0.0), merged)


@pytest.mark.parametrize("smaller", [0.0, 1e-6, 1e-3])
def test_an_expert_gains_no_weight_by_having_little_information(smaller):
    """Scaled to the same length it counts as much as any other; as it is, about in proportion; without any, nothing."""
    layout = Layout.of({"a": torch.zeros(50, 20)})
    theta0, vectors = torch.zeros(layout.length), torch.zeros(2, layout.length)
    vectors[0] = layout.inside()  # what is merged is the weight of task 0
    torch.manual_seed(0)
    fisher = torch.rand(2, layout.length) * layout.inside() * 1e-4
    fisher[0] *= smaller

    def weight(**options):
        return fisher_merging(theta0, vectors, layout, fisher=fisher, **options).sum().item() / layout.parameters

    assert weight() == pytest.approx(0.5 if smaller else 0.0, abs=0.02)
    assert weight(normalise=False) <= 10 * smaller
    if smaller < 1e-3:
        assert weight(floor=1e-6) > 0.9, "FusionBench's rule does the opposite"


def test_denormal_information_gives_no_nan():
    theta0, vectors, layout = problem()
    theta0, vectors = theta0.float(), vectors.float()
    fisher = torch.full_like(vectors, 1e-44)
    fisher[:, 0] = 1e3
    merged = fisher_merging(theta0, vectors, layout, fisher=fisher, floor=0.0)
    torch.testing.assert_close(merged, weight_averaging(theta0, vectors, layout))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda fisher: fisher[:2], r"fisher has shape \[2, 28\]"),
        (lambda fisher: fisher[:, :-1], r"fisher has shape \[3, 27\]"),
        (lambda fisher: fisher.index_fill(1, torch.tensor([13]), -1.0), "task 0 holds a negative entry in layer 'b'"),
        (lambda fisher: fisher.index_fill(0, torch.tensor([1]), float("nan")), "task 1 holds NaN or Inf in layer 'a'"),
    ],
)
def test_bad_fisher_information(spoil, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        fisher_merging(theta0, vectors, layout, fisher=spoil(torch.rand_like(vectors)))


def test_bad_floor():
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match="floor is -1"):
        fisher_merging(theta0, vectors, layout, fisher=torch.rand_like(vectors), floor=-1)


# RegMean


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 4), outputs=st.integers(1, 4))
def test_regmean_is_least_squares_on_the_stacked_data(seed, tasks, outputs):
    theta0, vectors, layout, weights, data = linear_layer(tasks, inputs=5, outputs=outputs, rows=12, seed=seed)
    targets = data @ weights.mT
    expected = torch.linalg.lstsq(data.flatten(0, 1), targets.flatten(0, 1)).solution.T
    merged = regmean(theta0, vectors, layout, grams={"w": data.mT @ data}, non_diagonal=1.0)
    torch.testing.assert_close(merged.view(outputs, 5), expected, rtol=1e-8, atol=1e-8)


def test_regmean_by_the_papers_formula():
    theta0, vectors, layout, weights, data = linear_layer(3, inputs=6, outputs=4, rows=4)
    for non_diagonal in (0.0, 0.3, 0.9):
        grams = [x.T @ x for x in data]
        grams = [non_diagonal * g + (1 - non_diagonal) * torch.diag(g.diagonal()) for g in grams]
        expected = torch.inverse(sum(grams)) @ sum(g @ w.T for g, w in zip(grams, weights, strict=True))  # [in, out]
        merged = regmean(theta0, vectors, layout, grams={"w": data.mT @ data}, non_diagonal=non_diagonal)
        torch.testing.assert_close(merged.view(4, 6), expected.T, rtol=1e-9, atol=1e-9)


def test_layers_without_a_gram_matrix_are_averaged():
    theta0, vectors, layout = problem()
    grams = {"a": extra("regmean", theta0, vectors, layout)["grams"]["a"]}
    merged = layout.views(regmean(theta0, vectors, layout, grams=grams))
    average = layout.views(weight_averaging(theta0, vectors, layout))
    assert torch.equal(merged["b"], average["b"])
    assert torch.equal(merged["c"], average["c"])
    assert not torch.allclose(merged["a"], average["a"])


@pytest.mark.parametrize("non_diagonal", [0.9, 1.0])
def test_a_dead_feature_is_averaged(non_diagonal):
    theta0, vectors, layout, weights, data = linear_layer(2, inputs=4, outputs=3, rows=10)
    data[:, :, 1] = 0
    merged = regmean(theta0, vectors, layout, grams={"w": data.mT @ data}, non_diagonal=non_diagonal).view(3, 4)
    torch.testing.assert_close(merged[:, 1], weights.mean(0)[:, 1])
    alive = [0, 2, 3]
    seen = data[:, :, alive]
    smaller = linear_layer(2, inputs=3, outputs=3, rows=10)[2]
    expected = regmean(torch.zeros(9).double(), weights[:, :, alive].flatten(1), smaller,
                       grams={"w": seen.mT @ seen}, non_diagonal=non_diagonal)  # fmt: skip
    torch.testing.assert_close(merged[:, alive], expected.view(3, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fewer_inputs_than_features(dtype):
    """non_diagonal = 1 and a singular system: the data is fitted as well as can be, and rounding does not blow up."""
    theta0, vectors, layout, weights, data = linear_layer(2, inputs=20, outputs=3, rows=4)
    targets = data @ weights.mT
    merged = regmean(theta0, vectors, layout, grams={"w": (data.mT @ data).to(dtype)}, non_diagonal=1.0).view(3, 20)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(data @ merged.T, targets, rtol=tolerance, atol=tolerance)
    assert merged.norm() < 3 * weights.norm(dim=(1, 2)).max()
    unseen = torch.linalg.svd(data.flatten(0, 1)).Vh[8:]  # no input has a part along these
    assert ((merged - weights.mean(0)) @ unseen.T).abs().max() < 3


@pytest.mark.parametrize(
    ("grams", "message"),
    [
        ({}, "no Gram matrices given"),
        ({"d": torch.eye(4).repeat(3, 1, 1)}, "'d', which is no layer"),
        ({"b": torch.eye(5).repeat(3, 1, 1)}, r"layer 'b' of shape \[5\]"),
        (
            {"a": torch.eye(4).repeat(2, 1, 1)},
            r"layer 'a' have shape \[2, 4, 4\], expected \[T, in, in\] = \[3, 4, 4\]",
        ),
        ({"a": torch.ones(3, 4, 3)}, r"layer 'a' have shape \[3, 4, 3\]"),
        ({"a": torch.eye(3).repeat(3, 1, 1)}, r"layer 'a' have shape \[3, 3, 3\]"),
        ({"a": torch.full((3, 4, 4), float("nan"))}, "layer 'a' holds NaN or Inf"),
        ({"a": torch.ones(4, 4).triu().repeat(3, 1, 1)}, "layer 'a' is not symmetric"),
        ({"a": -torch.eye(4).repeat(3, 1, 1)}, "layer 'a' is not symmetric with a diagonal >= 0"),
    ],
)
def test_bad_gram_matrices(grams, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        regmean(theta0, vectors, layout, grams=grams)


@pytest.mark.parametrize("non_diagonal", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("method", ["regmean", "regmean_plus_plus"])
def test_non_diagonal_out_of_range(method, non_diagonal):
    theta0, vectors, layout = problem()
    needs = extra(method, theta0, vectors, layout)
    with pytest.raises(ValueError, match="non_diagonal is"):
        METHODS[method].merge(theta0, vectors, layout, non_diagonal=non_diagonal, **needs)


# RegMean++


def test_regmean_plus_plus_on_fixed_inputs_is_regmean():
    theta0, vectors, layout = problem()
    grams = extra("regmean", theta0, vectors, layout)["grams"]

    def grams_at(task, theta, layers):
        return {name: grams[name][task] for name in layers if name in grams}

    for groups in ([layout.names], [("a", "b"), ("c",)], [("c",), ("a",)]):
        merged = regmean_plus_plus(theta0, vectors, layout, groups=groups, grams_at=grams_at)
        assert torch.equal(merged, regmean(theta0, vectors, layout, grams=grams))


def test_regmean_plus_plus_asks_at_the_right_points():
    """Before the group: merged. The group itself: the expert's, also where it has no Gram matrix. Never in place."""
    theta0, vectors, layout = problem()
    seen = []
    made_up = extra("regmean_plus_plus", theta0, vectors, layout)["grams_at"]

    def grams_at(task, theta, layers):
        seen.append((task, layers, layout.views(theta.clone())))
        return made_up(task, theta, layers)

    merged = regmean_plus_plus(theta0, vectors, layout, groups=[("a",), ("b", "c")], grams_at=grams_at)
    assert [(task, layers) for task, layers, _ in seen] == [(t, g) for g in (("a",), ("b", "c")) for t in range(3)]
    experts = [layout.views(theta0 + vector) for vector in vectors]
    for task, layers, point in seen:
        assert all(torch.equal(point[name], experts[task][name]) for name in layers)
        if "b" in layers:
            assert torch.equal(point["a"], layout.views(merged)["a"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "no groups"),
        ([("a", "z")], "'z', which is no layer"),
        ([("a",), ("c", "a")], "'a' is in more than one place"),
    ],
)
def test_bad_groups(groups, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        regmean_plus_plus(theta0, vectors, layout, groups=groups, grams_at=lambda *_: {})

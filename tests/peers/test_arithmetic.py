"""Averages, sums, Ties-Merging and DARE against FusionBench, PEFT and mergekit.

Where a peer differs, the paper decides, the test names its line, and a second test shows that the difference is exactly
that and nothing else.
"""

import mergekit.merge_methods
import pytest
import torch
from comparison import assert_same, error, flat, small_module
from comparison import problem as make_problem
from fusion_bench import BaseModelPool
from fusion_bench.method.dare.task_arithmetic import DareTaskArithmetic
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from peft.utils import merge_utils as peft

from lib.fusion import dare, task_arithmetic, ties_merging, weight_averaging
from lib.vectors.layout import Layout

DENSITY, DROP_RATE = 0.2, 0.6


def mergekit_merge(problem, method, **parameters):
    """mergekit on state dicts, back as a flat vector [D]."""
    models = {"base": problem.pretrained, **dict(enumerate(problem.experts))}
    base = None if method == "linear" else "base"
    if base is None:
        models.pop("base")
    with torch.no_grad():
        merged = mergekit.merge_methods.merge_state_dicts(models, method, base=base, parameters=parameters)
    return flat(merged, problem.layout)


def pool(problem):
    pretrained, experts = problem.models()
    return BaseModelPool({"_pretrained_": pretrained, **{f"task {i}": expert for i, expert in enumerate(experts)}})


# Averages and sums


def test_weight_averaging(problem):
    ours = weight_averaging(problem.theta0, problem.vectors, problem.layout)
    peer = flat(simple_average(problem.models()[1]).state_dict(), problem.layout)
    assert_same("weight averaging", "FusionBench", ours, peer)
    assert_same("weight averaging", "mergekit", ours, mergekit_merge(problem, "linear", weight=1.0))


def test_task_arithmetic(problem):
    ours = task_arithmetic(problem.theta0, problem.vectors, problem.layout, scaling_factor=0.3)
    peer = TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool(problem))
    assert_same("Task Arithmetic", "FusionBench", ours, flat(peer.state_dict(), problem.layout))
    peer = mergekit_merge(problem, "task_arithmetic", weight=0.3)
    assert_same("Task Arithmetic", "mergekit", ours, peer)
    update = peft.task_arithmetic(list(problem.vectors), torch.full((len(problem.vectors),), 0.3).to(problem.theta0))
    assert_same("Task Arithmetic", "PEFT", ours, problem.theta0 + update)


# Ties-Merging


def one_more(layout):
    """The density that keeps int(0.2 D) + 1 entries.

    FusionBench, like the paper's own code, takes `kthvalue(D - int(density D))` as threshold and keeps what is not
    smaller: one entry more than "keeping the top-k% values according to their magnitude" (section 3, Trim) says.
    """
    return (int(DENSITY * layout.parameters) + 1.5) / layout.parameters


@pytest.mark.parametrize(("rule", "scaling_factor"), [("sum", 0.3), ("mean", 1.0)])
def test_ties_against_fusion_bench(problem, rule, scaling_factor):
    peer = TiesMergingAlgorithm(scaling_factor=scaling_factor, threshold=20, remove_keys=[], merge_func=rule)
    expected = flat(peer.run(pool(problem)).state_dict(), problem.layout)
    parts = problem.theta0, problem.vectors, problem.layout
    ours = ties_merging(*parts, density=one_more(problem.layout), rule=rule)
    assert_same(f"Ties ({rule})", "FusionBench", ours, expected)
    # the density as the paper has it differs by the one smallest entry of each task, no more
    assert int((ours != ties_merging(*parts, density=DENSITY, rule=rule)).sum()) <= len(problem.vectors)


def test_ties_against_fusion_bench_where_two_tasks_cancel():
    """Paper: gamma^p = sgn(sum_t tau_t^p), which is 0 where the tasks cancel; FusionBench takes the majority's sign."""
    found = make_problem(small_module("matrix", 0), 2, 0, torch.float64)
    with torch.no_grad():
        first, second = (next(expert.parameters()) for expert in found.experts)
        base = next(found.pretrained.parameters())
        base.copy_((base * 64).round() / 64)  # so that differences are exact
        first.copy_(base + torch.randint(1, 4, base.shape))
        second.copy_(base + torch.randint(-1, 4, base.shape))
        second[0, 0] = base[0, 0] - 3
        first[0, 0] = base[0, 0] + 3
    layout = found.layout
    theta0 = flat(found.pretrained.state_dict(), layout)
    vectors = torch.stack([flat(expert.state_dict(), layout) for expert in found.experts]) - theta0
    found = type(found)(found.pretrained, found.experts, layout, theta0, vectors)
    peer = TiesMergingAlgorithm(scaling_factor=1.0, threshold=99.9, remove_keys=[], merge_func="sum").run(pool(found))
    difference = flat(peer.state_dict(), layout) - ties_merging(
        theta0, vectors, layout, scaling_factor=1.0, density=1.0
    )
    cancels = (vectors.sum(0) == 0) & (vectors != 0).any(0)
    assert cancels[0]
    assert torch.equal(difference != 0, cancels)
    assert torch.equal(difference[cancels], vectors.clamp(min=0).sum(0)[cancels])  # here most entries grew


def test_ties_mean_against_peft(problem):
    """PEFT's functions see one tensor, so the model is given as one; it has the mean only."""
    vectors = list(problem.vectors[:, problem.inside])
    update = peft.ties(vectors, torch.ones(len(vectors)).to(vectors[0]), density=DENSITY)
    ours = ties_merging(problem.theta0, problem.vectors, problem.layout, density=DENSITY, rule="mean")
    assert_same("Ties (mean)", "PEFT", ours[problem.inside], problem.theta0[problem.inside] + update)


def layer_by_layer(problem, **options):
    """Ours with the density counted in each layer instead of the whole model, and which parameters are tied.

    Tied are those whose magnitude equals the smallest one kept, if more of them do than there is room for. We keep all
    of them, mergekit the first in the order of an unstable sort. Differences of float32 numbers are often equal.
    """
    merged, tied = {}, {}
    for name, start in problem.layout.views(problem.theta0).items():
        alone = Layout.of({name: start}, block=start.numel())
        rows = torch.stack([tau[name].flatten() for tau in problem.task_vectors])
        merged[name] = ties_merging(start.flatten(), rows, alone, density=DENSITY, **options).view(start.shape)
        keep = max(1, int(DENSITY * start.numel()))
        smallest = rows.abs().sort(descending=True).values[:, keep - 1 : keep]
        crowded = (rows.abs() >= smallest).sum(1, keepdim=True) > keep
        tied[name] = ((rows.abs() == smallest) & crowded).any(0).view(start.shape).to(start)
    return flat(merged, problem.layout), flat(tied, problem.layout) > 0


@pytest.mark.parametrize(("rule", "scaling_factor"), [("sum", 0.3), ("mean", 1.0)])
def test_ties_against_mergekit(problem, rule, scaling_factor):
    """mergekit sees one tensor at a time, so its density is that of a layer. The paper trims "each task vector"."""
    options = {"weight": 1.0, "density": DENSITY, "normalize": rule == "mean", "lambda": scaling_factor}
    peer = mergekit_merge(problem, "ties", **options)
    ours, tied = layer_by_layer(problem, rule=rule)
    assert tied.sum() < 1e-3 * problem.layout.parameters
    assert_same(f"Ties ({rule})", "mergekit, by layer", ours[~tied], peer[~tied])


def test_ties_of_the_whole_model_is_not_ties_of_each_layer(many_layers):
    parts = many_layers.theta0, many_layers.vectors, many_layers.layout
    ours = ties_merging(*parts, density=DENSITY) - many_layers.theta0
    assert error(ours, layer_by_layer(many_layers)[0] - many_layers.theta0) > 0.1


# DARE, with the peers' own random masks: the same seed draws them again, in the order in which the peer draws


def stack_masks(problem, draw):
    """Boolean [T, D] from draw(task, name, shape) -> bool."""
    rows = [{n: draw(t, n, v).to(v) for n, v in tau.items()} for t, tau in enumerate(problem.task_vectors)]
    return torch.stack([flat(row, problem.layout) for row in rows]) > 0


def test_dare_against_fusion_bench(problem):
    options = {"sparsity_ratio": DROP_RATE, "only_on_linear_weights": False, "rescale": True}
    torch.manual_seed(1)
    peer = DareTaskArithmetic(scaling_factor=0.3, **options).run(pool(problem))
    torch.manual_seed(1)
    kept = stack_masks(problem, lambda task, name, like: torch.rand_like(like) > DROP_RATE)
    ours = dare(problem.theta0, problem.vectors, problem.layout, scaling_factor=0.3, drop_rate=DROP_RATE, kept=kept)
    assert_same("DARE", "FusionBench", ours, flat(peer.state_dict(), problem.layout))


def test_dare_against_peft(problem):
    vectors = list(problem.vectors[:, problem.inside])
    torch.manual_seed(1)
    update = peft.dare_linear(vectors, torch.full((len(vectors),), 0.3).to(vectors[0]), density=1 - DROP_RATE)
    torch.manual_seed(1)
    kept = torch.zeros_like(problem.vectors, dtype=torch.bool)
    for row, vector in zip(kept, vectors, strict=True):
        row[problem.inside] = torch.bernoulli(torch.full_like(vector, 1 - DROP_RATE)) > 0
    ours = dare(problem.theta0, problem.vectors, problem.layout, scaling_factor=0.3, drop_rate=DROP_RATE, kept=kept)
    assert_same("DARE", "PEFT", ours[problem.inside], problem.theta0[problem.inside] + update)


@pytest.mark.parametrize("rescale", [False, True])
def test_dare_against_mergekit(problem, rescale):
    """The paper rescales "by 1/(1 - p)"; mergekit, when asked to, to the l1 norm before dropping, layer by layer.

    So mergekit without rescaling is compared at a factor 1/(1 - p), and with rescaling after exchanging the factors.
    """
    factor = 0.3 if rescale else 0.3 / (1 - DROP_RATE)
    options = {"weight": 1.0, "density": 1 - DROP_RATE, "lambda": factor, "rescale": rescale}
    torch.manual_seed(1)
    peer = mergekit_merge(problem, "dare_linear", **options)
    torch.manual_seed(1)
    drawn = {}
    for name, view in problem.layout.views(problem.theta0).items():  # layer after layer, each for all tasks
        for task in range(len(problem.vectors)):
            drawn[task, name] = torch.bernoulli(torch.full(view.shape, 1 - DROP_RATE)) > 0
    kept = stack_masks(problem, lambda task, name, like: drawn[task, name])
    vectors = problem.vectors
    if rescale:
        sums = [problem.layout.layer_sums(tau.abs()) for tau in (vectors, vectors * kept)]
        ratio = torch.where(sums[1] > 0, sums[0] / sums[1], 1)
        vectors = vectors * problem.layout.spread(ratio) * (1 - DROP_RATE)
    ours = dare(problem.theta0, vectors, problem.layout, scaling_factor=0.3, drop_rate=DROP_RATE, kept=kept)
    assert_same("DARE", "mergekit, l1 norm" if rescale else "mergekit", ours, peer)

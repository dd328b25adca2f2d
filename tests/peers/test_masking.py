"""TALL masks, Consensus Task Arithmetic, EMR-Merging and Model Stock against FusionBench, two also against mergekit.

FusionBench has no Model Breadcrumbs; mergekit has. The merged task vectors are compared, not the merged parameters, on
which the same error would look smaller. Where a peer differs, a second test shows that it is exactly that.
"""

from copy import deepcopy
from itertools import combinations

import pytest
import torch
from comparison import assert_same, error, flat
from comparison import problem as make_problem
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.model_stock import ModelStock
from fusion_bench.method.tall_mask.task_arithmetic import TallMaskTaskArithmeticAlgorithm
from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks as algorithm_masks
from fusion_bench.method.tall_mask.utils import generate_task_masks
from test_arithmetic import mergekit_merge, pool

from lib.fusion import consensus_task_arithmetic, emr_merging, model_breadcrumbs, model_stock, tall_masks

MASK_LAMBDA = 0.4


def at_zero(problem, vectors):
    """Task vectors [T, D] added to a pre-trained model of zeros, so that no peer rounds them by adding theta0."""
    pretrained = deepcopy(problem.pretrained)
    experts = [deepcopy(pretrained) for _ in vectors]
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.zero_()
        for expert, row in zip(experts, vectors, strict=True):
            for name, view in problem.layout.views(row).items():
                expert.get_parameter(name).copy_(view)
    return type(problem)(pretrained, experts, problem.layout, torch.zeros_like(problem.theta0), vectors)


def ours(problem, method, **options):
    """The task vector of our method's result: [D], or [T, D]."""
    return method(torch.zeros_like(problem.theta0), problem.vectors, problem.layout, **options)


# TALL masks and Consensus Task Arithmetic


def peer_masks(problem):
    """FusionBench's masks [T, D], and where rounding decides: it subtracts and adds theta0, which cancels.

    An entry is unsafe if |tau_t| and lambda |tau_MTL - tau_t| differ by less than rounding numbers of theta0's size.
    """
    theta0, vectors, total = problem.theta0, problem.vectors, problem.vectors.sum(0)
    masks = generate_task_masks(vectors, theta0 + vectors, theta0, tall_mask_lambda=MASK_LAMBDA)
    gap = (vectors.abs() - MASK_LAMBDA * (total - vectors).abs()).abs()
    scale = theta0.abs() + vectors.abs().sum(0)
    unsafe = (gap <= 8 * torch.finfo(theta0.dtype).eps * scale) & problem.inside
    assert unsafe.sum() <= 1e-3 * vectors.numel()
    return masks.view_as(vectors), unsafe


def test_tall_masks(problem):
    """FusionBench's masks are the authors' code."""
    masks, unsafe = peer_masks(problem)
    found, expected = ours(problem, tall_masks, mask_lambda=MASK_LAMBDA), masks * problem.vectors.sum(0)
    assert_same("TALL masks", "FusionBench, masks", found[~unsafe], expected[~unsafe])


def test_tall_masks_of_fusion_bench_s_algorithm(many_layers):
    """It compares |theta0 - tau_t| where the paper has |tau_t|: the same only for a pre-trained model of zeros.

    That is the function which the algorithm calls with theta0; the algorithm itself fails on every module, since it
    takes no tensor beside a parameter.
    """
    layout, theta0, total = many_layers.layout, many_layers.theta0, many_layers.vectors.sum(0)
    found = ours(many_layers, tall_masks, mask_lambda=MASK_LAMBDA)
    for start, same in ((torch.zeros_like(theta0), True), (theta0, False)):
        rows = [
            flat(algorithm_masks(layout.views(total), tau, layout.views(start), MASK_LAMBDA), layout)
            for tau in many_layers.task_vectors
        ]
        expected = torch.stack(rows) * total
        if same:
            assert_same("TALL masks", "FusionBench, theta0=0", found, expected)
        else:
            assert error(found, expected) > 0.1
    with pytest.raises(TypeError, match="expected Parameter, got Tensor"):
        TallMaskTaskArithmeticAlgorithm(tall_mask_lambda=MASK_LAMBDA).run(pool(many_layers))


@pytest.mark.parametrize("min_tasks", [1, 2])
def test_consensus(problem, min_tasks):
    """FusionBench's own function reads masks from files; its line is `sum of the masks >= prun_thre_k`."""
    masks, unsafe = peer_masks(problem)
    expected = 0.3 * (masks.float().sum(0) >= min_tasks) * problem.vectors.sum(0)
    found = ours(problem, consensus_task_arithmetic, mask_lambda=MASK_LAMBDA, min_tasks=min_tasks)
    if len(problem.vectors) < min_tasks:
        assert not found.any()
        assert not expected.any()
    else:
        safe = ~unsafe.any(0)
        assert_same("Consensus TA", "FusionBench, masks", found[safe], expected[safe])


# EMR-Merging


def masked_and_factors(problem):
    """FusionBench's unified vector masked by each task [T, D], and its factors [T, 1]."""
    unified, masks, factors = emr_merge(problem.task_vectors)
    rows = [
        flat({name: unified[name] * masks[name][task] for name in unified}, problem.layout)
        for task in range(len(problem.vectors))
    ]
    return torch.stack(rows), factors[:, None].to(problem.theta0)


def test_emr_of_layers_of_one_size():
    """Then the mean over each layer, which FusionBench and the authors take, is the sum over all in other units."""
    module = torch.nn.Sequential(*(torch.nn.Linear(12, 12, bias=False) for _ in range(4)))
    for tasks in (1, 2, 5, 8):
        problem = make_problem(module, tasks, 0, torch.float64)
        masked, factors = masked_and_factors(problem)
        assert_same("EMR-Merging", "FusionBench", ours(problem, emr_merging), factors * masked)


def test_emr(problem):
    """Of layers of any size, with the factors exchanged: they are different, and what nobody is elected for.

    Paper: the sign of the sum, which is 0 where tasks cancel; FusionBench elects minus. Task vectors are rounded to
    multiples of 2^-18, so that their sums are exact and cancel in both or in none.
    """
    vectors = (problem.vectors * 2**18).round() / 2**18
    vectors[-1, :3] = -vectors[:-1, :3].sum(0)
    found = type(problem)(None, [], problem.layout, problem.theta0, vectors)
    masked, factors = masked_and_factors(found)
    cancel = vectors.sum(0) == 0
    assert torch.equal(masked[:, cancel] != 0, vectors[:, cancel] < 0)
    masked[:, cancel] = 0
    own = vectors.abs().sum(1, keepdim=True) / masked.abs().sum(1, keepdim=True)
    assert_same("EMR-Merging", "FusionBench, factors", ours(found, emr_merging) / own * factors, factors * masked)


# Model Breadcrumbs


def test_breadcrumbs_against_mergekit(problem):
    """mergekit compares magnitudes in float32 on a CPU, so what is equal there is left out: it sorts unstably."""
    options = {"weight": 1.0, "density": 0.4, "gamma": 0.05, "lambda": 0.2}
    peer = mergekit_merge(at_zero(problem, problem.vectors), "breadcrumbs", **options)
    found = ours(problem, model_breadcrumbs, scaling_factor=0.2, density=0.4, outliers=0.05)
    tied = {}
    for name, start in problem.layout.views(problem.theta0).items():
        rows = torch.stack([tau[name].flatten() for tau in problem.task_vectors]).abs().float()
        equal = [(row[:, None] == row.sort().values[edges(row)]).any(1) & crowded(row) for row in rows]
        tied[name] = torch.stack(equal).any(0).view(start.shape).to(start)
    tied = flat(tied, problem.layout) > 0
    assert tied.sum() < 1e-3 * problem.layout.parameters
    assert_same("Breadcrumbs", "mergekit", found[~tied], peer[~tied])


def edges(row):
    """Places, in increasing order, of the smallest and the largest entry kept, and of their neighbours outside."""
    size = len(row)
    kept, dropped = max(1, int(0.4 * size)), int(0.05 * size)
    first, last = size - dropped - kept, size - dropped - 1
    return torch.tensor([max(0, first - 1), first, last, min(size - 1, last + 1)]).unique()


def crowded(row):
    """Which entries have another of equal magnitude."""
    _, place, count = row.unique(return_inverse=True, return_counts=True)
    return count[place] > 1


# Model Stock


def with_a_common_part(problem):
    """The same tasks, moved in one direction too, at most six of them: the cosines of all layers are positive.

    In units that make them large: FusionBench adds 1e-8 to the product of two lengths, mergekit takes 1e-6 at least.
    """
    vectors = problem.vectors[:6]
    sizes = (problem.layout.layer_sums(vectors.square()).mean(0) / problem.layout.counts(vectors)).sqrt()
    common = torch.randn(problem.layout.length, generator=torch.Generator().manual_seed(0)).sign() * problem.inside
    return at_zero(problem, 1000 * (vectors + 2 * common * problem.layout.spread(sizes)))


def fusion_bench_stock(problem):
    return flat(ModelStock().run(pool(problem)).state_dict(), problem.layout)


def layer_cosines(problem):
    """Cosines of the angles between every pair of tasks in every layer: [pairs, L], in float64."""
    vectors, layout = problem.vectors.double(), problem.layout
    lengths = layout.layer_sums(vectors.square()).sqrt()
    pairs = list(combinations(range(len(vectors)), 2))
    return torch.stack([layout.layer_sums(vectors[i] * vectors[j]) / (lengths[i] * lengths[j]) for i, j in pairs])


def stock(problem, cosine):
    """The result with these cosines [L] for those of the layers."""
    tasks = len(problem.vectors)
    ratio = tasks * cosine / (1 + (tasks - 1) * cosine)
    return problem.layout.spread(ratio) * problem.vectors.mean(0)


def test_stock(problem):
    """Both peers refuse one task. Of more than two FusionBench averages the angles, which is checked to be all."""
    found = with_a_common_part(problem)
    if len(found.vectors) == 1:
        with pytest.raises(ValueError, match="at least 2"):
            fusion_bench_stock(found)
        return
    own, cosines, peer = ours(found, model_stock), layer_cosines(found), fusion_bench_stock(found)
    assert_same("Model Stock", "mergekit", own, mergekit_merge(found, "model_stock"))
    if len(found.vectors) == 2:
        assert_same("Model Stock", "FusionBench", own, peer)
    assert error(stock(found, cosines.arccos().mean(0).cos()), peer) < 1e-6


def test_stock_where_tasks_contradict(many_layers):
    """Where the mean cosine is negative the peers go backwards and we stay: the same in all other layers."""
    found = at_zero(many_layers, 1000 * many_layers.vectors)
    cosine = layer_cosines(found).mean(0)
    assert 0 < (cosine < 0).sum() < len(cosine)
    peer = mergekit_merge(found, "model_stock")
    assert error(stock(found, cosine), peer) < 1e-6
    backwards = found.layout.spread(cosine) < 0
    assert not ours(found, model_stock)[backwards].any()
    assert_same("Model Stock", "mergekit", ours(found, model_stock)[~backwards], peer[~backwards])

"""TSV-M, Iso-C, Iso-CTS and WUDI-Merging against FusionBench, whose functions are the authors' codes.

The merged task vectors are compared, not the merged parameters, on which the same error would look smaller.
"""

import pytest
import torch
from comparison import assert_same, error, flat
from fusion_bench.method.isotropic_merging.iso_utils import iso_c as peer_iso_c
from fusion_bench.method.isotropic_merging.iso_utils import iso_cts as peer_iso_cts
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction as peer_tsv_m
from fusion_bench.method.wudi.wudi import wudi_merging as peer_wudi_merging

from lib.fusion import iso_c, iso_cts, tsv_m, wudi_merging
from lib.vectors.layout import Layout


def both(problem, ours, peer, **options):
    """The merged task vector of our method and of a peer's: two [D]."""
    expected = flat(peer(problem.task_vectors, accelerator="cpu", **options), problem.layout)
    return ours(torch.zeros_like(problem.theta0), problem.vectors, problem.layout, **options), expected


def in_double(problem):
    """The same task vectors in float64: what exact arithmetic would give."""
    return type(problem)(None, [], problem.layout, problem.theta0.double(), problem.vectors.double())


METHODS = {"TSV-M": (tsv_m, peer_tsv_m), "Iso-C": (iso_c, peer_iso_c), "Iso-CTS": (iso_cts, peer_iso_cts)}


@pytest.mark.parametrize("method", METHODS)
def test_singular_vectors(problem, method):
    """To 1e-6 in float64. In float32 also to twice FusionBench's own rounding, where that is more.

    Rounding turns singular vectors whose singular values are close, and polar factors of nearly singular matrices. How
    far is measured, not assumed: FusionBench in float32 against FusionBench in float64.
    """
    options = {"common_space_fraction": 0.8} if method == "Iso-CTS" else {}
    found, expected = both(problem, *METHODS[method], **options)
    if problem.theta0.dtype == torch.float64:
        assert_same(method, "FusionBench", found, expected)
        return
    rounding = error(expected, both(in_double(problem), *METHODS[method], **options)[1])
    assert rounding < 1e-3
    assert_same(method, "FusionBench, float32", found, expected, tolerance=max(1e-6, 2 * rounding))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["TSV-M", "Iso-C"])
def test_singular_vectors_of_lora_changes(method, dtype):
    """On matrices of low rank FusionBench merges null directions, too, which are another basis in every LAPACK.

    So it is given the same task vectors in the coordinates of what any task changed, T r by T r, where there are none,
    and its result is turned back.
    """
    tasks, rank = 4, 8
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(tasks, 160, rank, generator=draw, dtype=torch.float64)
    right = torch.randn(tasks, rank, 96, generator=draw, dtype=torch.float64)
    rows, columns = (torch.linalg.qr(torch.cat(tuple(own), 1))[0] for own in (left, right.mT))
    matrices = left @ right
    ours, peer = METHODS[method]
    layout = Layout.of({"a": matrices[0]})
    vectors = matrices.flatten(1).to(dtype)
    found = ours(torch.zeros_like(vectors[0]), vectors, layout).unflatten(0, (160, 96))
    small = [{"a": rows.T @ matrix @ columns} for matrix in matrices]
    expected = rows @ peer(small, accelerator="cpu")["a"] @ columns.T
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert_same(method, f"FusionBench, LoRA, {dtype}".replace("torch.", ""), found, expected, tolerance)


def test_wudi(problem):
    steps = 300 if problem.layout.parameters < 10_000 else 5  # of FusionBench's autograd, 300 would take minutes there
    expected = flat(peer_wudi_merging(problem.task_vectors, accelerator="cpu", iter_num=steps), problem.layout)
    found = wudi_merging(torch.zeros_like(problem.theta0), problem.vectors, problem.layout, steps=steps)
    assert_same("WUDI-Merging", "FusionBench", found, expected)

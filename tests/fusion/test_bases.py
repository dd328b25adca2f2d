"""Bases: their parts add up to the merged task vector of the method, and belong to the tasks."""

import pytest
import torch
from fusion_inputs import extra

from lib import fusion
from lib.concrete import merge
from lib.fusion.bases import BASES, CONTROLS
from lib.vectors.layout import Layout

METHODS = {
    "Task Arithmetic": "task_arithmetic",
    "Ties-Merging": "ties_merging",
    "TSV-M": "tsv_m",
    "Iso-C": "iso_c",
    "WUDI-Merging": "wudi_merging",
    "RegMean": "regmean",
    "FeatCal": "featcal",
}


def problem(tasks=3, rank=0, seed=0):
    torch.manual_seed(seed)
    layout = Layout.of({"a": torch.zeros(8, 12), "b": torch.zeros(5), "c": torch.zeros(2, 3, 2, 2)}, block=8)
    vectors = torch.randn(tasks, layout.length, dtype=torch.float64) * layout.inside()
    if rank:
        left, right = torch.randn(tasks, 8, rank).double(), torch.randn(tasks, rank, 12).double()
        vectors[:, :96] = (left @ right).flatten(1)
    return torch.randn(layout.length, dtype=torch.float64) * layout.inside(), vectors, layout


def given(name, theta0, vectors, layout, order=None):
    return extra(METHODS[name], theta0, vectors, layout, order)


def parts_of(name, theta0, vectors, layout, order=None):
    needs = given(name, theta0, vectors, layout, order)
    if "theta0" in BASES[name].needs:
        needs["theta0"] = theta0
    return BASES[name].parts(vectors, layout, **needs)


def test_every_base_is_a_method():
    assert set(METHODS) == set(BASES)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", BASES)
def test_at_the_initial_coefficient_a_base_is_what_the_method_merges(name, rank):
    theta0, vectors, layout = problem(rank=rank)
    needs, base = given(name, theta0, vectors, layout), BASES[name]
    parts = parts_of(name, theta0, vectors, layout)
    assert parts.shape == vectors.shape
    even = torch.full((len(parts), layout.layers), base.coefficient or 0.3, dtype=torch.float64)
    merged = getattr(fusion, METHODS[name])(theta0, vectors, layout, **needs)
    torch.testing.assert_close(merge(theta0, parts, even, layout), merged, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BASES)
def test_parts_follow_their_tasks_and_leave_the_padding_alone(name):
    theta0, vectors, layout = problem()
    order = [2, 0, 1]
    parts = parts_of(name, theta0, vectors, layout)
    again = parts_of(name, theta0, vectors[order], layout, order)
    torch.testing.assert_close(again, parts[order], rtol=0, atol=1e-12)
    assert not (parts * (1 - layout.inside())).any()


def test_parts_of_tsv_m_do_not_meet_in_any_direction():
    _, vectors, layout = problem(tasks=2)
    first, second = (layout.views(part)["a"] for part in BASES["TSV-M"].parts(vectors, layout))
    assert (first.mT @ second).abs().max() < 1e-12
    assert (first @ second.mT).abs().max() < 1e-12


def test_parts_of_iso_c_keep_what_is_a_tasks_own():
    """Where one task alone changes a matrix, its part is all of the merged one."""
    _, vectors, layout = problem()
    vectors[1:, :96] = 0
    parts = BASES["Iso-C"].parts(vectors, layout)
    assert not parts[1:, :96].any()
    spectrum = torch.linalg.svdvals(layout.views(parts[0])["a"])
    torch.testing.assert_close(spectrum, spectrum.mean().expand_as(spectrum))


def test_random_directions_are_as_long_and_know_nothing():
    _, vectors, layout = problem()
    parts = CONTROLS["Random directions (control)"].parts(vectors, layout, seed=0)
    torch.testing.assert_close(layout.layer_sums(parts.square()), layout.layer_sums(vectors.square()))
    assert not (parts * (1 - layout.inside())).any()
    cosines = torch.nn.functional.cosine_similarity(parts, vectors)
    assert cosines.abs().max() < 0.4
    assert not torch.equal(parts, CONTROLS["Random directions (control)"].parts(vectors, layout, seed=1))


def test_pieces_of_the_pretrained_weights_are_disjoint_and_add_up_to_them():
    theta0, vectors, layout = problem()
    parts = CONTROLS["Pre-trained weights (control)"].parts(vectors, layout, theta0, 0)
    torch.testing.assert_close(parts.sum(0), theta0)
    assert ((parts != 0).sum(0) <= 1).all()
    assert (parts != 0).any(1).all()

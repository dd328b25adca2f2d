"""Tidy tables of what a run has learned."""

import pandas as pd
import pytest
import torch

from lib.study.inspection import coefficient_table, curve_table, density_table
from lib.vectors.layout import Layout

LAYOUT = Layout.of({"conv.weight": torch.zeros(4), "head.bias": torch.zeros(2)}, block=4)  # two places of padding


def test_a_curve_counts_steps_done_and_starts_before_the_first():
    curve = pd.DataFrame({"step": [0, 1], "loss": [3.0, 2.0], "accuracy": [None, 0.7]})
    table = curve_table(curve, start=0.5, method="AdaMerging", seed=4)
    assert table["step"].tolist() == [0, 1, 2]
    assert table["accuracy"].iloc[[0, 2]].tolist() == [0.5, 0.7]
    assert set(table["method"]) == {"AdaMerging"} and set(table["seed"]) == {4}
    assert curve_table(curve)["step"].tolist() == [1, 2]
    assert curve["step"].tolist() == [0, 1], "the curve itself is left alone"


def test_task_wise_coefficients_are_the_same_in_every_layer():
    layer_wise = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    table = coefficient_table(layer_wise, ["a", "b"], LAYOUT, seed=0).set_index(["task", "position"])["coefficient"]
    assert table["b", 0] == pytest.approx(0.3) and table["a", 1] == pytest.approx(0.2)
    task_wise = coefficient_table(torch.tensor([0.1, 0.3]), ["a", "b"], LAYOUT)
    assert task_wise.groupby("task")["coefficient"].agg(["size", "min", "max"]).loc["b"].tolist() == pytest.approx(
        [2, 0.3, 0.3]
    )


def test_densities_leave_the_padding_out():
    logits = torch.tensor([0.0, 0, 0, 0, 50, 50, 0, 0])
    table = density_table(logits, LAYOUT, seed=1)
    assert table["density"].tolist() == pytest.approx([0.5, 1.0])
    assert table["kind"].tolist() == ["convolution", "bias"]

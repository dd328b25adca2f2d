"""The figures of notebook 14, from made-up tables with one and with three seeds."""

import pandas as pd
import pytest
from error_bars import dots

from lib.figures import backbones as drawn

METHODS = ("Weight averaging", "Task Arithmetic", "Experts")


def rows(**columns):
    index = pd.MultiIndex.from_product(columns.values(), names=list(columns))
    return index.to_frame(index=False)


def test_a_panel_per_architecture(seeds):
    table = rows(architecture=["ConvNet", "ViT"], method=METHODS, task=["a", "b"], seed=seeds)
    table["accuracy"] = 0.5 + 0.1 * (table["architecture"] == "ViT") + 0.01 * table["seed"]
    first, second = drawn.architectures(table).axes
    middle = (len(seeds) - 1) / 2
    assert dots(first, "x") == pytest.approx([50 + middle] * 3)
    assert dots(second, "x") == pytest.approx([60 + middle] * 3)
    assert first.get_title() == f"ConvNet; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    assert [text.get_text() for text in first.get_yticklabels()] == list(reversed(METHODS))


def test_a_curve_per_rule_of_statistics(seeds):
    rules = ["mean of the experts'", "re-estimated"]
    table = rows(statistics=rules, scaling_factor=[0.1, 0.3, 1.0], task=["a", "b"], seed=seeds)
    table["accuracy"] = 0.2 + 0.5 * (table["statistics"] == "re-estimated") + 0.01 * table["seed"]
    (axes,) = drawn.running_statistics(table).axes
    middle = (len(seeds) - 1) / 2
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [
        pytest.approx([20 + middle] * 3), pytest.approx([70 + middle] * 3)
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_legend().get_texts()] == rules


def test_variance_layer_by_layer(seeds):
    table = rows(method=METHODS[:2], position=[0, 1, 2], seed=seeds)
    table["share"] = 1 - 0.1 * table["position"]
    (axes,) = drawn.activation_variance(table).axes
    curves = [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert [list(curve) for curve in curves] == [pytest.approx([1, 0.9, 0.8])] * 2

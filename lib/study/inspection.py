"""What a run has learned, as tidy tables: its curve, its coefficients, its mask."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from lib.concrete.mask import expected_mask, layer_means
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import layer_kind

Table = pd.DataFrame


def curve_table(curve: Table, start: float | None = None, **labels: object) -> Table:
    """A curve of `lib.adaptation.adapt` with `step` counting the steps done, and labels as further columns.

    Args:
        curve: one row per step, `step` from 0.
        start: accuracy (0 to 1) before the first step, which the curve itself does not hold: a row with step 0.
        labels: columns with one value, such as method="AdaMerging (layer-wise)", seed=0.
    """
    table = curve.assign(step=curve["step"] + 1)
    if start is not None:
        table = pd.concat([Table([{"step": 0, "accuracy": start}]), table], ignore_index=True)
    return table.assign(**labels)


def coefficient_table(coefficients: Tensor, tasks: Sequence[str], layout: Layout, **labels: object) -> Table:
    """Merging coefficients as rows (task, position of the layer, coefficient).

    Args:
        coefficients: [T, L], or [T], which are the same in all layers.
        tasks: the tasks' names.
        layout: where the layers lie.
        labels: columns with one value.
    """
    if coefficients.dim() == 1:
        coefficients = coefficients[:, None].expand(-1, layout.layers)
    wide = Table(coefficients.cpu(), index=pd.Index(tasks, name="task")).reset_index()
    return wide.melt("task", var_name="position", value_name="coefficient").assign(**labels)


def density_table(logits: Tensor, layout: Layout, **labels: object) -> Table:
    """Expected share of ones of a mask, mean of sigmoid(logits): a row per layer, with its name and kind.

    Args:
        logits: x [D].
        layout: where the layers lie.
        labels: columns with one value.
    """
    means = layer_means(expected_mask(logits, layout), layout).cpu()
    rows = {"position": range(layout.layers), "layer": layout.names, "density": means}
    return Table(rows).assign(kind=[layer_kind(name) for name in layout.names], **labels)

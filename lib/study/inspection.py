"""What a run has learned, as tidy tables: its curve, its coefficients, its mask."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from lib import concrete
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import layer_kind

Table = pd.DataFrame

SMALLEST_SHARE = 1e-3  # bins with a smaller share of the parameters say nothing and are left out


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
    means = concrete.layer_means(concrete.expected_mask(logits, layout), layout).cpu()
    rows = {"position": range(layout.layers), "layer": layout.names, "density": means}
    return Table(rows).assign(kind=[layer_kind(name) for name in layout.names], **labels)


def agreement_table(
    logits: Tensor, task_vectors: Tensor, layout: Layout, quantiles: int = 10, **labels: object
) -> Table:
    """Does a learned mask keep what the tasks agree on? Its mean probability among parameters of a kind.

    Parameters are put into bins twice: by the agreement of the tasks' signs, |sum_t sign(tau_t)| / T (0: half push one
    way and half the other; 1: all the same way), and by quantiles of the size of the merged change, |sum_t tau_t|.
    Small layers and large ones fill the bins unequally, so each bin also tells what a mask would have there that knew
    the layers' densities and nothing else.

    Args:
        logits: x [D].
        task_vectors: [T, D].
        layout: where the layers lie.
        quantiles: number of bins by size.
        labels: columns with one value.

    Returns:
        Rows (by, bin, share, probability, by_layer): `bin` is the agreement or the middle of the quantile, both in 0 to
        1, `share` that of the parameters, `probability` the mean of sigmoid(x), `by_layer` that of the layers' means.
    """
    inside = layout.inside(logits.device) > 0
    mask = concrete.expected_mask(logits, layout)
    table = Table(
        {
            "probability": mask[inside].cpu(),
            "by_layer": layout.spread(concrete.layer_means(mask, layout))[inside].cpu(),
            "sign agreement": (task_vectors.sign().sum(0).abs() / len(task_vectors))[inside].cpu(),
        }
    )
    size = task_vectors.sum(0).abs()[inside].cpu()
    rank = torch.empty_like(size).index_put_((size.argsort(stable=True),), torch.arange(len(size), dtype=size.dtype))
    table["size of the sum"] = ((rank * quantiles / len(size)).floor().clamp(max=quantiles - 1) + 0.5) / quantiles
    parts = []
    for by in ("sign agreement", "size of the sum"):
        bins = table.groupby(by)[["probability", "by_layer"]]
        found = bins.mean().assign(share=bins.size() / len(table)).rename_axis("bin").reset_index().assign(by=by)
        parts.append(found[found["share"] >= SMALLEST_SHARE])
    columns = ["by", "bin", "share", "probability", "by_layer"]
    return pd.concat(parts, ignore_index=True)[columns].assign(**labels)

"""Figures of the pre-trained model, the experts and their task vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from lib.figures.plotting import GREY, INK, PALETTE, SKY, by_kind, clean, heat_map, new_figure, percent_axis

Table = pd.DataFrame


def contact_sheet(sheet: Image.Image, tasks: list[str]) -> Figure:
    """Sample images, one row per task."""
    wide, high = sheet.size
    figure, axes = new_figure(9, 9 * high / wide + 0.3)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks((np.arange(len(tasks)) + 0.5) * high / len(tasks), [clean(task) for task in tasks])
    axes.set(xticks=[], title="A few images of every task")
    axes.tick_params(length=0)
    sns.despine(ax=axes, left=True, bottom=True)
    return figure


def pretraining(table: Table) -> Figure:
    """Contrastive loss and in-batch accuracy of the tiny CLIP's pre-training."""
    figure, (left, right) = new_figure(9, 3.2, columns=2)
    left.plot(table["step"], table["loss"], color=INK)
    left.set(xlabel="step", ylabel="contrastive loss (nats)", title="Loss of pre-training")
    right.plot(table["step"], 100 * table["accuracy"], color=INK)
    percent_axis(right, "y", "own caption ranked first (%)")
    right.set(xlabel="step", title="Images that find their caption among 128")
    return figure


def probe(table: Table) -> Figure:
    """What the pre-trained features can do: zero-shot head, class-mean head, linear probe."""
    figure, axes = new_figure(9, 3.8)
    shown = table.assign(accuracy=100 * table["accuracy"], task=table["task"].map(clean))
    sns.barplot(shown, x="task", y="accuracy", hue="head", ax=axes, palette=[PALETTE[GREY], PALETTE[SKY], INK])
    percent_axis(axes, "y", "held-out accuracy (%)")
    axes.set(xlabel="task", title="The features are good; the prompts fit badly")
    axes.tick_params(axis="x", rotation=25)
    axes.legend(title="head on frozen features", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def learning_curves(table: Table) -> Figure:
    """Training loss and validation accuracy of each expert."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    for place, (task, rows) in enumerate(table.groupby("task", sort=False)):
        gaps = rows["step"].diff(-1).abs()  # the last step may fall just behind a scored one: one mark is enough
        rows = rows[(gaps > gaps.median() / 2) | gaps.isna()]
        style = {"color": PALETTE[(0, 1, 2, 3, 4, 5, 9, 7)[place % 8]], "marker": "osD^vP*X"[place % 8]}
        style |= {"markersize": 5, "label": clean(task)}
        left.plot(rows["step"], rows["loss"], **style)
        right.plot(rows["step"], 100 * rows["validation_accuracy"], **style)
    left.set(
        xlabel="optimiser step",
        ylabel="training cross-entropy (nats)",
        yscale="log",
        title="Training loss of each expert (running mean)",
    )
    right.set(xlabel="optimiser step", title="Its accuracy on validation examples")
    percent_axis(right, "y", "validation accuracy (%)")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def cross_evaluation(table: Table) -> Figure:
    """Held-out accuracy of every expert on every task; the diagonal is each one's own task."""
    held_out = table[table["split"] == "test"]
    wide = held_out.pivot_table(index="method", columns="task", values="accuracy", sort=False) * 100
    figure, axes = new_figure(8.5, 6.2)
    heat_map(axes, wide, "accuracy (%)", fmt=".0f", vmin=0, vmax=100, cmap="viridis")
    axes.set(xlabel="evaluated on", ylabel="expert of", title="Every expert on every task")
    return figure


def norms(table: Table) -> Figure:
    """Relative size of each layer's change, |tau_l| / |theta0_l|, by depth and kind of layer."""
    figure, axes = new_figure(9.5, 3.8)
    mean = table.groupby(["layer", "position", "kind"], sort=False, as_index=False)["relative_norm"].mean()
    by_kind(axes, mean, "relative_norm")
    axes.set(ylabel="length of the task vector\n/ length of the pre-trained weights", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("How far each layer moves, mean over the experts")
    return figure


def similarity(table: Table) -> Figure:
    """Cosine similarity and sign agreement between the task vectors, each pair once."""
    figure, panels = new_figure(12, 5, columns=2)
    for axes, column, title, label, centre in (
        (panels[0], "cosine", "Cosine of two task vectors", "cosine (white: orthogonal)", 0.0),
        (panels[1], "sign_agreement", "Their signs, where both are large", "share of equal signs (white: chance)", 0.5),
    ):
        wide = table.pivot_table(index="task", columns="other", values=column, sort=False)
        wide = wide.reindex(columns=wide.index)
        wide = wide.mask(np.triu(np.ones(wide.shape, dtype=bool))).iloc[1:, :-1]
        reach = (wide - centre).abs().max().max()
        limits = {"vmin": centre - reach, "vmax": centre + reach, "cmap": "vlag"}
        heat_map(axes, wide, label, fmt=".2f", mask=wide.isna().to_numpy(), square=True, **limits)
        axes.set(xlabel="", ylabel="", title=title)
    return figure

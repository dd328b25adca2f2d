"""Figures of the pre-trained model, the experts and their task vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from lib.figures.plotting import clean, heat_map, new_figure, percent_axis

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
    left.plot(table["step"], table["loss"], color="C0")
    left.set(xlabel="step", ylabel="contrastive loss (nats)", title="Loss")
    right.plot(table["step"], 100 * table["accuracy"], color="C1")
    percent_axis(right, "y", "own caption ranked first (%)")
    right.set(xlabel="step", title="Picture finds its caption among 128")
    return figure


def probe(table: Table) -> Figure:
    """What the pre-trained features can do: zero-shot head, class-mean head, linear probe."""
    figure, axes = new_figure(9, 3.8)
    shown = table.assign(accuracy=100 * table["accuracy"], task=table["task"].map(clean))
    sns.barplot(shown, x="task", y="accuracy", hue="head", ax=axes, palette="colorblind")
    percent_axis(axes, "y", "held-out accuracy (%)")
    axes.set(xlabel="", title="Good features, badly fitting prompts")
    axes.tick_params(axis="x", rotation=25)
    axes.legend(title="head on frozen features", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def learning_curves(table: Table) -> Figure:
    """Training loss and validation accuracy of each expert."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    for number, (task, rows) in enumerate(table.groupby("task", sort=False)):
        style = {"color": f"C{number}", "marker": "osD^vP*X"[number % 8], "markersize": 4, "label": clean(task)}
        left.plot(rows["step"], rows["loss"], **style)
        right.plot(rows["step"], 100 * rows["validation_accuracy"], **style)
    left.set(xlabel="step", ylabel="training cross-entropy (nats)", yscale="log", title="Loss (running mean)")
    right.set(xlabel="step", title="Accuracy on validation examples")
    percent_axis(right, "y", "accuracy (%)")
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
    sns.scatterplot(
        mean, x="position", y="relative_norm", hue="kind", style="kind", ax=axes, palette="colorblind", s=35
    )
    axes.set(xlabel="layer, from input to output", ylabel="|task vector| / |pre-trained|", yscale="log")
    axes.set_title("How far each layer moves, mean over the experts")
    axes.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def similarity(table: Table) -> Figure:
    """Cosine similarity and sign agreement between the task vectors."""
    figure, panels = new_figure(12, 5, columns=2)
    for axes, column, title, limits in (
        (panels[0], "cosine", "Cosine similarity", (0, None)),
        (panels[1], "sign_agreement", "Sign agreement of the largest 20 %", (0.5, 1)),
    ):
        wide = table.pivot_table(index="task", columns="other", values=column, sort=False)
        wide = wide.mask(np.eye(len(wide), dtype=bool))
        heat_map(axes, wide, "", fmt=".2f", vmin=limits[0], vmax=limits[1], cmap="cividis", square=True)
        axes.set(xlabel="", ylabel="", title=title)
    return figure

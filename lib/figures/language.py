"""Figures of the language notebooks that have no counterpart among those of images."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.plotting import (
    BROWN,
    INK,
    PALETTE,
    REFERENCE,
    band,
    clean,
    method_colours,
    new_figure,
    percent_axis,
    seed_count,
)
from lib.study.evaluation import accuracies

Table = pd.DataFrame

SPACES = {"weights": "weights, B A", "adapter": "adapter, A and B"}
MODELS = {"pre-trained": "Zero-shot", "merged": "Task Arithmetic", "expert": "Experts"}  # drawn in their colours
LAYER = re.compile(r"(encoder|decoder)\.block\.\d+\.layer\.\d+\.(\w+)\.(\w+)\.(?:lora_(A|B))?")


def projection(name: str) -> str:
    """What a layer of T5 is for, read off its name: "encoder q", "cross v", "decoder q A", or "other" of no block's.

    "cross" is the decoder's look at the encoder; the last letter is the factor, where the layer is one of an adapter.
    """
    found = LAYER.search(name)
    if not found:  # norms and embeddings, which whole fine-tuned models change
        return "other"
    side, part, letter, factor = found.groups()
    return " ".join(filter(None, ("cross" if part == "EncDecAttention" else side, letter, factor)))


def adapter_spaces(table: Table) -> Figure:
    """The two task vectors of an adapter: cosines between tasks, and Task Arithmetic in both spaces."""
    figure, (left, right) = new_figure(10.5, 3.9, columns=2)
    _cosines(left, table[table["quantity"] == "cosine"])
    scores = accuracies(table[table["quantity"] == "accuracy"])
    by_seed = 100 * scores.groupby(["space", "scaling_factor", "seed"])["value"].mean()
    for (space, label), colour, line in zip(SPACES.items(), (INK, PALETTE[BROWN]), ("o-", "s--"), strict=True):
        if space not in by_seed.index.get_level_values("space"):  # experts from files may have weights alone
            continue
        means = by_seed[space].unstack("seed")
        style = {"color": colour, "marker": line[0], "ls": line[1:], "lw": 2, "label": label}
        band(right, means.mean(axis=1), means.std(axis=1, ddof=1), **style)
    percent_axis(right, "y", "mean validation accuracy (%)")
    right.set(xlabel="scaling factor", title=f"Task Arithmetic with either; {seed_count(scores)}")
    right.legend(title="task vector", frameon=False)
    return figure


def _cosines(axes: Axes, table: Table) -> None:
    """A point per pair of tasks: its cosine in one space against that in the other, mean over seeds."""
    wide = table.pivot_table(index=["task", "other"], columns="space", values="value").reindex(columns=list(SPACES))
    axes.plot(wide["weights"], wide["adapter"], "o", color=INK, alpha=0.7)
    low, high = min(wide.min().min(), 0), wide.max().max()
    axes.plot([low, high], [low, high], ls="--", **REFERENCE)
    axes.annotate("equal", (low, low), (14, 2), textcoords="offset points", color="0.4")
    axes.set(xlabel="cosine of two tasks' weights, B A", ylabel="cosine of their adapters, A and B")
    axes.set_title("How alike two tasks are, either way")


def first_token(table: Table) -> Figure:
    """The first token of the answers of the pre-trained model, the merged one and the experts: how sure, how right."""
    figure, panels = new_figure(10.5, 0.42 * table["task"].nunique() + 1.4, columns=2)
    tasks, colours = list(table["task"].unique()), method_colours(MODELS.values())
    for axes, (column, scale) in zip(panels, {"entropy": 1, "right": 100}.items(), strict=True):
        found = scale * table.groupby(["model", "task"])[column].agg(["mean", "std"])
        for number, (model, like) in enumerate(MODELS.items()):
            rows, heights = found.loc[model].loc[tasks], [-place + 0.2 * (1 - number) for place in range(len(tasks))]
            style = {"color": colours[like], "fmt": "osD"[number], "ms": 6, "capsize": 2, "label": model}
            axes.errorbar(rows["mean"], heights, xerr=rows["std"].fillna(0), **style)
        axes.set_yticks([-place for place in range(len(tasks))], [clean(task) for task in tasks])
        axes.grid(axis="x", color="0.92")
    panels[0].set(xlabel="mean entropy of the first token (nats)", title="How sure the first token is")
    percent_axis(panels[1], "x", "first token is the right one (%)")
    panels[1].set_title(f"How often it is right; {seed_count(table)}")
    panels[1].tick_params(axis="y", labelleft=False)
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure

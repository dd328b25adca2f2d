"""Figures of notebook 12: choices of the protocol, and the gradient that the first-order rule leaves out."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures.plotting import (
    BROWN,
    INK,
    PALETTE,
    REFERENCE,
    SKY,
    method_colours,
    new_figure,
    number,
    seed_count,
    shade,
)

Table = pd.DataFrame

PHASES = dict(
    zip(
        ("after the mask", "after adaptation"),
        method_colours(["Concrete Task Arithmetic", "Concrete AdaMerging (layer-wise)"]).values(),
        strict=True,
    )
)
LARGE = 3.0  # points: effects beyond it would flatten all others
CHOICES = {
    "inner_gradient_at": "inner gradient at coefficients",
    "tie": "one batch for both levels",
    "l2": "weight decay of the logits",
    "outer_sample": "mask of the upper level",
    "moments": "moments of the inner optimiser",
}


def differences(table: Table) -> Table:
    """What changing one choice does to accuracy, in points, within each seed: mean and std over seeds.

    Args:
        table: columns choice, value, phase, task, accuracy (0 to 1), density, seed; the unchanged protocol is choice
            "base".

    Returns:
        Columns choice, value, phase, difference, std (0 with one seed), density, in order of appearance.
    """
    keys = ["choice", "value", "phase", "seed"]
    means = table.groupby(keys, sort=False)[["accuracy", "density"]].mean().reset_index()
    base = means[means["choice"] == "base"].set_index(["phase", "seed"])["accuracy"]
    here = pd.MultiIndex.from_frame(means[["phase", "seed"]])
    points = means.assign(difference=100 * (means["accuracy"].to_numpy() - base.reindex(here).to_numpy()))
    grouped = points.groupby(["choice", "value", "phase"], sort=False)
    means = grouped[["difference", "density"]].mean()
    return means.assign(std=grouped["difference"].std(ddof=1).fillna(0)).reset_index()


def protocol(table: Table) -> Figure:
    """Difference to the base protocol when one choice is changed, sorted; large effects have a panel of their own.

    Marks are means over seeds of the difference within a seed, bars one standard deviation.
    """
    rows = differences(table)
    rows = rows[rows["choice"] != "base"].copy()
    rows["name"] = [_named(choice, str(value)) for choice, value in zip(rows["choice"], rows["value"], strict=True)]
    wide = rows.pivot_table(index="name", columns="phase", values="difference").sort_values(next(iter(PHASES)))
    large = wide.abs().max(axis=1) > LARGE
    groups = [wide[part] for part in (~large, large) if part.any()]
    sizes = [len(group) + 0.9 for group in groups]
    figure, panels = new_figure(8, 0.34 * sum(sizes) + 1.7, rows=len(groups))
    panels = np.atleast_1d(panels)
    panels[0].get_gridspec().set_height_ratios(sizes)
    found = rows.set_index(["phase", "name"])
    for axes, group in zip(panels, groups, strict=True):
        for place, (phase, colour) in enumerate(PHASES.items()):
            own, heights = found.loc[phase].loc[group.index], np.arange(len(group)) + 0.13 - 0.26 * place
            style = {"color": colour, "marker": "os"[place], "label": phase, "ms": 6, "capsize": 3, "ls": ""}
            axes.errorbar(own["difference"], heights, xerr=own["std"], **style)
        axes.axvline(0, **REFERENCE)
        axes.set_yticks(range(len(group)), group.index)
        axes.set_ylim(-0.6, len(group) - 0.4)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    panels[-1].set_xlabel("change of held-out accuracy (points)")
    means = 100 * table[table["choice"] == "base"].groupby("phase")["accuracy"].mean()
    told = ", ".join(f"{means[phase]:.1f} % {phase}" for phase in PHASES)
    figure.suptitle(f"What one changed choice does; unchanged: {told}", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def protocol_taught(table: Table) -> Figure:
    """The same with the experts as teachers: `protocol`'s figure of another objective."""
    return protocol(table)


def _named(choice: str, value: str) -> str:
    """A changed choice in words."""
    if choice == "mask":
        return "no mask, as many gradients"
    value = number(float(value)) if value.lstrip("-").isdigit() else value.replace("x ", "times ")
    return f"{CHOICES.get(choice, choice.replace('_', ' '))}: {value}"


def hypergradient(table: Table) -> Figure:
    """The exact gradient of the mask beside the first-order one: cosine, and size of what is left out, over steps.

    Thick lines are medians over seeds, thin ones single seeds: now and then a coefficient whose gradient
    is about zero makes the derivative of Adam's step, and so the left-out term, enormous.
    """
    figure, panels = new_figure(10.5, 3.6, columns=2)
    colours = cycle((PALETTE[BROWN], shade(BROWN, 0.4), INK, PALETTE[SKY]))
    for place, (name, rows) in enumerate(table.groupby("inner_optimiser", sort=False)):
        look = {"color": next(colours), "ls": ("-", "--", "-.", ":")[place % 4], "marker": "osD^v"[place % 5]}
        for axes, column in zip(panels, ("cosine", "relative_size"), strict=True):
            by_step = rows.pivot_table(index="step", columns="seed", values=column)
            axes.plot(by_step.index, by_step.median(axis=1), label=name, ms=6, lw=2, **look)
            if by_step.shape[1] > 1:
                axes.plot(by_step.index, by_step, lw=0.8, alpha=0.6, color=look["color"])
    panels[0].set(ylabel="cosine of first-order and exact gradient", title="Direction of the gradient of the logits")
    panels[1].set(
        ylabel="size relative to the first-order gradient",
        yscale="log",
        title=f"Size of what is left out; {seed_count(table)}",
    )
    panels[1].yaxis.set_major_formatter("{x:g}")
    for axes in panels:
        axes.set_xlabel("step of the inner optimiser")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].legend(title="inner optimiser", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure

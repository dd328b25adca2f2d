"""Figures of the Concrete mask: its distribution, a planted one, what a learned one looks like and does to experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.figures.plotting import band, clean, new_figure, percent_axis

Table = pd.DataFrame


def relaxation() -> Figure:
    """The Concrete relaxation: the mask as a function of its noise at several temperatures (the paper's Figure 2)."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    u = np.linspace(1e-4, 1 - 1e-4, 1500)
    noise = np.log(u) - np.log1p(-u)
    grid = np.linspace(0.002, 0.998, 800)
    for number, temperature in enumerate((0.1, 0.5, 1.0, 2.0)):
        style = {"color": f"C{number}", "label": f"{temperature:g}", "ls": ("-", "--", "-.", ":")[number]}
        left.plot(u, 1 / (1 + np.exp(-noise / temperature)), **style)
        # change of variables: density of m = sigmoid(noise / temperature) with logits 0
        density = temperature * (grid * (1 - grid)) ** (-temperature - 1)
        density /= (grid**-temperature + (1 - grid) ** -temperature) ** 2
        right.plot(grid, density, **style)
    left.set(xlabel="uniform noise u", ylabel="mask m", title="One sample at logit 0")
    right.set(xlabel="mask m", ylabel="probability density", ylim=(0, 4), title="Distribution of m at logit 0")
    right.legend(title="temperature", frameon=False, loc="upper center", ncols=2)
    return figure


def mask_samples(table: Table) -> Figure:
    """Histograms of mask samples at several temperatures, with the density that theory gives (logit 1)."""
    temperatures = sorted(table["temperature"].unique(), reverse=True)
    figure, panels = new_figure(2.3 * len(temperatures), 2.7, columns=len(temperatures))
    for number, (axes, temperature) in enumerate(zip(panels, temperatures, strict=True)):
        rows = table[table["temperature"] == temperature]
        width = 1 / len(rows)
        axes.bar(rows["mask"], rows["share"], width=width, color=f"C{number}", alpha=0.55, label="samples")
        axes.plot(rows["mask"], rows["theory"], color="0.15", lw=1.2, label="theory")
        axes.set(xlabel="mask m", title=f"temperature {temperature:g}", xlim=(0, 1))
    panels[0].set_ylabel(f"share of samples per bin of {width:g}")
    panels[1].legend(frameon=False, loc="upper left")
    return figure


def convergence(table: Table) -> Figure:
    """Distance between the Concrete and the Bernoulli distribution against the temperature."""
    figure, axes = new_figure(7, 3.8)
    axes.plot(table["temperature"], table["total_variation"], "o", color="C0", label="total variation, measured")
    axes.plot(table["temperature"], table["theory"], color="C0", lw=1, label="total variation, theory")
    axes.plot(table["temperature"], table["wasserstein"], "s--", color="C1", label="Wasserstein-1, measured")
    axes.plot(table["temperature"], table["ks_to_theory"], "^:", color="C2", label="KS distance of samples to theory")
    axes.axvline(0.5, color="0.6", lw=1, ls="--")
    axes.annotate("paper's 0.5", (0.5, axes.get_ylim()[0]), (4, 6), textcoords="offset points", color="0.4")
    axes.set(xscale="log", yscale="log", xlabel="temperature", ylabel="distance")
    axes.set_title("The relaxed mask becomes a coin flip as the temperature falls")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def planted(table: Table) -> Figure:
    """Precision and recall of the learned mask against the planted one, and what the tasks lose, over steps."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    learned = table[table["mask"] == "learned"]
    for number, column in enumerate(("precision", "recall")):
        by_step = learned.groupby("step")[column]
        style = {"color": f"C{number}", "ls": ("-", "--")[number], "label": column}
        band(left, 100 * by_step.mean(), 100 * by_step.std(ddof=1), **style)
    percent_axis(left, "y", "share of coordinates (%)")
    left.set(xlabel="step", title="The learned mask finds the planted subspace")
    left.legend(frameon=False, loc="lower right")
    scored = table.dropna(subset="loss")
    final = scored.groupby(["mask", "seed"], sort=False)["loss"].last().groupby("mask", sort=False)
    mean, spread = final.mean().sort_values(ascending=False), final.std(ddof=1)
    for height, name in enumerate(mean.index):
        right.errorbar(mean[name], height, xerr=spread[name], fmt="o", ms=8, capsize=4, color=f"C{height}")
        right.annotate(f"{mean[name]:.2g}", (mean[name], height), (0, 8), textcoords="offset points", ha="center")
    right.set_yticks(range(len(mean)), mean.index)
    right.set_ylim(-0.5, len(mean) - 0.4)
    right.set(xscale="log", xlabel="loss per parameter, mean over tasks", title="What merging costs")
    return figure


def density(table: Table) -> Figure:
    """Expected share of ones of the learned mask, per layer: mean over seeds, bars for its standard deviation."""
    figure, axes = new_figure(9.5, 3.6)
    layers = table.groupby(["position", "kind"], as_index=False)["density"].agg(["mean", "std"])
    axes.errorbar(layers["position"], layers["mean"], yerr=layers["std"].fillna(0), fmt="none", ecolor="0.7", lw=1)
    sns.scatterplot(layers, x="position", y="mean", hue="kind", style="kind", ax=axes, palette="colorblind", s=35)
    axes.axhline(0.5, color="0.6", lw=1, ls="--")
    axes.set(xlabel="layer, from input to output", ylabel="mean of sigmoid(logits)")
    axes.set_title("Which layers the learned mask keeps (it starts at 0.5)")
    axes.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def mask_agreement(table: Table) -> Figure:
    """Mean probability of the learned mask by sign agreement of the task vectors, and by the size of their sum."""
    figure, panels = new_figure(10, 3.7, columns=2)
    labels = {
        "sign agreement": "agreement of signs, |sum of signs| / T",
        "size of the sum": "quantile of |sum of task vectors|",
    }
    for axes, (by, label) in zip(panels, labels.items(), strict=True):
        rows = table[table["by"] == by]
        for column, style, name in (("probability", "o-", "learned mask"), ("by_layer", "s--", "its layers' means")):
            found = rows.groupby("bin")[column].agg(["mean", "std"])
            colour = "C3" if column == "probability" else "0.5"
            axes.errorbar(found.index, found["mean"], yerr=found["std"].fillna(0), fmt=style, ms=5, capsize=3,
                          color=colour, label=name)  # fmt: skip
        overall = (rows["probability"] * rows["share"]).sum() / rows["share"].sum()
        axes.axhline(overall, color="0.6", lw=1, ls=":", label="over all parameters")
        axes.set(xlabel=label, xlim=(-0.05, 1.05))
    panels[0].set(ylabel="mean of sigmoid(logits)", title="Where tasks agree")
    panels[1].set_title("Where the merged change is large")
    low, high = (pick(axes.get_ylim()[end] for axes in panels) for end, pick in enumerate((min, max)))
    for axes in panels:
        axes.set_ylim(low, high)
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def masked_experts(table: Table) -> Figure:
    """Accuracy of every expert on its own task, whole and inside masks; bars: standard deviation over seeds."""
    variants, tasks = list(table["method"].unique()), [*table["task"].unique(), "mean"]
    means = table.groupby(["method", "seed"], as_index=False)["accuracy"].mean().assign(task="mean")
    found = 100 * pd.concat([table, means]).groupby(["method", "task"])["accuracy"].agg(["mean", "std"])
    figure, axes = new_figure(8.5, 0.5 * len(tasks) + 1.2)
    for number, variant in enumerate(variants):
        rows = found.loc[variant].loc[tasks]
        height = [-place - 0.13 * (number - (len(variants) - 1) / 2) for place in range(len(tasks))]
        axes.errorbar(rows["mean"], height, xerr=rows["std"].fillna(0), fmt="oDdsv^P"[number % 7], ms=6, capsize=2,
                      color=f"C{number}", label=variant)  # fmt: skip
    axes.axhline(1.5 - len(tasks), color="0.8", lw=1)
    axes.set_yticks([-place for place in range(len(tasks))], [clean(task) for task in tasks])
    percent_axis(axes, "x", "held-out accuracy on its own task (%)")
    axes.set_title("Experts inside the shared mask")
    axes.grid(axis="x", color="0.92")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure

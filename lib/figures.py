"""Every figure of the study, drawn from saved tables alone: `python -m lib.figures --profile tiny`.

A notebook shows a figure by the same function that this command calls, so what is committed below `figures/` is
what the notebook shows. Colours are seaborn's colour-blind-safe palette; heat maps use perceptually uniform maps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from lib.plotting import ORDER, clean, heat_map, method_colours, new_figure, percent_axis
from lib.store import atomic_path, load_table
from lib.study import ROOT

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
    right.set(xlabel="step", title="Accuracy on validation images")
    percent_axis(right, "y", "accuracy (%)")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def cross_evaluation(table: Table) -> Figure:
    """Held-out accuracy of every expert on every task; the diagonal is each one's own task."""
    held_out = table[table["split"] == "test"]
    wide = held_out.pivot_table(index="method", columns="task", values="accuracy", sort=False) * 100
    figure, axes = new_figure(8.5, 6.2)
    heat_map(axes, wide, "accuracy (%)", fmt=".0f", vmin=0, vmax=100, cmap="viridis")
    axes.set(xlabel="evaluated on", ylabel="expert of", title="Experts are good at their own task only")
    return figure


def norms(table: Table) -> Figure:
    """Relative size of each layer's change, |tau_l| / |theta0_l|, by depth and kind of layer."""
    figure, axes = new_figure(9.5, 3.8)
    mean = table.groupby(["layer", "position", "kind"], sort=False, as_index=False)["relative_norm"].mean()
    sns.scatterplot(
        mean, x="position", y="relative_norm", hue="kind", style="kind", ax=axes, palette="colorblind", s=35
    )
    axes.set(xlabel="layer, from the image to the embedding", ylabel="|task vector| / |pre-trained|", yscale="log")
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


def scaling(table: Table) -> Figure:
    """Validation accuracy against the scaling factor (the paper's Figure 5, our version)."""
    figure, axes = new_figure(7, 3.8)
    mean = table.groupby(["method", "scaling_factor"], sort=False, as_index=False)["accuracy"].mean()
    for number, (method, rows) in enumerate(mean.groupby("method", sort=False)):
        axes.plot(rows["scaling_factor"], 100 * rows["accuracy"], color=f"C{number}", marker="os"[number], label=method)
        best = rows.loc[rows["accuracy"].idxmax()]
        axes.plot(best["scaling_factor"], 100 * best["accuracy"], "o", ms=13, mfc="none", mec=f"C{number}")
    axes.axvline(0.3, color="0.6", lw=1, ls="--")
    axes.annotate("paper's 0.3", (0.3, axes.get_ylim()[0]), (4, 6), textcoords="offset points", color="0.4")
    percent_axis(axes, "y", "mean validation accuracy (%)")
    axes.set(xlabel="scaling factor", title="The one hyperparameter of the baselines")
    axes.legend(frameon=False)
    return figure


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


def mask_curve(table: Table) -> Figure:
    """Entropy while a mask is learned, per learned mask."""
    return _curves(table, "Learning the mask")


def adaptation_curve(table: Table) -> Figure:
    """Entropy during test-time adaptation, per method."""
    return _curves(table, "Test-time adaptation")


def _curves(table: Table, title: str) -> Figure:
    figure, axes = new_figure(7.5, 3.6)
    colours = method_colours(table["method"].unique())
    for method, rows in table.groupby("method", sort=False):
        smooth = rows["loss"].rolling(10, min_periods=1).mean()
        axes.plot(rows["step"], rows["loss"], color=colours[method], alpha=0.2, lw=0.8)
        axes.plot(rows["step"], smooth, color=colours[method], label=method)
    axes.set(xlabel="step", ylabel="prediction entropy,\nsummed over tasks (nats)", title=title)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def density(table: Table) -> Figure:
    """Expected share of ones of the learned mask, per layer."""
    figure, axes = new_figure(9.5, 3.6)
    sns.scatterplot(table, x="position", y="density", hue="kind", style="kind", ax=axes, palette="colorblind", s=35)
    axes.axhline(0.5, color="0.6", lw=1, ls="--")
    axes.set(xlabel="layer, from the image to the embedding", ylabel="mean of sigmoid(logits)")
    axes.set_title("Which layers the learned mask keeps (it starts at 0.5)")
    axes.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def coefficients(table: Table) -> Figure:
    """Layer-wise merging coefficients after adaptation, tasks by layers, one panel per method."""
    methods = list(table["method"].unique())
    figure, panels = new_figure(11, 2.5 * len(methods) + 0.4, rows=len(methods))
    for axes, method in zip(np.atleast_1d(panels), methods, strict=True):
        rows = table[table["method"] == method]
        wide = rows.pivot_table(index="task", columns="position", values="coefficient", sort=False)
        heat_map(axes, wide, "coefficient", cmap="vlag", center=0.3)
        axes.set(xlabel="layer, from the image to the embedding", ylabel="", title=method)
        axes.set_xticks(np.arange(0, wide.shape[1], 10) + 0.5, np.arange(0, wide.shape[1], 10), rotation=0)
    return figure


def results(table: Table) -> Figure:
    """Held-out accuracy of every method: a faint dot per task, a large one for the mean over tasks and seeds."""
    held_out = table[table["split"] == "test"]
    present = [method for method in ORDER if method in set(held_out["method"])]
    figure, axes = new_figure(8, 0.42 * len(present) + 1.3)
    colours = method_colours(present)
    for height, method in enumerate(reversed(present)):
        rows = held_out[held_out["method"] == method]
        by_task = 100 * rows.groupby("task")["accuracy"].mean()
        by_seed = 100 * rows.groupby("seed")["accuracy"].mean()
        axes.plot(by_task, [height] * len(by_task), "|", color=colours[method], ms=9, alpha=0.6)
        axes.errorbar(by_seed.mean(), height, xerr=by_seed.std(ddof=1) if len(by_seed) > 1 else None, fmt="o", ms=8,
                      capsize=4, color=colours[method])  # fmt: skip
        axes.annotate(f"{by_seed.mean():.1f}", (by_seed.mean(), height), (0, 8), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(present)), list(reversed(present)))
    percent_axis(axes, "x", "held-out accuracy (%)")
    seeds = held_out["seed"].nunique()
    axes.set_title(f"Mean over tasks (dots), single tasks (ticks), {seeds} seed{'s' if seeds > 1 else ''}")
    axes.grid(axis="x", color="0.92")
    return figure


FIGURES: dict[str, Callable[[Table], Figure]] = {
    drawn.__name__: drawn
    for drawn in (
        pretraining, probe, learning_curves, cross_evaluation, norms, similarity, scaling, mask_curve, density,
        adaptation_curve, coefficients, results,
    )
}  # fmt: skip


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically and without a date, so that an unchanged figure is an unchanged file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return path


def draw_all(profile: str, root: Path = ROOT, seed: int = 0) -> list[Path]:
    """Draw every figure whose table is there, below `figures/<profile>/` (other seeds: a folder of their own in it).

    Raises:
        FileNotFoundError: if the profile has no saved tables; names those that have.
    """
    results, folder = root / "data" / "results", root / "figures" / profile
    tables = results / profile / f"seed{seed}"
    folder = folder / f"seed{seed}" if seed else folder
    if not list(tables.glob("*.csv")):
        there = ", ".join(sorted(f"{path.parent.name} ({path.name})" for path in results.glob("*/seed*"))) or "none"
        raise FileNotFoundError(f"no saved tables of '{profile}', seed {seed}: run `make study` first; saved: {there}")
    written = [save(relaxation(), folder / "relaxation.png")]
    if (tables / "contact_sheet.png").is_file():
        rows = list(load_table(tables / "learning_curves.csv")["task"].unique())
        sheet = Image.open(tables / "contact_sheet.png")
        written.append(save(contact_sheet(sheet, rows), folder / "contact_sheet.png"))
    for name, drawn in FIGURES.items():
        if (tables / f"{name}.csv").is_file():
            written.append(save(drawn(load_table(tables / f"{name}.csv")), folder / f"{name}.png"))
    return written


def main(arguments: list[str] | None = None) -> int:
    """Command line: draw all figures of a profile from its saved tables."""
    parser = argparse.ArgumentParser(description="Redraw every figure from saved tables; no model is run.")
    parser.add_argument("--profile", default="tiny", help="a folder of data/results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    matplotlib.use("agg")
    try:
        written = draw_all(options.profile, seed=options.seed)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Drew {len(written)} figures into {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

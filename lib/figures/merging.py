"""Figures of merged models: scaling factors, coefficients, scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lib.figures.curves import colours_of
from lib.figures.plotting import (
    REFERENCE,
    clean,
    heat_map,
    in_order,
    method_colours,
    method_rows,
    new_figure,
    number,
    percent_axis,
    rows_legend,
    same_limits,
    seed_count,
    spread,
)
from lib.files.lineages import one_lineage
from lib.study.evaluation import accuracies

Table = pd.DataFrame

START = 0.3  # where coefficients start
# The headline pairs: a method, and the same with a learned mask.
PAIRS = tuple(
    (base + ending, masked + ending)
    for ending in ("", ", IM", ", experts", " on TSV-M, experts")
    for base, masked in (
        ("Task Arithmetic", "Concrete Task Arithmetic"),
        ("AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)"),
    )
)


def scaling(table: Table) -> Figure:
    """Validation accuracy against the scaling factor (the paper's Figure 5, our version); the best factor is ringed."""
    figure, axes = new_figure(7.5, 4)
    keys = ["method", "scaling_factor"]
    mean = accuracies(table).groupby(keys, sort=False, as_index=False)["accuracy"].mean()
    colours = method_colours(mean["method"].unique())
    for place, (method, rows) in enumerate(mean.groupby("method", sort=False)):
        style = {"color": colours[method], "marker": "osD^v"[place % 5], "label": method}
        axes.plot(rows["scaling_factor"], 100 * rows["accuracy"], **style)
        best = rows.loc[rows["accuracy"].idxmax()]
        ring = {"ms": 14, "mfc": "none", "mec": colours[method], "mew": 1.5}
        axes.plot(best["scaling_factor"], 100 * best["accuracy"], "o", **ring)
    axes.axvline(0.3, ls="--", **REFERENCE)
    axes.annotate("paper's 0.3", (0.3, 0), (4, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
                  color="0.4")  # fmt: skip
    percent_axis(axes, "y", "mean validation accuracy (%)")
    axes.set(xlabel="scaling factor", xscale="log", title=f"Which scaling factor is best (ringed); {seed_count(table)}")
    ticks = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3)
    low, high = axes.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def baselines(table: Table) -> Figure:
    """Held-out accuracy of everything that merges without training, against zero-shot and the experts."""
    return results(table)


def coefficients(table: Table) -> Figure:
    """Merging coefficients after adaptation, mean over seeds: tasks by layers, or a dot where layers share them."""
    methods = list(table["method"].unique())
    means = table.groupby(["method", "task", "position"])["coefficient"].mean()
    scale = {"cmap": "vlag", "center": START, "vmin": means.min(), "vmax": means.max()}  # one for all panels
    figure, panels = new_figure(11, 2.5 * len(methods) + 0.4, rows=len(methods))
    for axes, method in zip(np.atleast_1d(panels), methods, strict=True):
        rows = table[table["method"] == method]
        wide = rows.pivot_table(index="task", columns="position", values="coefficient", sort=False)
        if wide.shape[1] > 1 and np.ptp(wide, axis=1).max() < 1e-9:
            axes.plot(wide.iloc[:, 0], range(len(wide)), "o", color=colours_of([method])[method], ms=7)
            axes.axvline(START, ls="--", **REFERENCE)
            axes.set_yticks(range(len(wide)), [clean(task) for task in wide.index])
            axes.set(xlabel=f"coefficient of all layers (dashed: its start, {START})", title=method)
            axes.invert_yaxis()
            continue
        heat_map(axes, wide, f"coefficient\n(white: its start, {START})", **scale)
        axes.set(xlabel="parameter tensor, from input to output", ylabel="", title=method)
        axes.set_xticks(np.arange(0, wide.shape[1], 10) + 0.5, np.arange(0, wide.shape[1], 10), rotation=0)
    return figure


def concrete_coefficients(table: Table) -> Figure:
    """Layer-wise coefficients inside the learned mask, mean over seeds, beside those of AdaMerging without a mask."""
    return coefficients(table)


def adaptation(table: Table) -> Figure:
    """What adapted coefficients gain over Task Arithmetic, per method and task."""
    return _gains(table, "Task Arithmetic")


def concrete_task_arithmetic(table: Table) -> Figure:
    """What a learned mask gains over Task Arithmetic, with the controls."""
    return _gains(table, "Task Arithmetic")


def concrete_adamerging(table: Table) -> Figure:
    """What adapting inside a mask gains over layer-wise AdaMerging without one, with the control."""
    return _gains(table, "AdaMerging (layer-wise)")


def _gains(table: Table, base: str) -> Figure:
    """Held-out accuracy minus that of a base method, within each seed; a row far off the others' scale is but told."""
    one_lineage(table)
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index=["seed", "task"], columns="method", values="accuracy", sort=False)
    difference = wide.drop(columns=base).sub(wide[base], axis=0)
    figure, axes = new_figure(8.5, 0.55 * difference.shape[1] + 1.7)
    method_rows(axes, difference, colours_of(difference.columns), "+.1f")
    sizes = difference.mean().abs().sort_values()
    if len(sizes) > 2 and sizes.iloc[-1] > 5 * sizes.iloc[-2]:
        near = difference.drop(columns=sizes.index[-1]).groupby("task").mean()
        low, high = min(near.min().min(), 0), max(near.max().max(), 0)
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        _off_scale(axes, difference, sizes.index[-1])
    axes.axvline(0, ls="--", **REFERENCE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"held-out accuracy minus that of {base} (points)")
    axes.set_title(f"Change against {base}; {seed_count(held_out)}")
    rows_legend(figure, held_out["seed"].nunique() > 1)
    return figure


def _off_scale(axes: Axes, difference: Table, method: str) -> None:
    """Say at the edge of the panel what lies beyond it."""
    by_seed = difference[method].groupby("seed").mean()
    height = difference.shape[1] - 1 - list(difference).index(method)
    next(text for text in axes.texts if text.xy[1] == height).remove()
    mean, deviation = by_seed.mean(), f" ± {spread(by_seed):.1f}" if len(by_seed) > 1 else ""
    words = f"{number(mean, '+.1f')}{deviation}, off the scale"
    place = {"xy": (0.01 if mean < 0 else 0.99, height), "xycoords": ("axes fraction", "data"), "va": "center"}
    axes.annotate(f"◂ {words}" if mean < 0 else f"{words} ▸", ha="left" if mean < 0 else "right", **place)


def by_task(table: Table) -> Figure:
    """What the mask changes task by task, a panel per pair of methods: from a ring without it to a dot with it.

    Args:
        table: scores with the columns method, task, split, seed, accuracy (0 to 1).

    Raises:
        ValueError: if no pair of `PAIRS` is in the table, or it mixes experts of several lineages.
    """
    one_lineage(table)
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index="task", columns="method", values="accuracy", sort=False)
    pairs = [pair for pair in PAIRS if set(pair) <= set(wide)]
    if not pairs:
        raise ValueError(f"the table has none of the pairs {PAIRS}: give one with a method and its masked version")
    columns = min(len(pairs), 2)
    rows = -(-len(pairs) // columns)
    figure, grid = new_figure(4.9 * columns + 1, (0.33 * len(wide) + 1.5) * rows, rows, columns)
    panels = list(np.ravel(grid))
    for axes, (base, masked) in zip(panels, pairs, strict=False):
        _dumbbells(axes, wide[[base, masked]], colours_of([masked])[masked])
        axes.set_title(f"{masked}\nagainst {base}", fontsize=10)
    for axes in panels[len(pairs) :]:
        axes.set_axis_off()
    same_limits(panels[: len(pairs)], "x")
    figure.suptitle(f"What the mask changes, task by task (ring: without, dot: with); {seed_count(held_out)}")
    return figure


def _dumbbells(axes: Axes, wide: Table, colour: object) -> None:
    """A row per task, the largest gain on top, and their mean below; the gain in points on the right."""
    gain = (wide.iloc[:, 1] - wide.iloc[:, 0]).sort_values(ascending=False)
    rows = pd.concat([wide.loc[gain.index], wide.mean().to_frame("mean").T])
    for height, (_, (before, after)) in enumerate(rows[::-1].iterrows()):
        axes.plot([before, after], [height] * 2, color="0.75", lw=3, zorder=1, solid_capstyle="butt")
        axes.plot(before, height, "o", mfc="white", mec=colour, ms=7)
        axes.plot(after, height, "o", color=colour, ms=7)
        axes.annotate(number(after - before, "+.1f"), (1.02, height), xycoords=("axes fraction", "data"), va="center")
    axes.axhline(0.5, **REFERENCE)
    up, down = int((gain > 0).sum()), int((gain < 0).sum())
    axes.set_yticks(range(len(rows)), [clean(task) for task in rows.index[::-1]])
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    percent_axis(axes, "x", f"held-out accuracy (%); {up} tasks up, {down} down")


def results(table: Table) -> Figure:
    """Held-out accuracy of every method: a tick per task, a dot for the mean over tasks and seeds.

    A ring is the same method with its scaling factor chosen on validation images.

    Raises:
        ValueError: if the table mixes experts of several lineages.
    """
    one_lineage(table)
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index=["seed", "task"], columns="method", values="accuracy", sort=False)
    present = in_order(method for method in wide if not method.endswith(" (tuned)"))
    figure, axes = new_figure(8, 0.42 * len(present) + 1.7)
    colours = method_colours(present)
    method_rows(axes, wide[present], colours)
    tuned = [method for method in present if f"{method} (tuned)" in wide]
    for method in tuned:
        ring = {"ms": 11, "mfc": "none", "mec": colours[method], "mew": 1.5}
        axes.plot(wide[f"{method} (tuned)"].mean(), len(present) - 1 - present.index(method), "o", **ring)
    percent_axis(axes, "x", "held-out accuracy (%)")
    axes.set_title(f"Held-out accuracy of every method; {seed_count(held_out)}")
    rows_legend(figure, held_out["seed"].nunique() > 1, tuned=bool(tuned))
    return figure


def which_method(table: Table) -> Figure:
    """Every method by what it may use, its share of the way from zero-shot to the experts, and its gradients (size).

    Hollow marks keep something of each task, and so must be told the task of every input.

    Args:
        table: columns uses, method, keeps, gradients, seed, share (0 to 1); of `lib.study.needs.which_method`.
    """
    groups = [(uses, rows) for uses, rows in table.groupby("uses", sort=False)]
    counts = [rows["method"].nunique() for _, rows in groups]
    figure, panels = new_figure(9.5, 0.3 * sum(counts) + 0.5 * len(groups) + 1.4, rows=len(groups))
    panels = np.atleast_1d(panels)
    panels[0].get_gridspec().set_height_ratios([count + 0.6 for count in counts])
    low, high = 100 * table["share"].min(), max(100, 100 * table["share"].max())
    for axes, (uses, rows) in zip(panels, groups, strict=True):
        _shares(axes, rows)
        axes.set_title(uses[0].upper() + uses[1:], loc="left", fontsize=11)
        axes.set_xlim(low - 3, high + 3)
        axes.axvline(100, ls="--", **REFERENCE)
        percent_axis(axes, "x", "")
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("share of the gap between zero-shot and experts (%)")
    figure.suptitle(f"What each method may use, and how much of the gap it closes; {seed_count(table)}")
    marks = [(f"{steps:,} gradients", "0.5", _size(steps)) for steps in (100, 1000, 10000)]
    marks += [("keeps something per task", "white", _size(0)), ("without gradients", "0.5", _size(0))]
    handles = [Line2D([], [], ls="", marker="o", color="0.5", mfc=face, ms=size) for _, face, size in marks]
    figure.legend(handles, [name for name, _, _ in marks], frameon=False, loc="outside lower center", ncols=3)
    return figure


def _shares(axes: Axes, rows: Table) -> None:
    """A row per method, the best on top."""
    by_seed = 100 * rows.groupby(["method", "seed"])["share"].mean()
    order = list(by_seed.groupby("method").mean().sort_values().index)
    colours = method_colours(order)
    told = rows.drop_duplicates("method").set_index("method")
    for height, method in enumerate(order):
        share, colour = by_seed[method], colours[method]
        face = colour if told.loc[method, "keeps"] == "nothing" else "white"
        style = {"color": colour, "mfc": face, "ms": _size(told.loc[method, "gradients"])}
        axes.errorbar(share.mean(), height, xerr=spread(share), fmt="o", capsize=3, **style)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _size(gradients: int) -> float:
    """The diameter of a mark, in points."""
    return 5 + 2 * np.log10(1 + gradients / 10)

"""The look of the figures: sizes, palette, axes, names as printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from lib.study.evaluation import accuracies

if TYPE_CHECKING:
    from torch import Tensor

Colour = tuple[float, ...]

# The colour-blind-safe palette. A hue stands for a kind of method; objectives and kinds of masks have their own.
PALETTE = tuple(sns.color_palette("colorblind", 10))
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GREY, YELLOW, SKY = 0, 1, 2, 3, 4, 5, 7, 8, 9
INK = (0.2, 0.2, 0.2)
OBJECTIVE_NAMES = {
    "entropy": "entropy",
    "information-maximisation": "information maximisation",
    "expert-kl": "KL to the experts",
}
OBJECTIVE_COLOURS: dict[str, Colour] = {
    "entropy": PALETTE[SKY],
    "information-maximisation": PALETTE[BROWN],
    "expert-kl": INK,
}
KINDS = ((BLUE, 0.0), (YELLOW, -0.3), (GREEN, 0.0), (RED, 0.0), (SKY, 0.0), (PURPLE, 0.0), (GREY, -0.2))  # of layers
TEMPERATURES = plt.Normalize(-1.3, 0.6)  # of log10: temperatures have an order, so their colours have too
REFERENCE = {"color": "0.6", "lw": 1, "zorder": 0}  # every line to compare with

# Methods by the kind of idea, each kind from the simplest to the strongest: the order of tables and figures, and each
# one's own colour: a hue, and how much darker (below 0) or lighter than it.
COLOURS: dict[str, tuple[int, float]] = {
    "Zero-shot": (GREY, 0.2),
    "Weight averaging": (BLUE, -0.55),
    "Task Arithmetic": (BLUE, 0.0),
    "Ties-Merging": (BLUE, 0.5),
    "Ties-Merging (mean rule)": (BLUE, 0.6),
    "DARE": (BLUE, 0.2),
    "Consensus Task Arithmetic": (BLUE, -0.2),
    "Model Breadcrumbs": (BLUE, 0.35),
    "Model Stock": (BLUE, -0.35),
    "Iso-C": (YELLOW, -0.15),
    "Iso-CTS": (YELLOW, -0.25),
    "TSV-M": (YELLOW, -0.45),
    "TSV-M (kernels as matrices)": (YELLOW, -0.6),
    "WUDI-Merging": (YELLOW, -0.7),
    "Fisher merging": (ORANGE, 0.45),
    "RegMean": (ORANGE, 0.2),
    "RegMean++": (ORANGE, 0.0),
    "FeatCal": (ORANGE, -0.25),
    "Concrete Task Arithmetic": (RED, 0.0),
    "AdaMerging (task-wise)": (PURPLE, 0.35),
    "AdaMerging (layer-wise)": (PURPLE, -0.15),
    "Concrete AdaMerging (task-wise)": (GREEN, 0.5),
    "Concrete AdaMerging (layer-wise)": (GREEN, 0.0),
    "AdaMerging (layer-wise), IM": (PURPLE, -0.3),
    "Concrete AdaMerging (layer-wise), IM": (GREEN, -0.3),
    "TALL masks": (GREY, 0.0),
    "EMR-Merging": (GREY, -0.2),
    "SyMerge": (GREY, -0.32),
    "Experts": (GREY, -0.45),
}
ORDER = tuple(COLOURS)
DATASETS = {
    "sun397": "SUN397", "stanford_cars": "Stanford Cars", "resisc45": "RESISC45", "eurosat": "EuroSAT", "svhn": "SVHN",
    "gtsrb": "GTSRB", "mnist": "MNIST", "dtd": "DTD", "cifar10": "CIFAR-10",
}  # fmt: skip
MINUS = "\N{MINUS SIGN}"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "font.size": 9.5,
    "figure.constrained_layout.use": True,
}


PLATE = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.7}  # under a number on other marks


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Axes | np.ndarray]:
    """A figure in the study's style, in inches; global settings are left alone."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height))
    plt.close(figure)  # a notebook shows what a cell returns; an open figure would be shown twice
    return figure, axes


def montage(images: Sequence[Tensor], columns: int) -> Image.Image:
    """The first images of several sets, one row per set, edge to edge.

    Args:
        images: one uint8 [N, 3, H, W] per row; a set with fewer images leaves white places.
        columns: images per row.
    """
    side = images[0].shape[-1]
    sheet = np.full((len(images) * side, columns * side, 3), 255, np.uint8)
    for row, pictures in enumerate(images):
        for column, picture in enumerate(pictures[:columns]):
            place = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
            place[:] = picture.permute(1, 2, 0).numpy()
    return Image.fromarray(sheet)


def picture_grid(pictures: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """A labelled grid of pictures (uint8 [H, W, 3] each)."""
    figure, panels = new_figure(1.25 * len(columns), 1.2 * len(rows) + 0.4, len(rows), len(columns))
    for axes_row, row, label in zip(np.atleast_2d(panels), pictures, rows, strict=True):
        for axes, picture in zip(axes_row, row, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            sns.despine(ax=axes, left=True, bottom=True)
        axes_row[0].set_ylabel(label, fontsize=8)
    for axes, label in zip(np.atleast_2d(panels)[0], columns, strict=True):
        axes.set_title(label, fontsize=8)
    return figure


def clean(name: str) -> str:
    """A task's or corruption's name as printed."""
    return DATASETS.get(name, name.replace("_", " ").replace("jpeg", "JPEG").replace("gaussian", "Gaussian"))


def number(value: float, fmt: str = "g") -> str:
    """A number as printed: with a minus sign, and without one where it is rounded to zero."""
    sign = "+" if fmt.startswith("+") else ""
    return f"{float(value):{sign}z{fmt.removeprefix('+')}}".replace("-", MINUS)


def shade(hue: int, amount: float) -> Colour:
    """A colour of the palette, mixed with black (amount below 0) or white."""
    return tuple((1 - abs(amount)) * part + max(amount, 0) for part in PALETTE[hue])


# Kinds of final masks: shades of the mask's hue, and shapes; the one that thresholds is black.
MASKS: dict[str, tuple[Colour, str]] = {
    "expected": (shade(RED, -0.4), "o"),
    "sample": (shade(RED, 0.0), "s"),
    "binary": (shade(RED, 0.5), "^"),
    "hard": (INK, "D"),
}


def objective_look(objective: str) -> dict[str, object]:
    """How an objective is drawn in `errorbar`, the same in every figure."""
    place = list(OBJECTIVE_NAMES).index(objective)
    name = OBJECTIVE_NAMES[objective]
    return {"color": OBJECTIVE_COLOURS[objective], "marker": "osD"[place], "label": name, "ms": 6, "capsize": 3}


def temperature_colour(temperature: float) -> Colour:
    """The colour of a temperature, the same in every figure."""
    return plt.get_cmap("viridis")(TEMPERATURES(np.log10(temperature)))


def method_colours(methods: Iterable[str]) -> dict[str, Colour]:
    """The same colour for a method in every figure, and for what it is a variant of; other names get what is left."""
    free = iter((SKY, BROWN, BLUE, ORANGE, GREEN, RED, PURPLE, GREY) * 12)
    names = {method: method if method in COLOURS else plain(method) for method in methods}
    return {method: shade(*COLOURS[name]) if name in COLOURS else PALETTE[next(free)] for method, name in names.items()}


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the tables; unnamed variants of them come before the experts, unknown ones last."""

    def place(method: str) -> float:
        if method in COLOURS:
            return ORDER.index(method)
        return len(ORDER) - 1.5 if plain(method) in COLOURS else len(ORDER)

    return sorted(methods, key=place)


def plain(method: str) -> str:
    """What a name such as "AdaMerging (layer-wise) on TSV-M, experts" is a variant of."""
    return method.partition(",")[0].partition(" on ")[0].removesuffix(" (tuned)")


def spread(values: pd.Series) -> float | None:
    """Standard deviation over seeds, for an error bar; none with one seed."""
    return values.std(ddof=1) if len(values) > 1 else None


def seed_count(table: pd.DataFrame) -> str:
    """How many seeds a figure shows, in words."""
    count = table["seed"].nunique()
    return f"{count} seed{'s' if count > 1 else ''}"


def band(axes: Axes, mean: pd.Series, deviation: pd.Series, **style: object) -> None:
    """A curve of means with a band of one standard deviation; no band where there is no deviation."""
    (line,) = axes.plot(mean.index, mean, **style)
    if deviation.notna().any():
        axes.fill_between(mean.index, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)


def method_rows(axes: Axes, wide: pd.DataFrame, colours: Mapping[str, object], fmt: str = ".1f") -> None:
    """A row per method, the first on top: a tick per task, a dot for the mean, its bar the deviation over seeds.

    Args:
        axes: the panel.
        wide: a value for every (seed, task) of the index and method of the columns.
        colours: of the methods.
        fmt: of the mean's label.
    """
    for height, method in enumerate(reversed(wide.columns)):
        by_task = wide[method].groupby("task").mean()
        by_seed = accuracies(wide[[method]].reset_index()).groupby("seed")[method].mean()  # no rho in it
        axes.plot(by_task, [height] * len(by_task), "|", color=colours[method], ms=9, mew=1.3, alpha=0.8)
        axes.errorbar(by_seed.mean(), height, xerr=spread(by_seed), fmt="o", ms=8, capsize=4, color=colours[method])
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 9, "bbox": PLATE}
        axes.annotate(number(by_seed.mean(), fmt), (by_seed.mean(), height), **place)
    axes.set_yticks(range(wide.shape[1]), list(reversed(wide.columns)))
    axes.set_ylim(-0.5, wide.shape[1] - 0.3)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def rows_legend(figure: Figure, several_seeds: bool, tuned: bool = False) -> None:
    """What dots, bars, ticks and rings of `method_rows` are, below the panels."""
    words = {"o": "mean over tasks" + (" (bar: its deviation over seeds)" if several_seeds else "")}
    words |= {"|": "one task"} | ({"ring": "mean, factor tuned with labels"} if tuned else {})
    style = {"color": "0.4", "ls": "", "ms": 8}
    handles = [
        Line2D([], [], marker="o" if mark == "ring" else mark, mfc="none" if mark == "ring" else "0.4", **style)
        for mark in words
    ]
    figure.legend(handles, list(words.values()), loc="outside lower center", ncols=3, frameon=False)


class _Percentages(MaxNLocator):
    """Round whole ticks, none of them above 100."""

    def __init__(self) -> None:
        super().__init__(nbins=8, integer=True, steps=[1, 2, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        ticks = super().tick_values(vmin, vmax)
        return ticks[ticks <= 100]


def percent_axis(axes: Axes, which: str, label: str) -> None:
    """Label an axis that shows percentages."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(_Percentages())  # no tick at 72.5 that the next line would call 72
    axis.set_major_formatter(PercentFormatter(decimals=0, symbol=""))
    axis.set_label_text(label)


def same_limits(panels: Iterable[Axes], which: str) -> None:
    """Give several panels one range, so that their marks can be compared by eye."""
    panels = list(panels)
    lows, highs = zip(*(getattr(axes, f"get_{which}lim")() for axes in panels), strict=True)
    for axes in panels:
        getattr(axes, f"set_{which}lim")(min(lows), max(highs))


def by_kind(axes: Axes, table: pd.DataFrame, value: str) -> None:
    """A mark per layer at its depth, colour and shape by the kind of layer."""
    for place, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        style = {"color": shade(*KINDS[place % len(KINDS)]), "marker": "os^DvPX"[place % 7], "label": kind}
        axes.scatter(rows["position"], rows[value], s=26, lw=0, alpha=0.85, **style)
    axes.set_xlabel("parameter tensor, from input to output")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def heat_map(axes: Axes, wide: pd.DataFrame, label: str, fmt: str = "", **options: object) -> None:
    """A labelled heat map of a wide table, with numbers in the cells when `fmt` is given."""
    shown = wide.rename(index=clean, columns=lambda name: clean(name) if isinstance(name, str) else name)
    text = shown.map(lambda value: number(value, fmt)) if fmt else False
    sns.heatmap(shown, ax=axes, annot=text, fmt="", annot_kws={"size": 9}, cbar_kws={"label": label}, **options)
    axes.tick_params(length=0)
    if fmt:
        axes.tick_params(axis="x", rotation=40)
        for name in axes.get_xticklabels():
            name.set_horizontalalignment("right")
        axes.tick_params(axis="y", rotation=0)

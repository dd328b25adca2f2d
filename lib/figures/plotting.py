"""The look of the figures: sizes, palette, axes, names as printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

# Methods by the kind of idea, each kind from the simplest to the strongest: the order of tables and figures, and each
# one's colour in the colour-blind-safe palette. Methods that appear together as curves have colours of their own.
GREY, BLUE, GREEN, ORANGE, RED, PURPLE, BROWN, PINK, SKY = 7, 0, 2, 1, 3, 4, 5, 6, 9
COLOURS = {
    "Zero-shot": GREY,
    "Weight averaging": BLUE,
    "Task Arithmetic": BLUE,
    "Ties-Merging": BLUE,
    "Ties-Merging (mean rule)": BLUE,
    "DARE": BLUE,
    "Consensus Task Arithmetic": BLUE,
    "Model Breadcrumbs": BLUE,
    "Model Stock": BLUE,
    "Iso-C": PINK,
    "Iso-CTS": PINK,
    "TSV-M": PINK,
    "TSV-M (kernels as matrices)": PINK,
    "WUDI-Merging": PINK,
    "Fisher merging": ORANGE,
    "RegMean": ORANGE,
    "RegMean++": ORANGE,
    "FeatCal": ORANGE,
    "Concrete Task Arithmetic": RED,
    "AdaMerging (task-wise)": PURPLE,
    "AdaMerging (layer-wise)": BROWN,
    "Concrete AdaMerging (task-wise)": SKY,
    "Concrete AdaMerging (layer-wise)": GREEN,
    "AdaMerging (layer-wise), IM": BROWN,
    "Concrete AdaMerging (layer-wise), IM": GREEN,
    "Experts": GREY,
}
ORDER = tuple(COLOURS)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=sns.color_palette("colorblind", 10)),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "font.size": 9.5,
    "figure.constrained_layout.use": True,
}


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
    """A task's name as printed."""
    return name.replace("_", " ")


def method_colours(methods: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """The same colour for a method in every figure, and for what it is a variant of; other names get what is left."""
    palette = sns.color_palette("colorblind", 10)
    free = iter((8, 9, 0, 1, 2, 3, 4, 5, 6, 7) * 9)
    names = {method: method if method in COLOURS else plain(method) for method in methods}
    return {method: palette[COLOURS[name] if name in COLOURS else next(free)] for method, name in names.items()}


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the tables; unnamed variants of them come before the experts, unknown ones last."""

    def place(method: str) -> float:
        if method in COLOURS:
            return ORDER.index(method)
        return len(ORDER) - 1.5 if plain(method) in COLOURS else len(ORDER)

    return sorted(methods, key=place)


def plain(method: str) -> str:
    """What a name such as "AdaMerging (layer-wise) on TSV-M, experts" is a variant of."""
    return method.partition(",")[0].partition(" on ")[0]


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
        by_task, by_seed = (wide[method].groupby(level).mean() for level in ("task", "seed"))
        axes.plot(by_task, [height] * len(by_task), "|", color=colours[method], ms=9, alpha=0.6)
        axes.errorbar(by_seed.mean(), height, xerr=spread(by_seed), fmt="o", ms=8, capsize=4, color=colours[method])
        place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{by_seed.mean():{fmt}}", (by_seed.mean(), height), **place)
    axes.set_yticks(range(wide.shape[1]), list(reversed(wide.columns)))
    axes.set_ylim(-0.5, wide.shape[1] - 0.3)
    axes.grid(axis="x", color="0.92")


def percent_axis(axes: Axes, which: str, label: str) -> None:
    """Label an axis that shows percentages."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(integer=True))  # no tick at 72.5 that the next line would call 72
    axis.set_major_formatter(PercentFormatter(decimals=0, symbol=""))
    axis.set_label_text(label)


def heat_map(axes: Axes, wide: pd.DataFrame, label: str, fmt: str = "", **options: object) -> None:
    """A labelled heat map of a wide table, with numbers in the cells when `fmt` is given."""
    shown = wide.rename(index=clean, columns=lambda name: clean(name) if isinstance(name, str) else name)
    sns.heatmap(shown, ax=axes, annot=bool(fmt), fmt=fmt, annot_kws={"size": 8}, cbar_kws={"label": label}, **options)
    axes.tick_params(length=0)
    if fmt:
        axes.tick_params(axis="x", rotation=40)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
        axes.tick_params(axis="y", rotation=0)

"""The picture of the whole method: what is merged, inside which mask, and what comes back from unlabelled inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from lib.figures.plotting import BLUE, GREEN, PALETTE, PURPLE, RED, Colour, new_figure

Point = tuple[float, float]

# One meaning per colour; blue and red are those of `lib.figures.curves.bilevel`.
LEARNED: Colour = PALETTE[GREEN]  # what the experts learned
COEFFICIENT: Colour = PALETTE[BLUE]  # the inner level's
MASK: Colour = PALETTE[RED]  # the upper level's
GRADIENT: Colour = tuple(0.85 * part for part in PALETTE[PURPLE])  # darker, for text; on its way back to both
PRE_TRAINED, INK, FAINT = (0.74, 0.74, 0.74), (0.2, 0.2, 0.2), (0.87, 0.87, 0.87)

# Three task vectors of nine parameters: they agree on some and pull apart on others, which the mask drops.
TASK_VECTORS = np.array(
    [
        [0.9, -0.7, 0.6, 0.5, 0.2, -0.8, 0.8, 0.2, -0.3],
        [0.6, 0.9, 0.7, -0.9, 0.7, -0.6, -0.9, 0.4, -0.8],
        [0.3, -0.9, 0.4, 0.9, 0.8, -0.3, 0.7, 0.9, -0.6],
    ]
)
SUM = TASK_VECTORS.mean(axis=0)
KEPT = np.array([0.95, 0.08, 0.9, 0.12, 0.85, 0.92, 0.06, 0.8, 0.96])

WIDTH, HEIGHT = 10.0, 4.2  # inches, and the units of the axes
CELL = 0.146
STRIP = CELL * len(KEPT)
ROWS = (2.62, 2.02, 1.42)  # of the experts, their task vectors, and what becomes of them
TITLES, HEADS, LANE = 3.97, 3.38, 0.2  # heights of titles and of what stands under them, and of the gradient's way
NUMBERS, MARKS = ("1", "2", "T"), ("o", "s", "^")  # of the tasks


def method() -> Figure:
    """The whole method: task vectors, one shared mask, and what unlabelled inputs send back (the paper's Figure 1)."""
    figure, axes = new_figure(WIDTH, HEIGHT)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    _experts(axes, 0.62)
    _task_vectors(axes, 2.62)
    _masked(axes, 4.92)
    _adapted(axes, 6.7)
    _one_model(axes, 8.58)
    _returned(axes, coefficients=2.39, mask=4.92 + STRIP / 2, loss=6.7 + STRIP / 2)
    return figure


def _experts(axes: Axes, left: float) -> None:
    """The pre-trained model, and the experts that were fine-tuned from it."""
    middle = left + STRIP / 2
    _text(axes, middle, TITLES, "Experts", weight="bold", size=11.5)
    _strip(axes, left, HEADS, np.zeros(len(KEPT)))
    _text(axes, left - 0.1, HEADS, r"$\theta_0$", ha="right", size=12)
    _text(axes, middle, HEADS + 0.24, "pre-trained")
    _arrow(axes, (middle, HEADS - 0.13), (middle, ROWS[0] + 0.2))
    _text(axes, middle + 0.1, 3.05, "fine-tune", ha="left")
    _text(axes, left - 0.24, (ROWS[1] + ROWS[2]) / 2, r"$\vdots$", size=9)
    for row, vector, number, mark in zip(ROWS, TASK_VECTORS, NUMBERS, MARKS, strict=True):
        axes.plot(left - 0.48, row, mark, color=INK, ms=7)
        _text(axes, left - 0.1, row, rf"$\theta_{number}$", ha="right", size=12)
        _strip(axes, left, row, vector)
        _arrow(axes, (left + STRIP + 0.06, row), (left + STRIP + 0.28, row))


def _task_vectors(axes: Axes, left: float) -> None:
    """What fine-tuning added, times a coefficient each."""
    middle, right = left + STRIP / 2, left + STRIP + 0.08
    _text(axes, middle - 0.1, TITLES, "Task vectors", weight="bold", size=11.5)
    _text(axes, middle - 0.1, HEADS, r"$\tau_t = \theta_t - \theta_0$", size=12)
    for row, vector, number in zip(ROWS, TASK_VECTORS, NUMBERS, strict=True):
        _chip(axes, left - 0.23, row, rf"$\lambda_{number}$", COEFFICIENT)
        _bars(axes, left, row, vector, LEARNED)
    bracket = [right, right + 0.08, right + 0.08, right], [ROWS[0] + 0.2] * 2 + [ROWS[-1] - 0.2] * 2
    axes.plot(*bracket, color=INK, lw=1.2, solid_joinstyle="miter")
    _arrow(axes, (right + 0.08, ROWS[0]), (right + 0.33, ROWS[0]))


def _masked(axes: Axes, left: float) -> None:
    """The weighted sum, the mask that all tasks share, and what it leaves of the sum."""
    middle = left + STRIP / 2
    _text(axes, middle - 0.1, TITLES, "One shared mask", weight="bold", size=11.5)
    _text(axes, middle - 0.1, HEADS, r"$S = \sum_t \, \lambda_t \, \tau_t$", size=12)
    _bars(axes, left, ROWS[0], SUM, LEARNED)
    _bars(axes, left, ROWS[1], SUM, FAINT)
    _bars(axes, left, ROWS[1], SUM * (KEPT > 0.5), LEARNED)
    _bars(axes, left, ROWS[2] - 0.12, KEPT, MASK)
    for row, name, colour in zip(ROWS, ("$S$", r"$\hat m \odot S$", r"$\hat m$"), (INK, INK, MASK), strict=True):
        _text(axes, left - 0.1, row, name, ha="right", size=12, color=colour)
    _arrow(axes, (left + STRIP + 0.08, ROWS[1]), (left + STRIP + 0.39, ROWS[1]))


def _adapted(axes: Axes, left: float) -> None:
    """The merged model on inputs without labels: how unsure it is of them is the loss."""
    middle = left + STRIP / 2
    _text(axes, middle, TITLES, "Adapt", weight="bold", size=11.5)
    _text(axes, middle, HEADS, "inputs without labels")
    for place, mark in zip((-0.42, 0.0, 0.42), MARKS, strict=True):
        axes.add_patch(Rectangle((middle + place - 0.16, 2.86), 0.32, 0.32, fc="white", ec="0.6", lw=1))
        axes.plot(middle + place, 3.02, mark, color=INK, ms=7)
    _arrow(axes, (middle, 2.8), (middle, 2.5))
    _text(axes, middle, 2.33, r"$\theta = \theta_0 + \hat m \odot S$", size=12)
    _strip(axes, left, ROWS[1], SUM * KEPT)
    _arrow(axes, (middle, ROWS[1] - 0.14), (middle, ROWS[2] + 0.22))
    _text(axes, middle, ROWS[2], "entropy $\\mathcal{L}$\nof its predictions", linespacing=1.3)
    _arrow(axes, (left + STRIP + 0.08, ROWS[1]), (left + STRIP + 0.48, ROWS[1]))


def _one_model(axes: Axes, left: float) -> None:
    """What is left in the end: one model for all tasks."""
    middle = left + STRIP / 2
    _text(axes, middle, TITLES, "One model", weight="bold", size=11.5)
    _text(axes, middle, HEADS, "for every task")
    _strip(axes, left, ROWS[1], SUM * KEPT)
    for place, mark in zip((-0.42, 0.0, 0.42), MARKS, strict=True):
        axes.plot(middle + place, 3.02, mark, color=INK, ms=7)
        _arrow(axes, (middle + 0.6 * place, ROWS[1] + 0.16), (middle + place, 2.84))
    _text(axes, middle, ROWS[2], "as large as\none expert", linespacing=1.3)


def _returned(axes: Axes, *, coefficients: float, mask: float, loss: float) -> None:
    """The loss's gradient on its way back to what each level learns."""
    style = {"color": GRADIENT, "lw": 2, "solid_joinstyle": "miter"}
    axes.plot([loss, loss, coefficients], [ROWS[2] - 0.28, LANE, LANE], **style)
    _arrow(axes, (coefficients, LANE), (coefficients, ROWS[2] - 0.2), GRADIENT, 2)
    _arrow(axes, (mask, LANE), (mask, ROWS[2] - 0.2), GRADIENT, 2)
    _text(axes, loss + 0.1, 0.67, r"$G = \partial\mathcal{L} / \partial\theta$", ha="left", size=12, color=GRADIENT)
    inner = "inner level\n" + r"$\lambda \leftarrow \lambda - $step$(\nabla_{\!\lambda}\,\mathcal{L})$"
    upper = "upper level\n" + r"$x \leftarrow x - $step$(\nabla_{\!x}\,\mathcal{L})$"
    _text(axes, coefficients + 0.12, 0.67, inner, ha="left", color=COEFFICIENT, linespacing=1.4)
    _text(axes, mask - 0.12, 0.67, upper, ha="right", color=MASK, linespacing=1.4)
    drawn = "$m \\sim$ Concrete$(x)$\n" + r"$\hat m = m\,/\,$mean$_l(m)$"
    _text(axes, mask + 0.12, 0.67, drawn, ha="left", color=MASK, linespacing=1.4)


def _text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 10.5, "color": INK} | style)


def _strip(axes: Axes, left: float, row: float, change: Sequence[float]) -> None:
    """A model as a strip of parameters; the more one has changed, the more it has of the experts' colour."""
    for place, size in enumerate(np.abs(change)):
        colour = (1 - size) * np.array(PRE_TRAINED) + size * np.array(LEARNED)
        axes.add_patch(Rectangle((left + place * CELL, row - 0.1), CELL, 0.2, fc=colour, ec="white", lw=1.2))


def _bars(axes: Axes, left: float, row: float, values: Sequence[float], colour: Colour) -> None:
    """A vector as bars up and down from a line."""
    axes.plot([left, left + STRIP], [row, row], color="0.55", lw=0.8)
    for place, value in enumerate(values):
        axes.add_patch(Rectangle((left + (place + 0.15) * CELL, row), 0.7 * CELL, 0.24 * value, fc=colour, lw=0))


def _chip(axes: Axes, x: float, y: float, text: str, colour: Colour) -> None:
    place = (x - 0.12, y - 0.12)
    axes.add_patch(FancyBboxPatch(place, 0.24, 0.24, boxstyle="round,pad=0.02", ec=colour, fc="white", lw=1.4))
    _text(axes, x, y, text, color=colour, size=11)


def _arrow(axes: Axes, start: Point, end: Point, colour: Colour = INK, width: float = 1.3) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops=style)

"""Handwritten digits (in the spirit of MNIST): one bent, slanted pen stroke or two, light on black.

A digit is data: alternative ways to write it, each a list of strokes, each stroke a list of points that a
smooth curve passes through. A point written twice in a row makes a corner. x and y run from 0 to 1.
"""

from __future__ import annotations

import numpy as np

from worlds.images.canvas import Canvas, Colour, Point, grid, hsv, jitter, mix, nuisance, smooth_noise
from worlds.images.street_digits import ALIASES, CLASSES, contrasting

__all__ = ["ALIASES", "CLASSES", "TEMPLATES", "draw"]

TEMPLATES = ('a handwritten digit "{}"', "the number {} written with a pen", "a scan of a handwritten {}")

Stroke = tuple[Point, ...]
RING: Stroke = ((0.55, 0), (0.15, 0.14), (0, 0.5), (0.15, 0.87), (0.5, 1), (0.86, 0.85), (1, 0.5), (0.86, 0.13))
STEM: Stroke = ((0.5, 0), (0.5, 0.5), (0.5, 1))
FLAG: Stroke = ((0.22, 0.25), (0.55, 0), (0.55, 0), (0.55, 0.5), (0.55, 1))
ARCH: Stroke = ((0.05, 0.25), (0.3, 0.02), (0.72, 0.03), (0.88, 0.3), (0.58, 0.64), (0.05, 1), (0.05, 1), (1, 0.98))
SEVEN: Stroke = ((0, 0.06), (0, 0.06), (0.95, 0.03), (0.95, 0.03), (0.58, 0.5), (0.35, 1))
BELLY: Stroke = ((0.13, 0.44), (0.6, 0.38), (0.92, 0.68), (0.6, 1), (0.04, 0.92))
HEAD: Stroke = ((0.86, 0.22), (0.5, 0), (0.13, 0.2), (0.32, 0.5), (0.82, 0.28), (0.86, 0.22), (0.86, 0.22))
SKELETONS: tuple[tuple[tuple[Stroke, ...], ...], ...] = (
    (  # zero: closed, open at the top, slashed
        ((*RING, (0.5, 0.0)),),
        ((*RING, (0.65, 0.06), (0.4, 0.12)),),
        ((*RING, (0.5, 0.0)), ((0.8, 0.15), (0.2, 0.85))),
    ),
    ((STEM,), (FLAG,), (FLAG, ((0.2, 1), (0.9, 1)))),
    (  # two: with a corner, with a loop
        (ARCH,),
        (((0.1, 0.2), (0.45, 0), (0.85, 0.2), (0.62, 0.6), (0.2, 0.97), (0.08, 0.82), (0.35, 0.8), (1, 0.95)),),
    ),
    (  # three: round, flat at the top
        (((0.1, 0.12), (0.5, 0), (0.84, 0.2), (0.42, 0.46), (0.42, 0.46), (0.92, 0.7), (0.58, 1), (0.05, 0.9)),),
        (((0.1, 0), (0.1, 0), (0.86, 0), (0.86, 0), (0.4, 0.4), (0.4, 0.4), (0.94, 0.68), (0.58, 1), (0.05, 0.9)),),
    ),
    (  # four: open, closed
        (((0.18, 0), (0.05, 0.58), (0.05, 0.58), (0.98, 0.54)), ((0.72, 0.08), (0.7, 0.5), (0.65, 1))),
        (((0.66, 1), (0.68, 0), (0.68, 0), (0, 0.66), (0, 0.66), (1, 0.66)),),
    ),
    (  # five: in one go, with a hat put on last
        (((0.88, 0), (0.2, 0.02), (0.2, 0.02), (0.13, 0.44), *BELLY),),
        (((0.22, 0.05), (0.13, 0.44), *BELLY), ((0.2, 0.05), (0.95, 0))),
    ),
    (  # six: bent, upright
        (((0.75, 0), (0.3, 0.25), (0.05, 0.66), (0.3, 0.98), (0.76, 0.93), (0.84, 0.65), (0.5, 0.52), (0.1, 0.76)),),
        (((0.35, 0), (0.08, 0.5), (0.2, 0.95), (0.7, 0.98), (0.9, 0.74), (0.6, 0.55), (0.1, 0.72)),),
    ),
    ((SEVEN,), (SEVEN, ((0.25, 0.52), (0.88, 0.48))), (((0, 0.22), *SEVEN),)),
    (  # eight: one curve, two rings
        (
            (
                (0.86, 0.14),
                (0.45, 0),
                (0.12, 0.22),
                (0.5, 0.47),
                (0.9, 0.76),
                (0.5, 1),
                (0.08, 0.78),
                (0.5, 0.47),
                (0.86, 0.14),
            ),
        ),
        (
            ((0.5, 0), (0.16, 0.22), (0.5, 0.45), (0.84, 0.22), (0.5, 0)),
            ((0.5, 0.45), (0.06, 0.72), (0.5, 1), (0.94, 0.72), (0.5, 0.45)),
        ),
    ),
    (  # nine: straight, with a hook
        ((*HEAD, (0.8, 0.6), (0.66, 1)),),
        ((*HEAD, (0.86, 0.7), (0.5, 1), (0.1, 0.9)),),
    ),
)

STEPS = 6  # curve points per skeleton point
_T = np.linspace(0, 1, STEPS, endpoint=False)[:, None]
CATMULL_ROM = 0.5 * np.hstack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2]
)


def smooth_curve(points: np.ndarray) -> np.ndarray:
    """A Catmull-Rom curve through `points` [N, 2]: float [(N - 1) * STEPS + 1, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    windows = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)])  # [4, N - 1, 2]
    curve = np.einsum("sk,knd->nsd", CATMULL_ROM, windows).reshape(-1, 2)
    return np.concatenate([curve, points[-1:]])


def bend(rng: np.random.Generator, points: np.ndarray, amount: float) -> np.ndarray:
    """Move every point a little on its own; the two halves of a corner move together."""
    moves = rng.normal(0, amount, points.shape)
    corner = (points[1:] == points[:-1]).all(axis=1)
    moves[1:][corner] = moves[:-1][corner]
    return points + moves


def paper(rng: np.random.Generator) -> tuple[Canvas, Colour]:
    """Coloured paper to write on (plain, mottled, ruled or squared) and an ink that shows on it."""
    ground = hsv(rng.random(), rng.random() ** 2 * 0.6, rng.uniform(0.1, 1))
    canvas = Canvas(ground)
    kind = rng.integers(3)
    if kind == 0:
        canvas.paste(mix(smooth_noise(rng, 5) * 0.6 + 0.4 * grid()[0], jitter(rng, ground, 40), ground))
    elif kind == 1:
        rule, step = jitter(rng, ground, 70), rng.uniform(0.14, 0.3)
        upright = rng.random() < 0.5
        for at in np.arange(rng.random() * step, 1, step):
            canvas.line([(0, at), (1, at)], rule, 0.015)
            if upright:
                canvas.line([(at, 0), (at, 1)], rule, 0.015)
    return canvas, contrasting(rng, ground, 60)


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """One handwritten digit; see `worlds.images.drawing`."""
    coloured = rng.random() < 1.1 * wild - 0.33  # never at `TASK_WILD`
    canvas, ink = paper(rng) if coloured else (Canvas(), hsv(0, 0, rng.uniform(0.75, 1)))
    ways = SKELETONS[label]
    strokes = ways[int(rng.integers(len(ways)))]
    height = rng.uniform(0.64 - 0.3 * wild, 0.74 + 0.08 * wild)
    width = height * rng.uniform(0.5 - 0.1 * wild, 0.75 + 0.15 * wild) * (0.6 if label == 1 else 1)
    slant, angle = rng.normal(0.12, 0.12 + 0.15 * wild), np.deg2rad(rng.normal(0, 6 + 12 * wild))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shape = np.array([[width, 0], [-slant * height, height]]) @ turn  # rows: where (1, 0) and (0, 1) go
    centre = 0.5 + rng.uniform(-1, 1, 2) * (0.02 + 0.06 * wild)
    pen = rng.uniform(0.055, 0.115 + 0.04 * wild) * (0.6 + 0.55 * height)
    waves, phase = rng.normal(0, 3.5, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    for stroke in strokes:
        points = bend(rng, np.asarray(stroke), 0.045 + 0.04 * wild)
        points = points + (0.06 + 0.08 * wild) * np.sin(points @ waves + phase)  # the whole digit is bent
        curve = (smooth_curve(points) - 0.5) @ shape + centre
        canvas.line([(x, y) for x, y in curve.tolist()], ink, pen)
        for x, y in (curve[0], curve[-1]):  # round ends
            canvas.ellipse(x, y, pen / 2, pen / 2, ink)
    image = nuisance(rng, canvas.finish(), wild)
    return image if coloured else np.repeat(image[..., 1:2], 3, axis=2)

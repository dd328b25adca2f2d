"""Parts that the scenes share: skies, ridges, grass, firs, and what may stand far off or close by."""

from __future__ import annotations

import numpy as np

from worlds.images import canvas
from worlds.images.canvas import Canvas, Colour, jitter

Sky = tuple[Colour, Colour]

# Top and bottom of the sky: clear, pale, overcast, golden hour, sunset, dusk.
SKIES: tuple[Sky, ...] = (
    ((70, 130, 210), (180, 215, 240)),
    ((120, 170, 220), (225, 232, 235)),
    ((135, 145, 158), (205, 208, 210)),
    ((130, 160, 190), (250, 215, 160)),
    ((95, 85, 150), (250, 160, 105)),
    ((30, 35, 80), (140, 100, 130)),
)
GREEN, STRAW, SAND, ROCK, SNOW, SOIL = (
    (96, 140, 64),
    (178, 164, 92),
    (214, 182, 128),
    (118, 108, 100),
    (226, 232, 240),
    (120, 88, 62),
)


def gradient(top: Colour, bottom: Colour, side: int, end: float) -> np.ndarray:
    """A vertical blend reaching `bottom` at height `end`: uint8 [side, side, 3]."""
    weight = np.clip(np.linspace(0, 1 / max(end, 0.1), side, dtype=np.float32), 0, 1)[:, None]
    return np.repeat(canvas.mix(weight, top, bottom), side, axis=1)


def ridge(rng: np.random.Generator, art: Canvas, height: float, rough: float, colour: Colour, steps: int = 6) -> None:
    """A band of land from a wavy upper edge near `height` down to the bottom."""
    edge = [(x, height + rough * rng.uniform(-1, 1)) for x in np.linspace(-0.05, 1.05, steps)]
    art.polygon([(-0.1, 1.1), *edge, (1.1, 1.1)], colour)


def strokes(rng: np.random.Generator, art: Canvas, top: float, colour: Colour, count: int, lean: float) -> None:
    """Short marks that grow towards the viewer: grass for a small `lean`, ripples for a large one."""
    for x, y in rng.random((count, 2)):
        size = 0.03 + 0.09 * y
        base = top + (1 - top) * y
        art.line([(x, base), (x + lean * size, base - size * (1 - abs(lean)))], jitter(rng, colour, 22), 0.02)


def fir(rng: np.random.Generator, art: Canvas, x: float, base: float, size: float, colour: Colour) -> None:
    """A fir tree of height `size` standing at (x, base)."""
    art.rectangle(x - 0.04 * size, base - 0.2 * size, x + 0.04 * size, base, (70, 52, 40))
    for tier in range(3):
        low = base - size * (0.12 + 0.25 * tier)
        half = size * (0.3 - 0.07 * tier)
        art.polygon([(x - half, low), (x + half, low), (x, low - 0.42 * size)], jitter(rng, colour, 8))


def sun(rng: np.random.Generator, art: Canvas, horizon: float) -> None:
    """A low or high sun, four times in ten."""
    if rng.random() < 0.4:
        art.ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.08, horizon - 0.05), 0.06, 0.06, (255, 246, 205))


def distance(rng: np.random.Generator, art: Canvas, horizon: float) -> None:
    """Far away, in any open scene: peaks or a town, so that neither settles the class."""
    kind, haze = rng.integers(4), jitter(rng, (136, 142, 160), 28)
    if kind == 0:
        for x in rng.random(3):
            y, half = horizon - rng.uniform(0.12, 0.26), rng.uniform(0.15, 0.3)
            art.polygon([(x - half, horizon + 0.05), (x, y), (x + half, horizon + 0.05)], jitter(rng, haze, 14))
            art.polygon([(x - 0.3 * half, y + 0.08), (x, y), (x + 0.3 * half, y + 0.08)], SNOW)
    elif kind == 1:
        for x in rng.random(8):
            art.rectangle(x, horizon - rng.uniform(0.05, 0.2), x + 0.07, horizon + 0.06, jitter(rng, haze, 24))


def foreground(rng: np.random.Generator, art: Canvas) -> None:
    """Close by, in any open scene: a fir, a boulder or a pole."""
    kind, x, y = rng.integers(6), rng.uniform(0.05, 0.95), rng.uniform(0.8, 1.0)
    if kind == 0:
        fir(rng, art, x, y, rng.uniform(0.3, 0.5), jitter(rng, (64, 88, 66)))
    elif kind == 1:
        art.ellipse(x, y, rng.uniform(0.08, 0.16), rng.uniform(0.06, 0.1), jitter(rng, ROCK, 28))
    elif kind == 2:
        art.line([(x, y), (x, y - 0.5)], jitter(rng, (110, 96, 84), 40), 0.03)

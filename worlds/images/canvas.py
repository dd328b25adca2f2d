"""Drawing tools shared by the eight procedural tasks: a supersampled canvas, colours, noise fields, nuisance.

An image is drawn at `SIZE * SCALE` pixels and averaged down to `SIZE`, which is what anti-aliases it.
Coordinates run from 0 to 1 in both directions (x to the right, y down), so no drawing routine names a pixel.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # pixels of a finished image, height and width
SCALE = 3  # supersampling per axis: 3 removes visible stair-steps, 4 costs twice the time for no visible gain

Colour = tuple[int, int, int]
Point = tuple[float, float]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB colour, 0-255, of a hue (wraps around), saturation and value in 0..1 (clipped)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return int(255 * red), int(255 * green), int(255 * blue)


def jitter(rng: np.random.Generator, colour: Colour, amount: float = 18) -> Colour:
    """`colour` moved by up to `amount` grey levels, a common shift and a smaller one per channel."""
    common = rng.uniform(-amount, amount)
    shifts = rng.uniform(-amount / 2, amount / 2, 3).tolist()  # plain numbers: three are too few to pay for an array
    red, green, blue = (
        int(min(max(part + (common + shift), 0), 255)) for part, shift in zip(colour, shifts, strict=True)
    )
    return red, green, blue


class Canvas:
    """A supersampled drawing surface with coordinates in 0..1."""

    def __init__(self, background: Colour = (0, 0, 0)) -> None:
        self.side = SIZE * SCALE
        self.image = Image.new("RGB", (self.side, self.side), background)
        self.pen = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Filled polygon."""
        self.pen.polygon(self._scaled(points), fill=colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Filled rectangle between two opposite corners."""
        self.pen.rectangle(self._scaled([(min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))]), fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Filled ellipse with centre (x, y) and half-axes (rx, ry)."""
        self.pen.ellipse(self._scaled([(x - rx, y - ry), (x + rx, y + ry)]), fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 0.03) -> None:
        """Polyline; `width` as a fraction of the image side."""
        self.pen.line(self._scaled(points), fill=colour, width=max(1, round(width * self.side)), joint="curve")

    def paste(self, pixels: np.ndarray) -> None:
        """Replace the whole surface by `pixels` (uint8, [side, side, 3])."""
        self.image = Image.fromarray(pixels)
        self.pen = ImageDraw.Draw(self.image)

    def pixels(self) -> np.ndarray:
        """The surface as it is, uint8 [side, side, 3]."""
        return np.asarray(self.image)

    def finish(self) -> np.ndarray:
        """The finished image, uint8 [SIZE, SIZE, 3]."""
        return np.asarray(self.image.reduce(SCALE))


def smooth_noise(rng: np.random.Generator, cells: int, side: int = SIZE * SCALE) -> np.ndarray:
    """A smooth random field in 0..1, float32 [side, side]: `cells` x `cells` random values, bicubic in between."""
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def grid(side: int = SIZE * SCALE) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (x, y) of all surface points in 0..1, float32 [side, side] each."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.meshgrid(axis, axis)


def mix(weight: np.ndarray, low: Colour, high: Colour) -> np.ndarray:
    """Blend two colours by a field in 0..1: uint8 [H, W, 3], `low` where the field is 0, `high` where it is 1."""
    weight = np.clip(weight, 0, 1)
    blend = np.empty((*weight.shape, 3), np.uint8)
    for channel in range(3):  # one channel at a time takes a tenth of the time of broadcasting over all three
        blend[..., channel] = low[channel] + (float(high[channel]) - low[channel]) * weight
    return blend


def camera(rng: np.random.Generator, art: Canvas, zoom: float, turn: float) -> np.ndarray:
    """Photograph a surface: a random tilt and crop, mirrored half of the time.

    Args:
        rng: source of randomness.
        art: the surface; the crop never leaves it, however it is turned.
        zoom: the crop's side is shortened by up to this fraction.
        turn: largest tilt in degrees, either way.

    Returns:
        uint8 [SIZE, SIZE, 3].
    """
    degrees = rng.uniform(-turn, turn)
    radians = np.deg2rad(degrees)
    inside = 1 / (abs(np.cos(radians)) + abs(np.sin(radians)))  # the largest upright square in a turned one
    side = art.side * inside * (1 - zoom * rng.random())
    slack = (art.side * inside - side) / 2
    middle_x, middle_y = art.side / 2 + rng.uniform(-slack, slack, 2)
    box = (middle_x - side / 2, middle_y - side / 2, middle_x + side / 2, middle_y + side / 2)
    image = art.image.rotate(degrees) if turn else art.image
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def nuisance(rng: np.random.Generator, image: np.ndarray, wild: float) -> np.ndarray:
    """What a camera and the web do to a picture, independent of its class.

    Shift, brightness, contrast and colour cast, an occluding patch, blur and pixel noise, all growing with `wild`:
    hardly visible in the tasks' own pictures, heavy in the wildest of the pre-training world.

    Args:
        rng: source of randomness.
        image: uint8 [SIZE, SIZE, 3].
        wild: 0 to 1.

    Returns:
        uint8 [SIZE, SIZE, 3].
    """
    strength = 0.05 + 0.35 * wild + 0.5 * wild**3  # 0.07 for the tasks, 0.9 at the wildest
    reach = round(3 * strength)
    if reach:
        down, right = rng.integers(-reach, reach + 1, 2)
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        image = padded[reach + down : reach + down + SIZE, reach + right : reach + right + SIZE]
    pixels = image.astype(np.float32)
    if rng.random() < 0.4 * strength:  # blur by a 3x3 binomial kernel
        padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        pixels = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    contrast = 1 + strength * rng.uniform(-0.5, 0.4)
    cast = 255 * strength * (rng.uniform(-0.2, 0.2) + rng.uniform(-0.12, 0.12, 3))
    pixels = (pixels - 128) * contrast + 128 + cast
    if rng.random() < 0.5 * strength:  # an occluding patch, at most a third of the side
        height, width = rng.integers(3, 4 + int(8 * strength), 2)
        top, left = rng.integers(0, SIZE - height), rng.integers(0, SIZE - width)
        pixels[top : top + height, left : left + width] = rng.uniform(0, 255, 3)
    pixels = pixels + rng.normal(0, 1 + 24 * strength * rng.random(), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)

"""Street digits (in the spirit of SVHN): a coloured house number on a plate or a wall, with parts of its neighbours."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worlds.images.canvas import SCALE, SIZE, Canvas, Colour, hsv, jitter, mix, nuisance, smooth_noise

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ALIASES: dict[str, tuple[str, ...]] = {
    "zero": ("0", "nought", "nil"),
    "one": ("1", "a single", "the first numeral"),
    "two": ("2", "a pair", "a couple"),
    "three": ("3", "a trio", "triple"),
    "four": ("4", "a quartet", "quadruple"),
    "five": ("5", "a quintet", "half of ten"),
    "six": ("6", "half a dozen", "a sextet"),
    "seven": ("7", "a septet", "the days in a week"),
    "eight": ("8", "an octet", "a double loop"),
    "nine": ("9", "a nonet", "the last numeral"),
}
TEMPLATES = (
    'a photo of the number "{}" on a house',
    "a street photo of the house number {}",
    "the digit {} on a wall",
)

FACES = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold", "Serif-Italic")
SIDE = SIZE * SCALE


@cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A DejaVu face, e.g. "Sans-Bold", from the files that come with matplotlib; opened at its first use."""
    import matplotlib  # here, not above: importing it takes longer than drawing hundreds of images

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVu{face}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def warp(
    rng: np.random.Generator,
    image: Image.Image,
    *,
    scale: float,
    turn: float,
    shear: float = 0.0,
    tilt: float = 0.0,
    shift: float = 0.0,
) -> Image.Image:
    """Look at `image` ([SIDE, SIDE], any mode) from a random viewpoint; what comes in from outside is 0.

    Args:
        rng: source of randomness.
        image: what to look at.
        scale: size of the result, 1 keeps it.
        turn: largest rotation to either side, in degrees.
        shear: largest horizontal shear, in sides per side.
        tilt: largest perspective foreshortening, as a fraction.
        shift: largest move of the centre, in sides.
    """
    angle = np.deg2rad(rng.uniform(-turn, turn))
    stretch, lean = np.exp(rng.uniform(-0.5, 0.5) * (shear + 0.6 * tilt)), rng.uniform(-shear, shear)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = scale * turned @ np.array([[stretch, lean], [0, 1 / stretch]])
    # PIL wants the way back, from the result to the source, around the centre of the picture.
    back = np.eye(3)
    back[:2, :2] = np.linalg.inv(forward)
    back[2, :2] = rng.uniform(-tilt, tilt, 2) / SIDE
    middle, away = np.eye(3), np.eye(3)
    middle[:2, 2] = SIDE / 2
    away[:2, 2] = -SIDE / 2 - SIDE * rng.uniform(-shift, shift, 2)
    back = middle @ back @ away
    coefficients = (back / back[2, 2]).ravel()[:8].tolist()
    return image.transform((SIDE, SIDE), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


def luminance(colour: Colour) -> float:
    """How bright a colour looks, 0 to 255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def contrasting(rng: np.random.Generator, ground: Colour, least: float) -> Colour:
    """A random colour whose luminance is at least `least` (at most 120) away from that of `ground`."""
    while True:
        colour = hsv(rng.random(), rng.random() ** 1.5, rng.uniform(0.05, 1))
        if abs(luminance(colour) - luminance(ground)) >= least:
            return colour


def wall(rng: np.random.Generator, ground: Colour) -> Canvas:
    """Plaster, bricks or planks in the colour `ground`."""
    canvas = Canvas()
    shade = 0.6 * smooth_noise(rng, int(rng.integers(3, 9))) + 0.4 * rng.random()
    canvas.paste(mix(shade, jitter(rng, ground, 40), ground))
    kind, joint, step = rng.integers(4), jitter(rng, ground, 60), rng.uniform(0.13, 0.26)
    if kind < 2:  # plaster
        return canvas
    for row, y in enumerate(np.arange(-rng.random() * step, 1, step)):
        canvas.line([(0, y), (1, y)], joint, 0.02)
        if kind == 2:  # bricks; planks have no upright joints
            for x in np.arange(step * (row % 2), 1, 2 * step):
                canvas.line([(x, y), (x, y + step)], joint, 0.02)
    return canvas


def plate(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A number plate and its rim, two masks uint8 [SIDE, SIDE]: rounded, oval, wider than the picture, or none."""
    mask, rim = Image.new("L", (SIDE, SIDE), 0), Image.new("L", (SIDE, SIDE), 0)
    kind = rng.integers(6)
    if kind < 3:
        width, height = SIDE * (rng.uniform(0.3, 0.46) if kind < 2 else 0.7), SIDE * rng.uniform(0.37, 0.46)
        box = [SIDE / 2 - width, SIDE / 2 - height, SIDE / 2 + width, SIDE / 2 + height]
        radius = min(width, height) if kind == 0 else SIDE * rng.uniform(0, 0.16)
        ImageDraw.Draw(mask).rounded_rectangle(box, radius=radius, fill=255)
        if rng.random() < 0.5:
            ImageDraw.Draw(rim).rounded_rectangle(box, radius=radius, outline=255, width=3)
    return mask, rim


def number(rng: np.random.Generator, label: int, wild: float) -> Image.Image:
    """The digit `label` in the middle of a mask, uint8 [SIDE, SIDE], with other digits reaching in from the sides."""
    type_face = font(FACES[int(rng.integers(len(FACES)))], int(SIDE * 0.86))
    mask = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = type_face.getbbox(str(label))
    x, y = SIDE / 2 - (left + right) / 2, SIDE / 2 - (top + bottom) / 2
    pen.text((x, y), str(label), fill=255, font=type_face)
    for side in (-1, 1):
        if rng.random() < 0.5 + 0.2 * wild:
            gap = side * SIDE * rng.uniform(0.5, 0.66)
            pen.text((x + gap, y), str(rng.integers(10)), fill=255, font=type_face)
    return mask


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """One house number; see `worlds.images.drawing`."""
    ground = hsv(rng.random(), rng.uniform(0, 0.5 + 0.4 * wild), rng.uniform(0.2, 0.95))
    canvas = wall(rng, ground)
    seen = warp(  # plate, rim and number share one viewpoint, so they travel as the three bands of one image
        rng,
        Image.merge("RGB", (*plate(rng), number(rng, label, wild))),
        scale=rng.uniform(0.95 - 0.3 * wild, 1.05 + 0.15 * wild),
        turn=4 + 22 * wild,
        shear=0.1 + 0.25 * wild,
        tilt=0.4 * wild,
        shift=0.02 + 0.08 * wild,
    )
    outline, rim, digits = seen.split()
    if outline.getpixel((SIDE // 2, SIDE // 2)):
        canvas.image.paste(jitter(rng, ground, 60), (2, 3), outline)  # the shadow of the plate
        ground = contrasting(rng, ground, 25)
        canvas.image.paste(ground, (0, 0), outline)
    ink = contrasting(rng, ground, 60 - 30 * wild)
    canvas.image.paste(ink, (0, 0), rim)
    if rng.random() < 0.4:  # relief
        canvas.image.paste(jitter(rng, ground, 60), (2, 3), digits)
    canvas.image.paste(ink, (0, 0), digits)
    return nuisance(rng, canvas.finish(), wild)

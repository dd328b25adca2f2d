"""Traffic signs (in the spirit of GTSRB): twelve European signs in front of sky, trees and walls, in any light."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from worlds.images.canvas import SCALE, SIZE, Canvas, Colour, Point, hsv, jitter, mix, nuisance, smooth_noise
from worlds.images.street_digits import font, warp

CLASSES = (
    "speed limit 30",
    "speed limit 50",
    "speed limit 80",
    "stop",
    "yield",
    "no entry",
    "priority road",
    "turn left ahead",
    "turn right ahead",
    "roundabout",
    "pedestrian crossing",
    "caution",
)
ALIASES: dict[str, tuple[str, ...]] = {
    "speed limit 30": ("maximum thirty", "thirty kilometres per hour"),
    "speed limit 50": ("maximum fifty", "fifty kilometres per hour"),
    "speed limit 80": ("maximum eighty", "eighty kilometres per hour"),
    "stop": ("halt", "red octagon"),
    "yield": ("give way", "upside-down triangle"),
    "no entry": ("do not enter", "white bar on red"),
    "priority road": ("right of way", "yellow diamond"),
    "turn left ahead": ("arrow to the west", "leftward bend"),
    "turn right ahead": ("arrow to the east", "rightward bend"),
    "roundabout": ("traffic circle", "rotary", "arrows in a ring"),
    "pedestrian crossing": ("zebra", "crosswalk", "people walking"),
    "caution": ("danger", "exclamation mark", "general warning"),
}
TEMPLATES = ('a photo of a "{}" traffic sign', "a road sign: {}", "a zoomed in photo of a {} sign")

SIDE = SIZE * SCALE
# The inks of one sign: white, red, blue, yellow and black as this sign's age and dirt left them.
Inks = dict[str, Colour]
Outline = Sequence[Point]


def polar(radius: float, turns: float) -> Point:
    """The point at `radius` from the middle, `turns` clockwise from the top."""
    return 0.5 + radius * float(np.sin(2 * np.pi * turns)), 0.5 - radius * float(np.cos(2 * np.pi * turns))


def regular(corners: int, radius: float, start: float = 0.0) -> list[Point]:
    """A regular polygon around the middle of the picture; its first corner is `start` turns after the top."""
    return [polar(radius, corner / corners + start) for corner in range(corners)]


DISC, RING, INNER = regular(32, 0.48), regular(32, 0.46), regular(32, 0.35)
OCTAGON, DIAMOND = regular(8, 0.49, 1 / 16), regular(4, 0.5)
UP: Outline = ((0.5, 0.06), (0.99, 0.92), (0.01, 0.92))
# The roundabout's three arrows: an arc each, and a head at its end.
ARROWS = tuple(
    (
        [polar(0.25, turn - step) for step in (0.02, 0.06, 0.1, 0.15, 0.2)],
        [polar(0.25, turn - 0.3), polar(0.39, turn - 0.18), polar(0.11, turn - 0.18)],
    )
    for turn in (0, 1 / 3, 2 / 3)
)
SQUARE: Outline = ((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95))


def shrunk(outline: Outline, share: float) -> list[Point]:
    """`outline` made smaller towards its centroid."""
    x, y = (sum(values) / len(outline) for values in zip(*outline, strict=True))
    return [(x + share * (a - x), y + share * (b - y)) for a, b in outline]


def flipped(outline: Outline) -> list[Point]:
    """`outline` upside down."""
    return [(x, 1 - y) for x, y in outline]


def lettered(art: Canvas, text: str, ink: Colour, size: float) -> None:
    """Bold letters in the middle of the sign."""
    type_face = font("Sans-Bold", int(size * SIDE))
    left, top, right, bottom = type_face.getbbox(text)
    art.pen.text((SIDE / 2 - (left + right) / 2, SIDE / 2 - (top + bottom) / 2), text, fill=ink, font=type_face)


def speed_limit(limit: str) -> Callable[[Canvas, Inks], Outline]:
    """The painter of one speed limit."""

    def paint(art: Canvas, inks: Inks) -> Outline:
        art.polygon(RING, inks["red"])
        art.polygon(INNER, inks["white"])
        lettered(art, limit, inks["black"], 0.46)
        return DISC

    return paint


def stop(art: Canvas, inks: Inks) -> Outline:
    """A red octagon with its word."""
    art.polygon(shrunk(OCTAGON, 0.93), inks["red"])
    lettered(art, "STOP", inks["white"], 0.29)
    return OCTAGON


def give_way(art: Canvas, inks: Inks) -> Outline:
    """A white triangle with a red rim, point down."""
    art.polygon(flipped(shrunk(UP, 0.96)), inks["red"])
    art.polygon(flipped(shrunk(UP, 0.55)), inks["white"])
    return flipped(UP)


def no_entry(art: Canvas, inks: Inks) -> Outline:
    """A white bar on a red disc."""
    art.polygon(RING, inks["red"])
    art.rectangle(0.18, 0.41, 0.82, 0.59, inks["white"])
    return DISC


def priority_road(art: Canvas, inks: Inks) -> Outline:
    """A yellow diamond with a white rim."""
    art.polygon(shrunk(DIAMOND, 0.95), inks["black"])
    art.polygon(shrunk(DIAMOND, 0.9), inks["white"])
    art.polygon(shrunk(DIAMOND, 0.6), inks["yellow"])
    return DIAMOND


def turn_ahead(side: int) -> Callable[[Canvas, Inks], Outline]:
    """The painter of an arrow on a blue disc that bends to the left (-1) or to the right (+1)."""

    def paint(art: Canvas, inks: Inks) -> Outline:
        art.polygon(RING, inks["blue"])
        stem = 0.5 - 0.14 * side
        art.line([(stem, 0.8), (stem, 0.43), (stem + 0.2 * side, 0.43)], inks["white"], 0.13)
        art.polygon([(stem + side * x, y) for x, y in ((0.18, 0.22), (0.46, 0.43), (0.18, 0.64))], inks["white"])
        return DISC

    return paint


def roundabout(art: Canvas, inks: Inks) -> Outline:
    """Three arrows that chase each other round a blue disc."""
    art.polygon(RING, inks["blue"])
    for arc, head in ARROWS:
        art.line(arc, inks["white"], 0.1)
        art.polygon(head, inks["white"])
    return DISC


def pedestrian_crossing(art: Canvas, inks: Inks) -> Outline:
    """Somebody walking, in a white triangle on a blue square."""
    art.polygon(shrunk(SQUARE, 0.94), inks["blue"])
    art.polygon(((0.5, 0.1), (0.92, 0.86), (0.08, 0.86)), inks["white"])
    ink = inks["black"]
    art.ellipse(0.52, 0.34, 0.055, 0.055, ink)
    art.line([(0.52, 0.4), (0.5, 0.6), (0.6, 0.8)], ink, 0.08)
    art.line([(0.5, 0.58), (0.38, 0.8)], ink, 0.07)
    art.line([(0.4, 0.55), (0.5, 0.43), (0.62, 0.54)], ink, 0.05)
    return SQUARE


def caution(art: Canvas, inks: Inks) -> Outline:
    """An exclamation mark in a white triangle with a red rim, point up."""
    art.polygon(shrunk(UP, 0.96), inks["red"])
    art.polygon(shrunk(UP, 0.62), inks["white"])
    art.polygon(((0.45, 0.4), (0.55, 0.4), (0.53, 0.66), (0.47, 0.66)), inks["black"])
    art.ellipse(0.5, 0.74, 0.045, 0.045, inks["black"])
    return UP


PAINTERS: tuple[Callable[[Canvas, Inks], Outline], ...] = (
    speed_limit("30"),
    speed_limit("50"),
    speed_limit("80"),
    stop,
    give_way,
    no_entry,
    priority_road,
    turn_ahead(-1),
    turn_ahead(1),
    roundabout,
    pedestrian_crossing,
    caution,
)


def aged_inks(rng: np.random.Generator, wild: float) -> Inks:
    """The five inks after some years outdoors: paler, and (`wild`) off their hue."""
    drift, fade = 0.008 + 0.06 * wild, rng.uniform(0.65 - 0.4 * wild, 1)
    hues = {"red": 0.99, "blue": 0.6, "yellow": 0.13}
    inks = {name: hsv(hue + rng.normal(0, drift), 0.95 * fade, rng.uniform(0.6, 0.95)) for name, hue in hues.items()}
    inks["white"] = hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.8, 1))
    inks["black"] = hsv(rng.random(), 0.2, rng.uniform(0, 0.3))
    return inks


def roadside(rng: np.random.Generator, wild: float) -> Canvas:
    """What stands behind a sign: two colours of sky, leaves or wall, a few blurred shapes, and the post."""
    near, far = (hsv(rng.random(), rng.uniform(0.05, 0.8), rng.uniform(0.15, 1)) for _ in range(2))
    canvas = Canvas()
    canvas.paste(mix(1.6 * smooth_noise(rng, int(rng.integers(3, 10))) - 0.3, near, far))
    for _ in range(rng.integers(0, 4 + int(4 * wild))):
        x, y = rng.random(2)
        colour = hsv(rng.random(), rng.random(), rng.uniform(0.15, 1))
        width, height = rng.uniform(0.08, 0.4, 2)
        if rng.random() < 0.5:
            canvas.rectangle(x - width, y - height, x + width, y + height, colour)
        else:
            canvas.ellipse(x, y, width, height, colour)
    x = 0.5 + rng.uniform(-0.03, 0.03)
    canvas.rectangle(x - 0.03, 0.5, x + 0.03, 1, jitter(rng, (125, 125, 125), 60))
    return canvas


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """One traffic sign by the road; never mirrored: left and right are two classes; see `worlds.images.drawing`."""
    inks = aged_inks(rng, wild)
    sign, mask = Canvas(inks["white"]), Canvas()
    mask.polygon(PAINTERS[label](sign, inks), (255, 255, 255))
    seen = warp(
        rng,
        # Four plain bands; PIL would spend as long again on the transparency of an RGBA image.
        Image.merge("CMYK", (*sign.image.split(), mask.image.getchannel(0))),
        scale=rng.uniform(0.56 - 0.2 * wild, 0.95 + 0.05 * wild),
        turn=4 + 18 * wild,
        shear=0.04 + 0.2 * wild,
        tilt=0.05 + 0.5 * wild,
        shift=0.06 + 0.1 * wild,
    )
    canvas = roadside(rng, wild)
    *bands, outline = seen.split()
    canvas.image.paste(Image.merge("RGB", bands), (0, 0), outline)
    light = rng.uniform(0.3, 1.1) * (0.75 + 0.5 * smooth_noise(rng, 2, SIZE)[..., None])  # dusk, noon, shade
    image = np.minimum(canvas.finish() * light, 255).astype(np.uint8)
    return nuisance(rng, image, wild)

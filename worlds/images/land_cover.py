"""Land cover from a satellite, after EuroSAT: ten textures in the muted colours of one season after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worlds.images import canvas
from worlds.images.canvas import Canvas, Colour, Point, jitter

ALIASES: dict[str, tuple[str, ...]] = {
    "annual crop": ("ploughed fields", "arable farmland", "wheat acreage"),
    "forest": ("dense woodland", "tree cover", "closed canopy"),
    "herbaceous vegetation": ("shrubs and wild herbs", "scrubland", "heath"),
    "highway": ("motorway", "a main road through fields", "dual carriageway"),
    "industrial buildings": ("factory halls", "warehouses", "a business park"),
    "pasture": ("grazing land", "hedged grassland", "meadows for cattle"),
    "permanent crop": ("orchard", "vineyard rows", "olive plantation"),
    "residential area": ("housing", "a suburb", "town streets with homes"),
    "river": ("winding stream", "waterway with banks", "meandering creek"),
    "sea or lake": ("open water", "ocean surface", "a reservoir"),
}
CLASSES = tuple(ALIASES)
TEMPLATES = ("a centered satellite photo of {}.", "a satellite image of {}.", "land cover seen from space: {}.")

# Lush, dry, bare, dark green, heath: every kind of land may wear any of them.
LAND: tuple[Colour, ...] = ((88, 108, 66), (140, 126, 88), (122, 98, 78), (60, 84, 62), (104, 104, 76), (112, 124, 74))
WATER: tuple[Colour, ...] = ((38, 62, 88), (48, 78, 82), (64, 80, 70), (54, 88, 108))
WOOD: tuple[Colour, ...] = ((42, 66, 48), (52, 76, 58), (58, 70, 46), (40, 60, 62))
PALE = (182, 178, 168)


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...], amount: float = 14) -> Colour:
    return jitter(rng, colours[rng.integers(len(colours))], amount)


def _dark(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, factor * part)) for part in colour)
    return red, green, blue


def _texture(rng: np.random.Generator, low: Colour, high: Colour, cells: int, grain: int = 0) -> Canvas:
    """A canvas of two colours blended by smooth noise, with a finer noise on top where `grain` is set."""
    side = canvas.SIZE  # the eye cannot tell a noise field from its enlargement, and it costs a ninth
    field = canvas.smooth_noise(rng, cells, side)
    if grain:
        field = 0.5 * field + 0.5 * canvas.smooth_noise(rng, grain, side)
    art = Canvas()
    art.paste(canvas.mix(field, low, high).repeat(canvas.SCALE, axis=0).repeat(canvas.SCALE, axis=1))
    return art


def _fields(rng: np.random.Generator, art: Canvas, cuts: int, amount: float, border: float) -> None:
    """Split the square into about `cuts` x `cuts` slightly crooked parcels, each in a colour of its own."""
    inner = np.linspace(0, 1, cuts + 1) + rng.uniform(-0.3, 0.3, cuts + 1) / cuts
    rows = np.linspace(0, 1, cuts + 1) + rng.uniform(-0.3, 0.3, cuts + 1) / cuts
    inner[0] = rows[0] = -0.1
    inner[-1] = rows[-1] = 1.1
    base, skew = LAND[rng.integers(len(LAND))], rng.uniform(-0.1, 0.1)
    for column in range(cuts):
        for row in range(cuts):
            left, right, top, low = inner[column], inner[column + 1] - border, rows[row], rows[row + 1] - border
            paint = jitter(rng, base, amount) if rng.random() < 0.4 else _pick(rng, LAND, amount)
            art.polygon(
                [
                    (left + skew * top, top),
                    (right + skew * top, top),
                    (right + skew * low, low),
                    (left + skew * low, low),
                ],
                paint,
            )


def _furrows(rng: np.random.Generator, art: Canvas, x: float, y: float, reach: float) -> None:
    """Parallel lines of tillage in a square parcel."""
    paint, vertical = _pick(rng, LAND, 20), rng.random() < 0.5
    for offset in np.arange(-reach, reach, 0.09):
        line = (
            [(x + offset, y - reach), (x + offset, y + reach)]
            if vertical
            else [(x - reach, y + offset), (x + reach, y + offset)]
        )
        art.line(line, paint, 0.02)


def _winding(rng: np.random.Generator, bend: float) -> list[Point]:
    """A line from the left edge to the right one, bent by up to `bend` of the side."""
    phase, waves, middle = rng.uniform(0, 6.3), rng.uniform(0.4, 1.2), rng.uniform(0.4, 0.6)
    return [(x, middle + bend * np.sin(phase + 6.3 * waves * x)) for x in np.linspace(-0.1, 1.1, 14)]


def _annual(rng: np.random.Generator) -> Canvas:
    art = Canvas(_pick(rng, LAND))
    _fields(rng, art, int(rng.integers(2, 4)), 20, 0.0)
    for x, y in rng.uniform(0.1, 0.9, (rng.integers(0, 3), 2)):
        _furrows(rng, art, x, y, rng.uniform(0.12, 0.25))
    return art


def _forest(rng: np.random.Generator) -> Canvas:
    wood = _pick(rng, WOOD, 10)
    art = _texture(rng, _dark(wood, 0.5), _dark(wood, 1.55), int(rng.integers(4, 7)), 20)
    if rng.random() < 0.3:  # a clearing
        art.ellipse(*rng.uniform(0.1, 0.9, 2), rng.uniform(0.06, 0.14), 0.08, _pick(rng, LAND))
    return art


def _herbs(rng: np.random.Generator) -> Canvas:
    art = _texture(rng, _pick(rng, LAND), _pick(rng, LAND, 20), int(rng.integers(4, 8)), 16)
    shrub = _dark(_pick(rng, WOOD), 0.85)
    for x, y in rng.random((rng.integers(20, 40), 2)):
        art.ellipse(x, y, rng.uniform(0.015, 0.045), rng.uniform(0.015, 0.045), jitter(rng, shrub, 12))
    return art


def _highway(rng: np.random.Generator) -> Canvas:
    art = Canvas(_pick(rng, LAND))
    _fields(rng, art, int(rng.integers(2, 4)), 16, 0.0)
    course, width = _winding(rng, rng.uniform(0, 0.1)), rng.uniform(0.07, 0.12)
    if rng.random() < 0.5:  # a slip road or a road that crosses
        art.line(
            [(rng.uniform(0, 1), -0.1), course[7], (rng.uniform(0, 1), 1.1)], _pick(rng, (PALE, (136, 132, 128))), 0.04
        )
    art.line(course, _pick(rng, (PALE, (136, 132, 128), (104, 104, 108))), width)
    art.line(course, _pick(rng, ((92, 100, 74), (84, 84, 88))), 0.018)  # the central strip
    return art


def _industry(rng: np.random.Generator) -> Canvas:
    art = _texture(rng, _pick(rng, ((118, 114, 110), (96, 96, 92))), _pick(rng, LAND), 4)
    for x, y in rng.uniform(0, 1, (rng.integers(6, 12), 2)):
        half, deep = rng.uniform(0.06, 0.19), rng.uniform(0.05, 0.12)
        roof = _pick(rng, (PALE, (214, 214, 212), (150, 160, 176), (168, 112, 96), (112, 112, 116)))
        art.rectangle(x - half + 0.02, y - deep + 0.02, x + half + 0.03, y + deep + 0.03, (54, 54, 56))
        art.rectangle(x - half, y - deep, x + half, y + deep, roof)
    art.line([(-0.1, rng.uniform(0.2, 0.8)), (1.1, rng.uniform(0.2, 0.8))], (128, 126, 122), 0.04)
    return art


def _pasture(rng: np.random.Generator) -> Canvas:
    meadow = _pick(rng, ((88, 108, 66), (112, 124, 74), (96, 120, 82), (128, 124, 84)))
    art = _texture(rng, _dark(meadow, 0.88), _dark(meadow, 1.12), int(rng.integers(3, 5)))
    hedge = _pick(rng, WOOD)
    for _ in range(rng.integers(2, 4)):
        start, end = rng.uniform(-0.2, 1.2, (2, 2))
        start[0], end[0] = -0.1, 1.1
        if rng.random() < 0.5:
            start, end = start[::-1], end[::-1]
        art.line([tuple(start), tuple(end)], hedge, rng.uniform(0.03, 0.05))
    for x, y in rng.random((rng.integers(0, 4), 2)):
        art.ellipse(x, y, 0.035, 0.035, hedge)
    return art


def _orchard(rng: np.random.Generator) -> Canvas:
    art = Canvas(_pick(rng, LAND))
    _fields(rng, art, int(rng.integers(1, 3)), 16, 0.0)
    pitch, slope, plant = rng.uniform(0.085, 0.13), rng.uniform(-0.25, 0.25), _pick(rng, WOOD)
    left, right, top, low = *rng.uniform((-0.1, 0.8), (0.15, 1.1)), *rng.uniform((-0.1, 0.8), (0.15, 1.1))
    trees = rng.random() < 0.6  # single crowns, or the unbroken rows of a vineyard
    for y in np.arange(top, low, pitch):
        if not trees:
            art.line([(left, y + slope * left), (right, y + slope * right)], plant, 0.4 * pitch)
            continue
        for x in np.arange(left, right, pitch):
            if rng.random() < 0.92:
                art.ellipse(x, y + slope * x, 0.33 * pitch, 0.33 * pitch, plant)
    return art


def _homes(rng: np.random.Generator) -> Canvas:
    art = _texture(rng, _pick(rng, LAND), _pick(rng, WOOD), 7)
    street, pitch = _pick(rng, (PALE, (136, 132, 128), (116, 112, 110))), rng.uniform(0.22, 0.32)
    for offset in np.arange(rng.uniform(0, 0.15), 1.1, pitch):
        tilt = rng.uniform(-0.06, 0.06)
        art.line([(-0.1, offset), (1.1, offset + tilt)], street, 0.03)
        for x in np.arange(rng.uniform(-0.03, 0.05), 1, 0.13):
            roof = _pick(rng, ((168, 112, 96), PALE, (140, 124, 116), (190, 150, 132)))
            y = offset + tilt * x + rng.choice((-0.08, 0.08)) + rng.uniform(-0.015, 0.015)
            art.rectangle(x - 0.033, y - 0.03, x + 0.033, y + 0.03, roof)
    if rng.random() < 0.7:
        art.line([(rng.uniform(0, 1), -0.1), (rng.uniform(0, 1), 1.1)], street, 0.035)
    return art


def _river(rng: np.random.Generator) -> Canvas:
    art = Canvas(_pick(rng, LAND))
    _fields(rng, art, int(rng.integers(2, 4)), 16, 0.0)
    course, width = _winding(rng, rng.uniform(0.06, 0.24)), rng.uniform(0.1, 0.28)
    art.line(course, _pick(rng, (*WOOD, PALE)), width + 0.07)
    art.line(course, _pick(rng, WATER), width)
    return art


def _water(rng: np.random.Generator) -> Canvas:
    deep = _pick(rng, (*WATER, *WATER, *WOOD), 12)
    art = _texture(rng, _dark(deep, 0.92), _dark(deep, 1.1), 2, int(rng.choice((0, 3, 10))))
    if rng.random() < 0.45:  # a corner of the shore
        start, end = rng.uniform(0.15, 0.5, 2)
        art.polygon([(-0.1, -0.1), (start, -0.1), (0.5 * start, 0.5 * end), (-0.1, end)], _pick(rng, LAND))
    return art


PAINTERS: tuple[Callable[[np.random.Generator], Canvas], ...] = (
    _annual, _forest, _herbs, _highway, _industry,
    _pasture, _orchard, _homes, _river, _water,
)  # fmt: skip


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """Draw one tile of land; see `worlds.images.drawing`."""
    art = PAINTERS[label](rng)
    image = canvas.camera(rng, art, 0.05 + 0.3 * wild, 180).astype(np.float32)
    # Season and air, the same for all classes: a gain per channel, and haze that lifts the dark parts.
    haze = rng.uniform(0, 0.15 + 0.3 * wild)
    gain = rng.uniform(0.95 - 0.15 * wild, 1.25 + 0.15 * wild) * rng.uniform(1 - 0.25 * wild, 1 + 0.25 * wild, 3)
    image = image * gain * (1 - haze) + haze * np.asarray((150, 158, 168))
    return canvas.nuisance(rng, np.clip(image, 0, 255).astype(np.uint8), wild)

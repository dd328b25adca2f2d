"""Places from the air, after RESISC45: twelve layouts of roads, roofs and water, turned any way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worlds.images import canvas
from worlds.images.canvas import Canvas, Colour, Point, jitter

ALIASES: dict[str, tuple[str, ...]] = {
    "airport runway": ("landing strip", "airfield tarmac", "aerodrome"),
    "roundabout": ("traffic circle", "rotary junction", "gyratory"),
    "parking lot": ("car park", "rows of parked cars", "motor pool"),
    "stadium": ("sports arena", "football ground", "athletics track with stands"),
    "harbour pier": ("marina jetties", "docks with moored boats", "quay"),
    "tennis court": ("racket sports pitches", "tennis club grounds", "hard courts"),
    "storage tanks": ("oil depot", "fuel reservoirs", "round silos"),
    "river": ("winding stream", "meandering waterway", "creek"),
    "bridge": ("water crossing", "viaduct", "overpass across a channel"),
    "crossroads": ("intersection", "road junction", "where two streets meet"),
    "residential blocks": ("suburb", "neighbourhood with houses", "housing estate"),
    "golf course": ("fairways and bunkers", "putting greens", "golfing links"),
}
CLASSES = tuple(ALIASES)
TEMPLATES = ("an aerial photo of a {}.", "satellite imagery of a {}.", "a {} seen from above.")

GRASS, DRY, PAVED, SOIL, TREE = (104, 132, 76), (168, 158, 112), (142, 140, 134), (142, 116, 88), (58, 86, 54)
GROUNDS: tuple[Colour, ...] = (GRASS, DRY, PAVED, SOIL, (126, 138, 108))
WATERS: tuple[Colour, ...] = ((50, 88, 112), (74, 104, 96), (96, 108, 92), (64, 112, 132))
ROOFS: tuple[Colour, ...] = ((168, 96, 74), (190, 184, 176), (112, 108, 110), (146, 120, 98), (206, 200, 196))
WHITE = (236, 236, 230)


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...], amount: float = 16) -> Colour:
    return jitter(rng, colours[rng.integers(len(colours))], amount)


def _dark(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, factor * part)) for part in colour)
    return red, green, blue


def _asphalt(rng: np.random.Generator) -> Colour:
    return _pick(rng, ((92, 92, 96), (118, 116, 114), (150, 146, 140)), 12)


def _trees(rng: np.random.Generator, art: Canvas, count: int) -> None:
    for x, y in rng.random((count, 2)):
        size = rng.uniform(0.02, 0.05)
        art.ellipse(x + 0.012, y + 0.012, size, size, (44, 58, 44))
        art.ellipse(x, y, size, size, jitter(rng, TREE))


def _house(rng: np.random.Generator, art: Canvas, x: float, y: float, half: float, depth: float) -> None:
    """A pitched roof with a shadow, centre (x, y)."""
    roof = _pick(rng, ROOFS)
    art.rectangle(x - half + 0.02, y - depth + 0.02, x + half + 0.025, y + depth + 0.025, (56, 58, 56))
    art.rectangle(x - half, y - depth, x + half, y + depth, roof)
    art.rectangle(x - half, y, x + half, y + depth, _dark(roof, 0.74))


def _scatter(rng: np.random.Generator, art: Canvas, wild: float) -> None:
    """What may lie around any place: patches of other ground, trees, a few houses."""
    for x, y in rng.random((rng.integers(1, 4), 2)):
        art.rectangle(x, y, x + rng.uniform(0.1, 0.5), y + rng.uniform(0.1, 0.5), _pick(rng, GROUNDS))
    _trees(rng, art, int(rng.integers(2, 9 + int(8 * wild))))
    for x, y in rng.random((rng.integers(0, 5), 2)):
        _house(rng, art, x, y, rng.uniform(0.03, 0.06), rng.uniform(0.03, 0.05))


def _curve(rng: np.random.Generator, bend: float) -> list[Point]:
    """A winding line from the left edge to the right one through the middle."""
    phase, waves = rng.uniform(0, 6.3), rng.uniform(0.7, 1.5)
    return [(x, 0.5 + bend * np.sin(phase + 6.3 * waves * x)) for x in np.linspace(-0.1, 1.1, 16)]


def _runway(rng: np.random.Generator, art: Canvas) -> None:
    strip, half = _asphalt(rng), rng.uniform(0.06, 0.11)
    middle = 0.5 + rng.uniform(-0.1, 0.1)
    side = middle + rng.choice((-1, 1)) * rng.uniform(0.24, 0.3)
    art.rectangle(-0.1, side - 0.03, 1.1, side + 0.03, strip)
    for x in rng.random(2):
        art.line([(x, middle), (x + 0.12, side)], strip, 0.05)
    end = rng.uniform(0.1, 0.28) if rng.random() < 0.6 else -0.2
    art.rectangle(end, middle - half, 1.1, middle + half, strip)
    for x in np.arange(end + 0.16, 1.1, 0.12):
        art.line([(x, middle), (x + 0.06, middle)], WHITE, 0.02)
    for offset in np.linspace(-0.75, 0.75, 4) * half:  # the threshold's piano keys
        art.line([(end + 0.02, middle + offset), (end + 0.1, middle + offset)], WHITE, 0.02)
    if rng.random() < 0.5:  # an aeroplane
        x, y = rng.uniform(0.3, 0.7), rng.choice((middle, side))
        art.line([(x - 0.09, y), (x + 0.09, y)], (246, 246, 246), 0.035)
        art.polygon([(x + 0.03, y), (x - 0.04, y - 0.1), (x - 0.02, y), (x - 0.04, y + 0.1)], (246, 246, 246))


def _roundabout(rng: np.random.Generator, art: Canvas) -> None:
    road, size, width = _asphalt(rng), rng.uniform(0.17, 0.26), rng.uniform(0.08, 0.11)
    arms = int(rng.integers(3, 6))
    for arm in range(arms):
        angle = 6.283 * (arm + rng.uniform(-0.12, 0.12)) / arms
        end = (0.5 + np.cos(angle), 0.5 + np.sin(angle))
        art.line([(0.5, 0.5), end], road, width)
        if rng.random() < 0.5:
            art.line([(0.5, 0.5), end], WHITE, 0.015)
    art.ellipse(0.5, 0.5, size, size, road)
    inner = size - width
    art.ellipse(0.5, 0.5, inner, inner, _pick(rng, (GRASS, DRY, PAVED)))
    if rng.random() < 0.5:
        art.ellipse(0.5, 0.5, 0.4 * inner, 0.4 * inner, _pick(rng, (TREE, WHITE, SOIL)))


def _parked_car(rng: np.random.Generator, art: Canvas, x: float, y: float) -> None:
    paint = _pick(rng, (WHITE, (40, 42, 48), (170, 44, 40), (60, 86, 150), (150, 152, 156)), 24)
    art.rectangle(x - 0.023, y - 0.048, x + 0.023, y + 0.048, paint)
    art.rectangle(x - 0.018, y - 0.02, x + 0.018, y - 0.004, (40, 48, 60))


def _parking(rng: np.random.Generator, art: Canvas) -> None:
    left, right, top, low = *rng.uniform((-0.1, 0.82), (0.18, 1.1)), *rng.uniform((-0.1, 0.82), (0.18, 1.1))
    art.rectangle(left, top, right, low, _asphalt(rng))
    full, pitch = rng.uniform(0.45, 0.95), rng.uniform(0.075, 0.09)
    for row in np.arange(top + 0.06, low - 0.04, rng.uniform(0.18, 0.23)):
        for x in np.arange(left + 0.05, right - 0.03, pitch):
            art.line([(x - pitch / 2, row - 0.045), (x - pitch / 2, row + 0.045)], (206, 206, 200), 0.011)
            if rng.random() < full:
                _parked_car(rng, art, x, row)


def _stadium(rng: np.random.Generator, art: Canvas) -> None:
    long, short = rng.uniform(0.34, 0.42), rng.uniform(0.25, 0.33)
    art.ellipse(0.53, 0.53, long, short, (52, 54, 54))
    stands = _pick(rng, ((196, 194, 190), (128, 136, 152), (150, 100, 88)))
    art.ellipse(0.5, 0.5, long, short, stands)
    for angle in np.arange(0, 6.28, 0.39):  # the aisles
        art.line([(0.5, 0.5), (0.5 + long * np.cos(angle), 0.5 + short * np.sin(angle))], _dark(stands, 0.8), 0.012)
    ring = rng.uniform(0.62, 0.74)
    art.ellipse(0.5, 0.5, ring * long, ring * short, _pick(rng, ((178, 92, 70), PAVED, GRASS)))
    x, y = 0.5 * long, 0.42 * short
    pitch = _pick(rng, ((84, 140, 64), GRASS, DRY))
    art.rectangle(0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y, pitch)
    art.line([(0.5, 0.5 - y), (0.5, 0.5 + y)], WHITE, 0.014)


def _pier(rng: np.random.Generator, art: Canvas) -> None:
    shore = rng.uniform(0.24, 0.4)
    art.rectangle(-0.1, shore, 1.1, 1.1, _pick(rng, WATERS))
    art.rectangle(-0.1, shore - 0.05, 1.1, shore, _pick(rng, (PAVED, SOIL)))
    deck = _pick(rng, ((176, 162, 140), (150, 126, 98), (200, 198, 192)))
    for x in np.arange(rng.uniform(0.1, 0.25), 1, rng.uniform(0.24, 0.36)):
        end = rng.uniform(0.75, 0.98)
        art.line([(x, shore), (x, end)], deck, 0.035)
        for y in np.arange(shore + 0.07, end, 0.085):
            for side in (-1, 1):
                if rng.random() < 0.75:
                    near, far = x + side * 0.025, x + side * rng.uniform(0.08, 0.11)
                    hull = _pick(rng, (WHITE, WHITE, (196, 200, 206), (70, 90, 130)))
                    art.polygon([(near, y - 0.025), (far - side * 0.02, y - 0.022), (far, y), (near, y + 0.02)], hull)


def _tennis(rng: np.random.Generator, art: Canvas) -> None:
    outer = _pick(rng, ((70, 112, 84), (84, 130, 84), (168, 96, 72), PAVED))
    inner = _pick(rng, ((62, 98, 148), (184, 104, 76), (92, 142, 98), (112, 120, 146)))
    columns, half, deep = int(rng.integers(1, 4)), 0.09, 0.19
    start = 0.5 - 0.13 * (columns - 1)
    art.rectangle(start - 0.15, 0.22, start + 0.26 * (columns - 1) + 0.15, 0.78, outer)
    for column in range(columns):
        x = start + 0.26 * column
        art.rectangle(x - half - 0.013, 0.5 - deep - 0.013, x + half + 0.013, 0.5 + deep + 0.013, WHITE)
        art.rectangle(x - half, 0.5 - deep, x + half, 0.5 + deep, inner)
        for y in (-0.095, 0.095):
            art.line([(x - half, 0.5 + y), (x + half, 0.5 + y)], WHITE, 0.016)
        art.line([(x, 0.405), (x, 0.595)], WHITE, 0.016)
        art.line([(x - half - 0.03, 0.5), (x + half + 0.03, 0.5)], (48, 56, 60), 0.02)


def _tanks(rng: np.random.Generator, art: Canvas) -> None:
    if rng.random() < 0.6:
        art.rectangle(0.08, 0.08, 0.92, 0.92, _pick(rng, (PAVED, SOIL, DRY)))
    pitch = rng.uniform(0.24, 0.36)
    size, paint = (
        pitch * rng.uniform(0.34, 0.44),
        _pick(rng, (WHITE, (186, 190, 190), (150, 152, 140), (170, 130, 100))),
    )
    art.line([(0.1, 0.5 + pitch / 2), (0.9, 0.5 + pitch / 2)], _dark(paint, 0.7), 0.02)
    count = max(2, int(0.84 / pitch))
    for x, y in np.ndindex(count, count):
        if rng.random() < 0.85:
            place = 0.5 + pitch * (np.array((x, y)) - (count - 1) / 2) + rng.uniform(-0.015, 0.015, 2)
            art.ellipse(*(place + 0.3 * size), size, size, (60, 60, 60))
            art.ellipse(*place, size, size, _dark(paint, 0.82))
            art.ellipse(*place, 0.84 * size, 0.84 * size, jitter(rng, paint, 10))


def _river(rng: np.random.Generator, art: Canvas) -> None:
    course, width, water = _curve(rng, rng.uniform(0.06, 0.2)), rng.uniform(0.12, 0.26), _pick(rng, WATERS)
    art.line(course, _pick(rng, (TREE, DRY, (190, 178, 146))), width + 0.06)
    art.line(course, water, width)
    if rng.random() < 0.3:
        art.ellipse(*course[rng.integers(5, 11)], 0.08, 0.03, _pick(rng, (DRY, TREE)))


def _bridge(rng: np.random.Generator, art: Canvas) -> None:
    course, width = _curve(rng, rng.uniform(0.0, 0.06)), rng.uniform(0.3, 0.5)
    art.line(course, _pick(rng, (TREE, DRY, (190, 178, 146))), width + 0.06)
    art.line(course, _pick(rng, WATERS), width)
    top, low, half = *rng.uniform(0.38, 0.62, 2), rng.uniform(0.04, 0.075)
    line = [(top - (low - top), -0.5), (low + (low - top), 1.5)]
    art.line([(x + 0.05, y) for x, y in line], (40, 54, 62), 2 * half)
    art.line(line, WHITE, 2 * half + 0.025)
    art.line(line, _asphalt(rng), 2 * half)
    art.line(line, _pick(rng, (WHITE, (224, 190, 90))), 0.014)


def _crossroads(rng: np.random.Generator, art: Canvas) -> None:
    for x, y in ((0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)):
        if rng.random() < 0.6:
            _house(rng, art, x, y, rng.uniform(0.06, 0.12), rng.uniform(0.06, 0.12))
    road, skew, width = _asphalt(rng), rng.uniform(-0.2, 0.2), rng.uniform(0.1, 0.17)
    for line in ([(-0.2, 0.5), (1.2, 0.5)], [(0.5 - skew, -0.1), (0.5 + skew, 1.1)]):
        art.line(line, road, width)
        art.line(line, WHITE, 0.016)
    art.rectangle(0.5 - width / 2, 0.5 - width / 2, 0.5 + width / 2, 0.5 + width / 2, road)
    for side in (-1, 1) if rng.random() < 0.7 else ():  # zebra crossings
        for offset in np.linspace(-0.4, 0.4, 4) * width:
            x = 0.5 + side * (width / 2 + 0.05)
            art.line([(x - 0.025, 0.5 + offset), (x + 0.025, 0.5 + offset)], WHITE, 0.018)
    for x in rng.uniform(0.05, 0.95, 3):
        art.rectangle(x, 0.51, x + 0.06, 0.51 + 0.3 * width, _pick(rng, (WHITE, (170, 44, 40), (46, 50, 60))))


def _residential(rng: np.random.Generator, art: Canvas) -> None:
    road, pitch = _asphalt(rng), rng.uniform(0.14, 0.19)
    for street in (0.18, 0.66) if rng.random() < 0.5 else (0.42, 0.92):
        art.rectangle(-0.1, street - 0.03, 1.1, street + 0.03, road)
        for row in (street - 0.12, street + 0.12):
            for x in np.arange(rng.uniform(-0.05, 0.08), 1.05, pitch):
                if rng.random() < 0.9:
                    _house(
                        rng, art, x, row + rng.uniform(-0.02, 0.02), rng.uniform(0.04, 0.055), rng.uniform(0.04, 0.055)
                    )
    if rng.random() < 0.5:
        x = rng.uniform(0.2, 0.8)
        art.rectangle(x - 0.03, -0.1, x + 0.03, 1.1, road)
    _trees(rng, art, 8)


def _golf(rng: np.random.Generator, art: Canvas) -> None:
    art.rectangle(-0.1, -0.1, 1.1, 1.1, _pick(rng, (GRASS, (126, 138, 108), DRY, (84, 112, 66))))
    _trees(rng, art, 12)
    fairway = _pick(rng, ((140, 180, 92), (160, 192, 112), (124, 166, 82)), 10)
    for _ in range(rng.integers(1, 3)):
        start, end = rng.uniform(0.15, 0.85, (2, 2))
        for share in np.linspace(0, 1, 6):
            x, y = start + (end - start) * share + rng.uniform(-0.03, 0.03, 2)
            art.ellipse(x, y, 0.11, 0.1, fairway)
        art.ellipse(*end, 0.075, 0.07, _dark(fairway, 1.14))
    for x, y in rng.uniform(0.15, 0.85, (rng.integers(3, 7), 2)):
        sand = jitter(rng, (226, 212, 170), 12)
        art.ellipse(x, y, rng.uniform(0.03, 0.06), rng.uniform(0.025, 0.045), sand)
        art.ellipse(x + 0.035, y + 0.02, 0.03, 0.025, sand)
    if rng.random() < 0.4:
        art.ellipse(*rng.uniform(0.2, 0.8, 2), 0.1, 0.07, _pick(rng, WATERS))


PAINTERS: tuple[Callable[[np.random.Generator, Canvas], None], ...] = (
    _runway, _roundabout, _parking, _stadium, _pier, _tennis,
    _tanks, _river, _bridge, _crossroads, _residential, _golf,
)  # fmt: skip


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """Draw one place from above; see `worlds.images.drawing`."""
    art = Canvas(_pick(rng, GROUNDS, 16 + 24 * wild))
    _scatter(rng, art, wild)
    PAINTERS[label](rng, art)
    image = canvas.camera(rng, art, 0.05 + 0.3 * wild, 180)
    return canvas.nuisance(rng, image, wild)

"""Scenes seen from eye level, after SUN397: twelve places drawn under shared skies and shared light."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worlds.images import canvas, landscape
from worlds.images.canvas import Canvas, jitter
from worlds.images.landscape import GREEN, ROCK, SAND, SKIES, SNOW, SOIL, STRAW, Sky

ALIASES: dict[str, tuple[str, ...]] = {
    "beach": ("seaside", "sandy shore", "coast with surf"),
    "desert": ("sand dunes", "arid wasteland", "the Sahara"),
    "forest": ("woodland", "woods", "a grove of trees"),
    "mountain": ("snow-capped peaks", "an alpine summit", "rocky ridge"),
    "city skyline": ("skyscrapers", "downtown high-rises", "urban towers"),
    "meadow": ("wildflowers in the grass", "blooming grassland", "a flowery field"),
    "snowfield": ("winter landscape", "fresh powder", "frozen plain"),
    "night sky": ("stars and the moon", "the Milky Way", "starry heavens"),
    "harbour": ("marina", "sailing boats at anchor", "a yacht port"),
    "road": ("highway", "asphalt lane", "an empty street"),
    "waterfall": ("cascade", "falls over a cliff", "plunging stream"),
    "interior room": ("living space", "a lounge with a sofa", "indoors at home"),
}
CLASSES = tuple(ALIASES)
TEMPLATES = ("a photo of a {}.", "a picture of the scene: {}.", "a view of a {}.")

Painter = Callable[[np.random.Generator, Canvas, float, Sky], None]


def _beach(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    sea = jitter(rng, ((40, 120, 160), (60, 150, 165), (80, 110, 130))[rng.integers(3)])
    landscape.sun(rng, art, horizon)
    art.rectangle(0, horizon, 1, 1, sea)
    landscape.strokes(rng, art, horizon, jitter(rng, sea, 40), 6, 0.95)
    left, right = horizon + rng.uniform(0.12, 0.4, 2)
    bend = (left + right) / 2 + rng.uniform(-0.08, 0.08)
    edge = [
        (-0.1, left),
        (0.25, (left + bend) / 2 + 0.02),
        (0.5, bend),
        (0.75, (right + bend) / 2 - 0.02),
        (1.1, right),
    ]
    art.polygon([(-0.1, 1.1), *edge, (1.1, 1.1)], jitter(rng, (SAND, STRAW, (196, 180, 160))[rng.integers(3)]))
    art.line(edge, (244, 246, 244), rng.uniform(0.03, 0.07))
    if rng.random() < 0.5:  # a parasol
        x, y = rng.uniform(0.15, 0.85), max(left, right) + rng.uniform(0.05, 0.2)
        art.line([(x, y - 0.18), (x, y + 0.06)], (240, 236, 226), 0.02)
        art.polygon([(x - 0.15, y - 0.13), (x, y - 0.26), (x + 0.15, y - 0.13)], canvas.hsv(rng.random(), 0.75, 0.9))


def _desert(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    sand = jitter(rng, (SAND, STRAW, (206, 140, 88), (222, 205, 176))[rng.integers(4)])
    landscape.sun(rng, art, horizon)
    for layer in range(3):  # dunes: a lit slope and a shaded one meeting in a curved crest
        x, y = rng.uniform(0.1, 0.9), horizon + 0.2 * layer + rng.uniform(-0.1, 0.02)
        foot = y + rng.uniform(0.1, 0.2)
        art.polygon([(-0.2, foot), (x, y), (1.2, foot), (1.2, 1.1), (-0.2, 1.1)], sand)
        shade = jitter(rng, tuple(int(0.68 * part) for part in sand), 8)
        art.polygon([(x, y), (x + 0.12, foot), (x - 0.05, 1.1), (1.2, 1.1), (1.2, foot)], shade)
    if rng.random() < 0.35:  # a cactus
        x, y = rng.uniform(0.15, 0.85), rng.uniform(0.75, 0.95)
        art.line([(x, y), (x, y - 0.32)], (70, 100, 62), 0.06)
        art.line(
            [(x - 0.1, y - 0.24), (x - 0.1, y - 0.13), (x + 0.1, y - 0.13), (x + 0.1, y - 0.27)], (70, 100, 62), 0.04
        )


def _forest(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    leaf = jitter(rng, (GREEN, (60, 96, 60), (176, 120, 48), (120, 138, 108))[rng.integers(4)])
    dim = tuple(int(0.6 * part) for part in leaf)
    ground = rng.uniform(0.65, 0.85)
    art.rectangle(0, rng.uniform(0.0, 0.3), 1, 1, jitter(rng, dim))
    art.rectangle(0, ground, 1, 1, jitter(rng, (SOIL, GREEN, STRAW, SNOW)[rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))]))
    bark = jitter(rng, ((62, 48, 40), (92, 76, 64), (205, 200, 190))[rng.integers(3)])
    for _ in range(rng.integers(5, 10)):
        x, near = rng.uniform(0, 1), rng.random()
        foot, width = ground + 0.25 * (near - 0.3), 0.025 + 0.06 * near
        art.line([(x, foot), (x + rng.uniform(-0.05, 0.05), -0.1)], jitter(rng, bark), width)
    for x, y in rng.random((14, 2)):
        art.ellipse(x, 0.38 * y, rng.uniform(0.07, 0.15), rng.uniform(0.05, 0.1), jitter(rng, leaf, 24))


def _mountain(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    rock = jitter(rng, (ROCK, (92, 100, 122), (140, 116, 98))[rng.integers(3)])
    shade = tuple(int(0.66 * part) for part in rock)
    for _ in range(rng.integers(2, 4)):
        x, y, half = rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.3), rng.uniform(0.4, 0.65)
        foot, bend = 0.85, rng.uniform(-0.1, 0.1)
        art.polygon([(x - half, foot), (x, y), (x + half, foot)], rock)
        art.polygon([(x, y), (x + bend, y + 0.25), (x + half * 0.1, foot), (x + half, foot)], shade)
        cap = rng.uniform(0.25, 0.45)
        low, side = y + cap * (foot - y), cap * half
        art.polygon(
            [
                (x, y),
                (x + side, low),
                (x + 0.4 * side, low - 0.06),
                (x, low + 0.04),
                (x - 0.5 * side, low - 0.05),
                (x - side, low),
            ],
            SNOW,
        )
    front = rng.integers(4)
    landscape.ridge(
        rng, art, rng.uniform(0.72, 0.88), 0.05, jitter(rng, (GREEN, (70, 96, 74), STRAW, (96, 130, 150))[front])
    )


def _skyline(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    base, dark = rng.uniform(0.78, 0.95), sum(sky[0]) < 330
    stone = jitter(rng, ((96, 104, 120), (150, 140, 130), (70, 78, 96), (170, 176, 184))[rng.integers(4)])
    for layer in range(2):
        x = rng.uniform(-0.1, 0.02)
        while x < 1:
            width, top = rng.uniform(0.1, 0.2), rng.uniform(0.14, 0.55) + 0.14 * layer
            wall = jitter(rng, tuple(int(part * (0.95 - 0.28 * layer)) for part in stone), 24)
            art.rectangle(x, top, x + width, base, wall)
            if rng.random() < 0.3:
                art.line([(x + width / 2, top), (x + width / 2, top - 0.12)], wall, 0.02)
            pane = (250, 222, 140) if dark else jitter(rng, (190, 215, 235))
            for row in np.arange(top + 0.05, base - 0.05, 0.085):
                art.rectangle(x + 0.025, row, x + width - 0.025, row + 0.025, pane if rng.random() < 0.6 else wall)
            x += width + rng.choice((0.0, 0.0, 0.06))
    art.rectangle(0, base, 1, 1, jitter(rng, ((70, 92, 112), GREEN, (90, 90, 94))[rng.integers(3)]))


def _meadow(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    grass = jitter(rng, (GREEN, STRAW, (120, 160, 84))[rng.integers(3)])
    landscape.sun(rng, art, horizon)
    landscape.ridge(rng, art, horizon - 0.05, 0.04, tuple(int(0.75 * part) for part in grass))
    landscape.ridge(rng, art, horizon + 0.04, 0.02, grass)
    landscape.strokes(rng, art, horizon + 0.1, tuple(int(0.8 * part) for part in grass), 24, rng.uniform(-0.3, 0.3))
    bloom = canvas.hsv(rng.choice((0.0, 0.13, 0.6, 0.78, 0.92)), rng.uniform(0.1, 0.8), 0.98)
    for x, y in rng.random((rng.integers(16, 34), 2)):
        size = 0.012 + 0.028 * y
        art.ellipse(x, horizon + 0.08 + (0.9 - horizon) * y, size, size, jitter(rng, bloom, 24))
    if rng.random() < 0.3:
        x = rng.uniform(0.15, 0.85)
        art.rectangle(x - 0.015, horizon - 0.08, x + 0.015, horizon + 0.06, (80, 60, 44))
        art.ellipse(x, horizon - 0.12, 0.1, 0.1, (72, 104, 58))


def _snowfield(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    snow = jitter(rng, (SNOW, (206, 218, 236), (236, 226, 216))[rng.integers(3)], 12)
    if rng.random() < 0.6:
        landscape.ridge(rng, art, horizon - 0.1, 0.06, jitter(rng, (150, 166, 186)))
    for layer in range(3):
        landscape.ridge(
            rng, art, horizon + 0.19 * layer, 0.03, tuple(int(part * (0.9 + 0.05 * layer)) for part in snow), 4
        )
    landscape.strokes(rng, art, horizon + 0.1, tuple(int(0.85 * part) for part in snow), 7, 0.95)
    needles = jitter(rng, ((60, 84, 76), (92, 112, 120), (78, 92, 62))[rng.integers(3)])
    for y in np.sort(rng.uniform(0, 0.3, rng.integers(2, 6))):
        landscape.fir(rng, art, rng.uniform(0.05, 0.95), horizon + 0.05 + y, rng.uniform(0.18, 0.3) + 0.4 * y, needles)


def _night(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    tint = rng.choice((0.58, 0.64, 0.72, 0.8))
    low, side = canvas.hsv(tint + 0.05, 0.5, rng.uniform(0.3, 0.7)), art.side
    art.paste(landscape.gradient(canvas.hsv(tint, 0.7, rng.uniform(0.12, 0.38)), low, side, 1.0))
    if rng.random() < 0.5:  # the Milky Way
        x, slope = rng.uniform(0.2, 0.8), rng.uniform(-0.4, 0.4)
        for y in np.linspace(0, 0.8, 7):
            art.ellipse(x + slope * y, y, 0.1, 0.1, canvas.hsv(tint + 0.04, 0.4, rng.uniform(0.5, 0.65)))
    for x, y in rng.random((rng.integers(16, 40), 2)):
        size = rng.uniform(0.006, 0.02)
        art.ellipse(x, 0.9 * y, size, size, (255, 250, 225))
    if rng.random() < 0.5:
        x, y, size = rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.4), rng.uniform(0.07, 0.12)
        art.ellipse(x, y, size, size, (245, 240, 215))
    ground = jitter(rng, ((22, 26, 36), (56, 60, 74), (90, 98, 118))[rng.integers(3)], 10)
    landscape.ridge(rng, art, rng.uniform(0.72, 0.92), 0.06, ground)


def _harbour(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    water = jitter(rng, ((58, 112, 146), (84, 132, 140), (96, 112, 128), sky[1])[rng.integers(4)])
    if rng.random() < 0.7:
        landscape.ridge(rng, art, horizon - 0.05, 0.03, jitter(rng, ((96, 116, 92), ROCK, SAND)[rng.integers(3)]))
    art.rectangle(0, horizon, 1, 1, water)
    landscape.strokes(rng, art, horizon, jitter(rng, water, 40), 10, 0.95)
    for y in np.sort(rng.uniform(0.05, 0.36, rng.integers(2, 5))):
        x, size, base = rng.uniform(0.1, 0.9), 0.14 + 0.5 * y, horizon + y
        hull = ((236, 236, 232), (190, 50, 44), (36, 60, 110), (110, 72, 46))[rng.integers(4)]
        mast = base - size * rng.uniform(1.0, 1.7)
        art.line([(x, base), (x, mast)], (235, 232, 225), 0.02)
        if rng.random() < 0.55:
            art.polygon([(x + 0.02, mast), (x + 0.02, base - 0.05), (x + 0.7 * size, base - 0.05)], (246, 242, 232))
        low = base + 0.3 * size
        art.polygon(
            [(x - size, base - 0.02), (x + size, base - 0.02), (x + 0.7 * size, low), (x - 0.7 * size, low)], hull
        )
    if rng.random() < 0.5:
        art.polygon([(-0.1, 1.1), (-0.1, 0.88), (rng.uniform(0.5, 1.2), 1.1)], jitter(rng, (150, 120, 88)))


def _road(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    land = jitter(rng, (GREEN, STRAW, SAND, SNOW, (176, 120, 72))[rng.integers(5)])
    if rng.random() < 0.5:
        landscape.ridge(rng, art, horizon - 0.08, 0.06, tuple(int(0.75 * part) for part in land))
    art.rectangle(0, horizon, 1, 1, land)
    landscape.strokes(rng, art, horizon + 0.05, land, 8, 0.2)
    far, near, half = rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.55)
    asphalt = jitter(rng, ((84, 84, 88), (120, 118, 116), (62, 64, 72))[rng.integers(3)])
    art.polygon([(far - 0.02, horizon), (far + 0.02, horizon), (near + half, 1.1), (near - half, 1.1)], asphalt)
    paint = ((240, 238, 230), (236, 196, 70))[rng.integers(2)]
    for depth in (0.08, 0.22, 0.42, 0.75):
        end = depth * 1.45
        start_x, end_x = far + (near - far) * depth, far + (near - far) * end
        top, low = horizon + (1.1 - horizon) * depth, horizon + (1.1 - horizon) * end
        art.line([(start_x, top), (end_x, low)], paint, 0.015 + 0.05 * depth)
    for sign in (-0.88, 0.88) if rng.random() < 0.6 else ():
        art.line([(far, horizon), (near + sign * half, 1.1)], (232, 230, 222), 0.02)


def _waterfall(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    rock = jitter(rng, (ROCK, (84, 92, 84), (132, 100, 78), (74, 82, 96))[rng.integers(4)])
    brow, pool = rng.uniform(0.05, 0.28), rng.uniform(0.72, 0.85)
    landscape.ridge(rng, art, brow, 0.05, rock)
    for x, y in rng.random((12, 2)):
        art.polygon(
            [(x - 0.09, brow + 0.1 + y), (x, brow + 0.05 + y), (x + 0.06, brow + 0.2 + y)], jitter(rng, rock, 32)
        )
    for x in rng.random(8):
        art.ellipse(
            x, brow + rng.uniform(-0.03, 0.08), 0.09, 0.06, jitter(rng, (GREEN, STRAW, (66, 104, 60))[rng.integers(3)])
        )
    art.rectangle(0, pool, 1, 1, jitter(rng, ((70, 128, 140), (66, 104, 120), (92, 130, 110))[rng.integers(3)]))
    for _ in range(rng.integers(1, 3)):
        x, half = rng.uniform(0.2, 0.8), rng.uniform(0.06, 0.14)
        art.polygon(
            [(x - half, brow), (x + half, brow), (x + 1.4 * half, pool + 0.04), (x - 1.4 * half, pool + 0.04)], SNOW
        )
        for offset in rng.uniform(-half, half, 5):
            art.line([(x + offset, brow), (x + 1.3 * offset, pool)], jitter(rng, (180, 204, 216)), 0.015)
        for offset in np.linspace(-1.8, 1.8, 5) * half:
            art.ellipse(x + offset, pool + 0.03, 0.07, 0.045, jitter(rng, SNOW, 12))


def _room(rng: np.random.Generator, art: Canvas, horizon: float, sky: Sky) -> None:
    wall = jitter(
        rng, ((214, 204, 186), (150, 176, 190), (176, 140, 116), (120, 140, 116), (228, 228, 226))[rng.integers(5)]
    )
    left, right, top, low = rng.uniform(0, 0.25), rng.uniform(0.75, 1), rng.uniform(0, 0.14), rng.uniform(0.62, 0.76)
    art.rectangle(0, 0, 1, 1, tuple(int(0.84 * part) for part in wall))
    art.rectangle(left, top, right, low, wall)
    art.polygon([(0, 0), (left, top), (right, top), (1, 0)], (236, 234, 228))
    floor = jitter(rng, ((150, 108, 70), (190, 170, 140), (120, 120, 124))[rng.integers(3)])
    art.polygon([(-0.1, 1.1), (left, low), (right, low), (1.1, 1.1)], floor)
    x, y = rng.uniform(left + 0.05, right - 0.4), top + rng.uniform(0.06, 0.12)
    art.rectangle(x - 0.025, y - 0.025, x + 0.325, y + 0.325, (245, 242, 235))  # a window, or a picture
    art.rectangle(x, y, x + 0.3, y + 0.3, sky[1])
    art.line([(x + 0.15, y), (x + 0.15, y + 0.3)], (245, 242, 235), 0.025)
    fabric = canvas.hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.85))
    x, half, base = rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.32), low + rng.uniform(0.06, 0.16)
    art.rectangle(x - half, base - 0.24, x + half, base, fabric)
    art.rectangle(
        x - half - 0.05, base - 0.13, x + half + 0.05, base + 0.04, tuple(int(0.75 * part) for part in fabric)
    )
    if rng.random() < 0.6:  # a standing lamp
        x = rng.choice((left + 0.05, right - 0.05))
        art.line([(x, 0.4), (x, low + 0.06)], (60, 52, 46), 0.02)
        art.polygon([(x - 0.08, 0.42), (x - 0.04, 0.3), (x + 0.04, 0.3), (x + 0.08, 0.42)], (250, 226, 160))


PAINTERS: tuple[Painter, ...] = (
    _beach, _desert, _forest, _mountain, _skyline, _meadow,
    _snowfield, _night, _harbour, _road, _waterfall, _room,
)  # fmt: skip


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """Draw one scene; see `worlds.images.drawing`."""
    horizon = rng.uniform(0.44 - 0.1 * wild, 0.5 + 0.1 * wild)
    top, bottom = SKIES[rng.integers(len(SKIES))]
    sky = (jitter(rng, top, 10 + 25 * wild), jitter(rng, bottom, 10 + 20 * wild))
    art = Canvas()
    art.paste(landscape.gradient(*sky, art.side, horizon))
    landscape.distance(rng, art, horizon)
    PAINTERS[label](rng, art, horizon, sky)
    if CLASSES[label] != "interior room":
        landscape.foreground(rng, art)
    image = canvas.camera(rng, art, 0.25 + 0.25 * wild, 12 * wild)
    # Light as the sky gives it: every class is seen at noon, in mist and at dusk.
    light = 1 - rng.uniform(0, 0.25 + 0.25 * wild) * (1 - np.asarray(sky[1], dtype=np.float32) / 255)
    return canvas.nuisance(rng, (image * light).astype(np.uint8), wild)

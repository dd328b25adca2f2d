"""Vehicles from the side, after Stanford Cars: ten body styles that share paints, streets and wheels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worlds.images import canvas
from worlds.images.canvas import Canvas, Colour, Point, jitter

ALIASES: dict[str, tuple[str, ...]] = {
    "sedan": ("saloon", "four-door with a boot", "family limousine"),
    "hatchback": ("compact five-door", "supermini", "small city runabout"),
    "coupe": ("sports car", "two-door fastback", "low roadster"),
    "estate car": ("station wagon", "touring combi", "shooting brake"),
    "off-roader": ("4x4", "SUV", "jeep"),
    "pickup truck": ("ute", "flatbed with an open cargo bed"),
    "van": ("minibus", "transporter", "people carrier"),
    "city bus": ("public transport coach", "omnibus", "transit vehicle with many windows"),
    "lorry": ("heavy goods vehicle", "semi-trailer truck", "freight hauler"),
    "tractor": ("farm machine", "agricultural vehicle", "ploughing engine"),
}
CLASSES = tuple(ALIASES)
TEMPLATES = ("a photo of a {}.", "a side view of a {}.", "a photo of the {}, a type of vehicle.")

GLASS, TYRE, RIM, LAMP = (52, 66, 84), (30, 30, 33), (176, 178, 182), (250, 238, 190)

# Of each car: the roof line from tail to nose as (share of the length, height over the sill as a share of the length),
# the wheels' radius and the ground clearance in the same unit.
# The third and the fourth points are always the roof's rear and front edge.
BODIES: dict[str, tuple[tuple[Point, ...], float, float]] = {
    "sedan": (((0.0, 0.155), (0.17, 0.175), (0.32, 0.30), (0.54, 0.31), (0.71, 0.175), (0.97, 0.135)), 0.082, 0.05),
    "hatchback": (((0.0, 0.18), (0.02, 0.23), (0.16, 0.36), (0.56, 0.37), (0.78, 0.21), (0.97, 0.16)), 0.095, 0.05),
    "coupe": (((0.0, 0.15), (0.07, 0.175), (0.36, 0.265), (0.52, 0.265), (0.68, 0.155), (0.98, 0.105)), 0.088, 0.035),
    "estate car": (((0.0, 0.16), (0.02, 0.18), (0.08, 0.30), (0.54, 0.31), (0.71, 0.175), (0.97, 0.135)), 0.082, 0.05),
    "off-roader": (((0.0, 0.20), (0.01, 0.23), (0.04, 0.39), (0.60, 0.40), (0.70, 0.24), (0.98, 0.21)), 0.11, 0.085),
    "pickup truck": (((0.0, 0.19), (0.38, 0.19), (0.40, 0.34), (0.60, 0.345), (0.71, 0.21), (0.98, 0.18)), 0.10, 0.08),
    "van": (((0.0, 0.20), (0.01, 0.25), (0.03, 0.42), (0.72, 0.43), (0.90, 0.22), (0.98, 0.17)), 0.085, 0.05),
}


def _dark(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, factor * part)) for part in colour)
    return red, green, blue


def _street(rng: np.random.Generator, wild: float, ground: float) -> Canvas:
    """Background shared by all vehicles: sky, wall, trees or hills, and the ground they stand on."""
    back = canvas.hsv(rng.choice((0.06, 0.11, 0.25, 0.55, 0.6)), rng.uniform(0.03, 0.35), rng.uniform(0.4, 0.95))
    art = Canvas(back)
    kind = rng.integers(4)
    if kind == 0:  # a wall with windows
        for x in np.arange(rng.uniform(-0.2, 0), 1, 0.26):
            art.rectangle(x, 0.05, x + 0.13, rng.uniform(0.25, 0.4), _dark(back, 0.8))
    elif kind == 1:  # trees
        leaf = jitter(rng, ((86, 122, 70), (150, 120, 62))[rng.integers(2)])
        for x in rng.random(5):
            art.ellipse(x, rng.uniform(0.25, 0.5), 0.15, 0.17, jitter(rng, leaf))
    elif kind == 2:  # hills
        hill = [
            (-0.1, 1),
            (-0.1, rng.uniform(0.3, 0.6)),
            (0.4, rng.uniform(0.3, 0.5)),
            (1.1, rng.uniform(0.3, 0.6)),
            (1.1, 1),
        ]
        art.polygon(hill, _dark(back, rng.uniform(0.65, 1.1)))
    floor = ((104, 104, 108), (146, 142, 136), (136, 116, 84), (104, 128, 74), (76, 78, 86))[rng.integers(5)]
    art.rectangle(0, ground - rng.uniform(0.04, 0.14), 1, 1, jitter(rng, floor))
    if rng.random() < 0.5:
        art.line([(0, ground + 0.12), (1, ground + 0.12)], _dark(floor, 1.4), 0.02)
    for x, y in rng.random((int(6 * wild), 2)):  # clutter
        size = rng.uniform(0.02, 0.09)
        art.rectangle(x, y, x + size, y + rng.uniform(0.02, 0.3), jitter(rng, back, 60))
    return art


class _Placed:
    """Draws in a vehicle's own frame: x from tail (0) to nose (1), height over the ground in units of the length."""

    def __init__(self, art: Canvas, left: float, ground: float, length: float, stretch: float) -> None:
        self.art, self.left, self.ground, self.length, self.stretch = art, left, ground, length, stretch

    def at(self, x: float, height: float) -> Point:
        return self.left + self.length * x, self.ground - self.length * self.stretch * height

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        self.art.polygon([self.at(x, height) for x, height in points], colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.art.rectangle(*self.at(x0, y0), *self.at(x1, y1), colour)

    def wheel(self, x: float, radius: float, rim: Colour = RIM, share: float = 0.55) -> None:
        middle, size = self.at(x, radius / self.stretch), self.length * radius
        self.art.ellipse(*middle, size, size, TYRE)
        self.art.ellipse(*middle, share * size, share * size, rim)


def _car(rng: np.random.Generator, at: _Placed, paint: Colour, glass: Colour, name: str) -> None:
    """One of BODIES: a painted outline, windows under the roof, wheels, lamps."""
    line, radius, sill = BODIES[name]
    wobble = rng.normal(0, 0.008, (len(line), 2))
    roof = [(x + dx, sill + height + dy * 0.7) for (x, height), (dx, dy) in zip(line, wobble, strict=True)]
    at.shape([(0.01, sill), *roof, (1.0, roof[-1][1] - 0.04), (0.99, sill)], paint)
    at.box(0.02, sill, 0.98, sill + 0.035, _dark(paint, 0.72))
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = roof[1:5]
    low = max(min(y1, y4), sill + 0.15) + 0.012  # the window line
    inset = 0.028
    rear = x1 + (x2 - x1) * (low - y1) / max(y2 - y1, 0.02) + 0.045
    front = x4 + (x3 - x4) * (low - y4) / max(y3 - y4, 0.02) - 0.045
    start, first = max(x2, x1) + 0.025, max(rear, 0.05)
    if name == "van" and rng.random() < 0.5:  # a delivery van: no glass behind the driver
        first, start = x3 - 0.2, x3 - 0.2
    at.shape([(first, low), (start, y2 - inset), (x3 - 0.02, y3 - inset), (front, low)], glass)
    pillars = {"coupe": (0.44,), "pickup truck": (0.52,), "sedan": (0.35, 0.5), "hatchback": (0.27, 0.48)}
    for pillar in pillars.get(name, (0.28, 0.5)):
        at.box(pillar - 0.011, low, pillar + 0.011, y3 - inset, paint)
    if name == "pickup truck":
        at.box(0.03, y1 - 0.025, 0.36, y1, _dark(paint, 0.55))
    if name == "off-roader" and rng.random() < 0.7:  # the spare wheel
        at.box(-0.045, sill + 0.1, 0.0, sill + 0.26, TYRE)
    for x in (0.2, 0.8):
        at.wheel(x + rng.uniform(-0.012, 0.012), radius)
    at.box(0.95, sill + 0.075, 0.99, sill + 0.115, LAMP)
    at.box(0.0, sill + 0.085, 0.035, sill + 0.12, (200, 40, 36))


def _bus(rng: np.random.Generator, at: _Placed, paint: Colour, glass: Colour, name: str) -> None:
    top = rng.uniform(0.38, 0.43)
    at.box(0, 0.05, 1, top, paint)
    at.box(0, 0.05, 1, 0.09, _dark(paint, 0.7))
    if rng.random() < 0.5:
        at.box(0, 0.12, 1, 0.155, jitter(rng, (235, 232, 224)))
    panes = int(rng.integers(5, 8))
    for pane in range(panes):
        x = 0.03 + 0.94 * pane / panes
        at.box(x, top - 0.19, x + 0.94 / panes - 0.022, top - 0.055, glass)
    for x in rng.choice((0.3, 0.55, 0.62)), 0.9:
        at.box(x - 0.035, 0.08, x + 0.035, top - 0.055, _dark(glass, 1.3))
    for x in (0.2, 0.78):
        at.wheel(x, 0.062)


def _lorry(rng: np.random.Generator, at: _Placed, paint: Colour, glass: Colour, name: str) -> None:
    top, nose = rng.uniform(0.38, 0.46), rng.uniform(0.74, 0.8)
    load = jitter(rng, (paint, (226, 226, 222), (120, 140, 160), (170, 130, 90))[rng.integers(4)])
    at.box(0.02, 0.07, 0.99, 0.11, (54, 54, 58))
    if rng.random() < 0.75:
        at.box(0, 0.11, nose - 0.03, top, load)
        at.box(0, 0.2, nose - 0.03, 0.24, jitter(rng, load, 40))
    else:  # a tanker
        at.box(0.06, 0.12, nose - 0.09, 0.33, load)
        for x in (0.06, nose - 0.09):
            at.art.ellipse(*at.at(x, 0.225), 0.05, 0.105 * at.length * at.stretch, load)
    at.shape([(nose, 0.07), (nose, 0.35), (0.93, 0.35), (1.0, 0.22), (1.0, 0.07)], paint)
    at.shape([(nose + 0.06, 0.22), (nose + 0.06, 0.32), (0.93, 0.32), (0.98, 0.22)], glass)
    for x in (0.1, 0.24, nose - 0.1, 0.9) if rng.random() < 0.6 else (0.17, 0.9):
        at.wheel(x, 0.062)


def _tractor(rng: np.random.Generator, at: _Placed, paint: Colour, glass: Colour, name: str) -> None:
    cabin = rng.uniform(0.54, 0.64)
    at.shape([(0.42, 0.16), (0.42, 0.38), (0.94, 0.34), (0.97, 0.16)], paint)
    at.shape(
        [(0.14, 0.28), (0.18, cabin), (0.5, cabin), (0.54, 0.3)], glass if rng.random() < 0.7 else _dark(paint, 0.8)
    )
    at.box(0.13, cabin, 0.54, cabin + 0.05, paint)
    at.box(0.35, 0.3, 0.375, cabin, paint)
    at.box(0.72, 0.34, 0.75, rng.uniform(0.48, 0.58), (48, 48, 50))
    rim = jitter(rng, ((222, 190, 60), RIM, (190, 60, 44))[rng.integers(3)])
    at.wheel(0.26, rng.uniform(0.2, 0.25), rim, 0.5)
    at.wheel(0.85, rng.uniform(0.11, 0.14), rim, 0.5)


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """Draw one vehicle from the side; see `worlds.images.drawing`."""
    name = CLASSES[label]
    ground = rng.uniform(0.74 - 0.06 * wild, 0.78 + 0.06 * wild)
    art = _street(rng, wild, ground)
    # Greys and whites are as common as colours, on every kind of vehicle.
    saturation = rng.uniform(0.6, 0.9) if rng.random() < 0.6 else rng.uniform(0, 0.12)
    paint = canvas.hsv(rng.random(), saturation, rng.uniform(0.35, 0.95))
    glass = jitter(rng, (GLASS, (120, 148, 168), (36, 40, 48))[rng.integers(3)], 14)
    length = rng.uniform(0.88 - 0.2 * wild, 0.94) * {"tractor": 0.8, "hatchback": 0.84}.get(name, 1.0)
    left = 0.5 - length / 2 + rng.uniform(-0.12, 0.12) * wild
    placed = _Placed(art, left, ground, length, 1.08 + rng.uniform(-0.16, 0.16) * (0.3 + 0.7 * wild))
    art.ellipse(left + length / 2, ground, 0.5 * length, 0.03, (44, 44, 48))  # the shadow
    painter = {"city bus": _bus, "lorry": _lorry, "tractor": _tractor}.get(name, _car)
    painter(rng, placed, paint, glass, name)
    image = canvas.camera(rng, art, 0.03 + 0.2 * wild, 10 * wild)
    return canvas.nuisance(rng, image, wild)

"""Textures (in the spirit of DTD): twelve patterns as fields of numbers, in two or three colours of any hue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worlds.images.canvas import SCALE, SIZE, Canvas, Colour, hsv, mix, nuisance, smooth_noise

CLASSES = (
    "striped",
    "dotted",
    "chequered",
    "zigzagged",
    "gridded",
    "woven",
    "bubbly",
    "cracked",
    "marbled",
    "honeycombed",
    "swirly",
    "veined",
)
ALIASES: dict[str, tuple[str, ...]] = {
    "striped": ("banded", "lined", "pinstripe"),
    "dotted": ("polka dots", "spotted", "speckled"),
    "chequered": ("checkerboard", "chessboard", "checked tiles"),
    "zigzagged": ("chevron", "herringbone", "sawtooth"),
    "gridded": ("grid lines", "mesh", "squared paper"),
    "woven": ("basket weave", "fabric", "wicker"),
    "bubbly": ("bubbles", "foam", "froth"),
    "cracked": ("crackle", "fractured", "dry earth"),
    "marbled": ("marble", "polished stone", "streaked rock"),
    "honeycombed": ("hexagons", "beehive", "hexagonal cells"),
    "swirly": ("spiral", "whirls", "curls"),
    "veined": ("leaf veins", "a leaf up close", "branching ribs"),
}
TEMPLATES = ("a photo of a {} texture", "a photo of a {} pattern", "a close-up of something {}")

SIDE = SIZE * SCALE
Field = np.ndarray  # float32 [SIDE, SIDE]
_AXIS = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE - 0.5
X, Y = (axis.copy() for axis in np.meshgrid(_AXIS, _AXIS))  # around the centre of the picture


def plane(rng: np.random.Generator, wild: float) -> tuple[Field, Field]:
    """Coordinates on the patterned surface as seen from a random viewpoint: turned, tilted and a little wavy."""
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    depth = 1 + np.float32(rng.uniform(-1, 1) * (0.25 + 0.7 * wild)) * Y
    sway = np.float32(rng.uniform(0, 0.02 + 0.04 * wild))
    phase, rate = rng.uniform(0, 6.28), rng.uniform(4, 12)
    across, along = X / depth + sway * np.sin(rate * Y + phase), Y / depth
    offset = rng.uniform(0, 1, 2).astype(np.float32)
    return cosine * across + sine * along + offset[0], cosine * along - sine * across + offset[1]


def edge(field: Field, sharpness: float = 6.0) -> Field:
    """0 where `field` is well below 0, 1 where it is well above, a soft step in between."""
    return np.clip(field * np.float32(sharpness) + 0.5, 0, 1)


def from_cell(field: Field) -> Field:
    """Distance from the middle of the unit cell in which `field` lies, signed, -0.5 to 0.5."""
    return field - np.floor(field) - 0.5


def striped(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Parallel bands."""
    return edge(np.sin(u * np.float32(2 * np.pi * rng.uniform(3, 8))) + rng.uniform(-0.5, 0.5), rng.uniform(0.6, 4))


def dotted(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Discs of one size on a lattice, every second row shifted or not."""
    count = rng.uniform(3.5, 6.5)
    v = v * np.float32(count)
    u = u * np.float32(count) + (np.floor(v) * 0.5 if rng.random() < 0.5 else 0)
    return edge(rng.uniform(0.22, 0.36) - np.hypot(from_cell(u), from_cell(v)), 8)


def chequered(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Squares or oblongs of two colours."""
    count, aspect = rng.uniform(1.8, 4.2), rng.uniform(0.8, 1.25)
    turn = np.float32(2 * np.pi * count)
    return edge(np.sin(turn * u) * np.sin(turn * np.float32(aspect) * v), 5)


def zigzagged(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Bands that turn at sharp corners."""
    teeth = np.abs(from_cell(u * np.float32(rng.uniform(2.5, 4.5)))) * np.float32(rng.uniform(0.3, 0.5))
    return edge(np.sin((v + teeth) * np.float32(2 * np.pi * rng.uniform(3, 5.5))) + rng.uniform(-0.3, 0.3), 2)


def gridded(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Thin lines in two directions."""
    count = np.float32(rng.uniform(3, 6.5))
    nearest = np.maximum(np.abs(from_cell(u * count)), np.abs(from_cell(v * count)))
    return edge(nearest - 0.5 + rng.uniform(0.06, 0.13), 10)


def woven(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Strands of two or three threads that pass over and under each other."""
    count, threads = np.float32(rng.uniform(2.3, 4.2)), np.float32(rng.integers(2, 4))
    u, v = u * count, v * count
    over = (np.floor(u) + np.floor(v)) % 2 > 0
    across, along = np.where(over, from_cell(u), from_cell(v)), np.where(over, from_cell(v), from_cell(u))
    thread = np.abs(np.cos(np.float32(np.pi) * threads * (across + 0.5 - 0.5 / threads)))  # bright in its middle
    return edge(thread - 0.5, 2.5) * (1 - 2 * along**2) * (1 - over * np.float32(rng.uniform(0, 0.4)))


def bubbly(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Bubbles of many sizes, each with a rim and a highlight."""
    art = Canvas((40, 40, 40))
    light, largest = rng.uniform(0.25, 0.45, 2) * rng.choice((-1, 1), 2), rng.uniform(0.14, 0.24)
    for radius in np.sort(rng.uniform(0.05, largest, rng.integers(14, 28)))[::-1]:
        x, y = rng.uniform(-0.05, 1.05, 2)
        body = int(rng.integers(80, 150))
        art.ellipse(x, y, radius, radius, (235, 235, 235))
        art.ellipse(x, y, radius - 0.025, radius - 0.025, (body, body, body))
        art.ellipse(x + light[0] * radius, y + light[1] * radius, 0.22 * radius, 0.22 * radius, (255, 255, 255))
    return art.pixels()[..., 0] / np.float32(255)


def cracked(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Thin jagged cracks that fork."""
    art = Canvas((255, 255, 255))
    start = [
        (*rng.uniform(0, 1, 2), rng.uniform(0, 6.28), rng.uniform(0.025, 0.045)) for _ in range(rng.integers(4, 7))
    ]
    for x, y, heading, width in start + [(x, y, heading + np.pi, width) for x, y, heading, width in start]:
        walkers = [(x, y, heading, width)]
        while walkers:
            x, y, heading, width = walkers.pop()
            path = [(x, y)]
            for turn in rng.normal(0, 0.6, 9):
                x, y = x + 0.1 * np.cos(heading + turn), y + 0.1 * np.sin(heading + turn)
                path.append((x, y))
                if width > 0.02 and rng.random() < 0.2:
                    walkers.append((x, y, heading + rng.choice((-1.1, 1.1)), width * 0.6))
            art.line(path, (0, 0, 0), width)
    return art.pixels()[..., 0] / np.float32(255)


def marbled(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Soft streaks bent by turbulence."""
    octaves = ((3, 1.0), (6, 0.45), (13, 0.18))
    bent = sum(np.float32(share) * smooth_noise(rng, cells) for cells, share in octaves)
    wave = u * np.float32(rng.uniform(1, 2.5)) + bent * np.float32(rng.uniform(1.2, 2))
    streak = np.abs(np.sin(np.float32(np.pi) * wave)) ** np.float32(rng.uniform(0.4, 1))
    return 0.75 * streak + 0.35 * bent - 0.15


def honeycombed(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Six-sided cells with thin walls."""
    count, root = np.float32(rng.uniform(3, 5.5)), np.float32(3**0.5)
    u, v = u * count, v * count / root

    def wall(shift: float) -> tuple[Field, Field]:  # squared distance to a centre, distance to the hexagon around it
        across, along = np.abs(from_cell(u + shift)), np.abs(from_cell(v + shift)) * root
        return across**2 + along**2, np.maximum(across, 0.5 * across + 0.5 * root * along)

    (near, inside), (other, outside) = wall(0), wall(0.5)
    return edge(np.where(near < other, inside, outside) - 0.5 + rng.uniform(0.06, 0.12), 10)


def swirly(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Spirals around one to three centres."""
    phase, nearest = 0, 9.0
    for _ in range(rng.integers(1, 4)):
        x, y = X - np.float32(rng.uniform(-0.4, 0.4)), Y - np.float32(rng.uniform(-0.4, 0.4))
        phase = phase + rng.choice((-2, -1, 1, 2)) * np.arctan2(y, x)
        nearest = np.minimum(nearest, np.hypot(x, y))
    return edge(np.sin(phase + np.float32(rng.uniform(18, 34)) * nearest), rng.uniform(0.6, 1.5))


def veined(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """A leaf: a midrib with ribs leaving it to both sides, and finer ones between them."""
    u, v = (
        u - u.mean() + np.float32(rng.uniform(-0.15, 0.15)),
        v + np.float32(rng.uniform(-0.3, 0.3)) * (u - u.mean()) ** 2,
    )
    u = u + np.float32(rng.uniform(-0.5, 0.5)) * X * Y
    count, rise = np.float32(rng.uniform(3.5, 6.5)), np.float32(rng.uniform(0.5, 1.3))
    stagger = np.where(u > 0, np.float32(rng.uniform(0, 0.5)), 0)
    rib = np.abs(from_cell((v - rise * np.abs(u) ** np.float32(0.85)) * count + stagger)) / count
    fine = np.abs(from_cell((v + np.abs(u)) * count * 2.5)) / (count * 2.5)
    width = np.float32(rng.uniform(0.018, 0.032))
    ridge = np.maximum(edge(1.5 * width - np.abs(u), 40), edge(width * (1 - 0.8 * np.abs(u)) - rib, 40))
    return np.maximum(ridge, np.float32(rng.uniform(0, 0.4)) * edge(0.012 - fine, 40))


PATTERNS: tuple[Callable[[np.random.Generator, Field, Field], Field], ...] = (
    striped,
    dotted,
    chequered,
    zigzagged,
    gridded,
    woven,
    bubbly,
    cracked,
    marbled,
    honeycombed,
    swirly,
    veined,
)


def palette(rng: np.random.Generator, wild: float) -> tuple[Colour, Colour]:
    """Two colours, one darker than the other by a margin that shrinks as the world gets wilder; any hue, any order."""
    hue, tones = rng.random(), rng.random() < 0.5
    dark = hsv(hue, rng.uniform(0, 0.95), rng.uniform(0.05, 0.5))
    bright = hsv(
        hue + (rng.normal(0, 0.05) if tones else rng.random()), rng.uniform(0, 0.6), rng.uniform(0.7 - 0.15 * wild, 1)
    )
    return (dark, bright) if rng.random() < 0.5 else (bright, dark)


def draw(rng: np.random.Generator, label: int, wild: float) -> np.ndarray:
    """One patch of texture; see `worlds.images.drawing`."""
    u, v = plane(rng, wild)
    zoom = np.float32(np.exp(rng.normal(0, 0.05 + 0.25 * wild)))
    field = PATTERNS[label](rng, u * zoom, v * zoom)
    low, high = palette(rng, wild)
    canvas = Canvas()
    canvas.paste(mix(field, low, high))
    image = canvas.finish()
    light = 1 - (0.25 + 0.35 * wild) * smooth_noise(rng, 3, SIZE)[..., None]  # uneven light
    return nuisance(rng, (image * light).astype(np.uint8), wild)

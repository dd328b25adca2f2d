"""Images as files hold them, brought to the size that a model reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lib.files.contents import images
from lib.files.folders import LFS, POINTER, DataError
from lib.files.sets import FILE_SPLITS, Source
from lib.runtime.processes import cores

WAITING = 32  # encoded images per core in memory at a time: enough to keep it busy
LONG = 8  # an image so many times as long as it is wide is cropped before it is resized, or it would fill the memory


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic, anti-aliased), crop the centre: uint8 [3, size, size].

    The pixels are those of open_clip's own preprocessing before it normalises them. Only images with a palette or an
    alpha channel differ: they become RGB first, because Pillow cannot blend the numbers of colours.
    """
    image = image.convert("RGB")
    short = min(image.size)
    if max(image.size) > LONG * short:
        left, top = ((side - short) / 2 for side in image.size)
        box = (left, top, left + short, top + short)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box)).transpose(2, 0, 1)
    width, height = (int(size * side / short) for side in image.size)  # rounded down, as torchvision does
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def opened(stored: object, part: Path) -> Image.Image:
    """An image as a part of a set stores it: encoded bytes or a path, relative to the part, alone or both in a dict."""
    if isinstance(stored, dict):
        stored = stored.get("bytes") or stored.get("path")
    if isinstance(stored, str):
        path = (part if part.is_dir() else part.parent) / stored
        if not path.is_file():
            raise ValueError(f"there is only a path, and no file {path}; embed_table_storage of datasets embeds images")
        stored = path.read_bytes()
    if not isinstance(stored, (bytes, bytearray)):
        raise ValueError("no image bytes")
    if stored.startswith(LFS):
        raise ValueError(POINTER)
    return Image.open(io.BytesIO(stored))


def bits_of(source: Source) -> int:
    """How many bits, 8 to 16, the 16-bit grey levels of a set need; 0 if its first image has no such levels."""
    return _bits_of(source, source.fingerprint)


@lru_cache(64)  # the same for every split, and a pass over the whole set
def _bits_of(source: Source, fingerprint: str) -> int:
    highest = -1
    for split in (split for split in FILE_SPLITS if split in source.listed[1]):
        for part, _, stored in images(source, split):
            with suppress(Exception), opened(stored, part) as image:  # `decode_rows` will name it
                if image.mode.startswith("I;16"):
                    highest = max(highest, int(np.asarray(image).max()))
            if highest < 0:
                return 0
    return max(8, highest.bit_length())


def decode(stored: object, size: int, part: Path = Path(), bits: int = 16, seen: list[str] | None = None) -> np.ndarray:
    """What `opened` takes -> uint8 [3, size, size]; `bits_of` gives bits, `seen` takes what is worth telling."""
    seen = [] if seen is None else seen
    with opened(stored, part) as image:
        if getattr(image, "is_animated", False):
            seen.append("with several frames, of which the first is used")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or (image.mode.startswith("I;16") and not bits):
            raise ValueError(f"its pixels are {image.mode}, not 8 bits like others; save all images with 8")
        if image.mode.startswith("I;16"):  # Pillow would clip it at 255
            seen.append(f"of 16 bits, of which {bits} are used")
            image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] < 255:
                seen.append("with transparency, laid on white")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return fit(image, size)


def decode_rows(
    source: Source, split: str, rows: np.ndarray, size: int, seen: list[str] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode some rows of a split in files on all cores, with few of them in memory at a time.

    Yields:
        A place in `rows` and the image that belongs there, uint8 [3, size, size], in the order of the files; `seen`
        takes what is worth telling, once for each image.

    Raises:
        DataError: naming file and row of an image that cannot be decoded.
    """
    places = {int(row): place for place, row in enumerate(rows)}
    bits = bits_of(source)

    def work(item: tuple[int, tuple[Path, int, object]]) -> tuple[int, np.ndarray]:
        row, (part, place, stored) = item
        try:
            return places[row], decode(stored, size, part, bits, seen)
        except Exception as error:  # Pillow raises many kinds, struct.error among them
            name = stored.get("path") if part.is_dir() and isinstance(stored, dict) else ""
            raise DataError(
                f"{name or f'{part}, row {place}'}: the image cannot be decoded ({error}); drop it or copy it again"
            ) from error

    wanted = (item for item in enumerate(images(source, split)) if item[0] in places)
    with ThreadPoolExecutor(cores()) as pool:  # threads: Pillow lets others run while it decodes and resizes
        while batch := list(islice(wanted, WAITING * cores())):
            yield from pool.map(work, batch)

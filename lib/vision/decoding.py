"""Images as files hold them, brought to the size that a model reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image, ImageOps

from lib.files.sets import DataError, Source
from lib.runtime.processes import cores

WAITING = 32  # encoded images per core in memory at a time: enough to keep it busy


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic, anti-aliased), crop the centre: uint8 [3, size, size].

    The pixels are those of open_clip's own preprocessing before it normalises them. Only images with a palette or an
    alpha channel differ: they become RGB first here, because Pillow cannot blend the numbers of colours.
    """
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)  # rounded down, as torchvision does
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def decode(stored: object, size: int) -> np.ndarray:
    """An image as a parquet file stores it (encoded bytes, alone or in a dict) -> uint8 [3, size, size]."""
    stored = stored["bytes"] if isinstance(stored, dict) else stored
    if not isinstance(stored, (bytes, bytearray)):
        raise ValueError("no image bytes")
    with Image.open(io.BytesIO(stored)) as image:
        return fit(ImageOps.exif_transpose(image), size)


def decode_rows(source: Source, split: str, rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Decode some rows of a file split on all cores, with few of them in memory at a time.

    Args:
        source: the set.
        split: the file split.
        rows: which of its rows.
        size: side of the images in pixels.

    Yields:
        A place in `rows` and the image that belongs there, uint8 [3, size, size], in the order of the file.

    Raises:
        DataError: naming file and row of an image that cannot be decoded.
    """
    places = {int(row): place for place, row in enumerate(rows)}

    def work(pair: tuple[int, object]) -> tuple[int, np.ndarray]:
        row, stored = pair
        try:
            return places[row], decode(stored, size)
        except Exception as error:  # Pillow raises many kinds, struct.error among them
            raise DataError(
                f"{source.row(split, row)}: the image cannot be decoded ({error}); drop that row or copy the file again"
            ) from error

    wanted = (pair for pair in source.images(split) if pair[0] in places)
    with ThreadPoolExecutor(cores()) as pool:  # threads: Pillow lets others run while it decodes and resizes
        while batch := list(islice(wanted, WAITING * cores())):
            yield from pool.map(work, batch)

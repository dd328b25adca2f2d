"""Images as files hold them, brought to the size that a model reads."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from lib.files.sets import DataError, Source

WAITING = 8  # encoded images per core that wait to be decoded: enough to keep it busy


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


def read_images(source: Source, split: str, rows: np.ndarray, size: int) -> np.ndarray:
    """Decode some rows of a file split, in the order asked for: uint8 [len(rows), 3, size, size].

    Raises:
        DataError: naming file and row of an image that cannot be decoded.
    """
    images = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    for _ in decode_rows(source, split, rows, size, images.__setitem__):
        pass
    return images


def decode_rows(
    source: Source, split: str, rows: np.ndarray, size: int, keep: Callable[[int, np.ndarray], None]
) -> Iterator[None]:
    """Decode some rows of a file split on all cores, with few of them in memory at a time.

    Args:
        source: the set.
        split: the file split.
        rows: which of its rows.
        size: side of the images in pixels.
        keep: called with a place in `rows` and the image that belongs there, uint8 [3, size, size]; by several threads
            at once, in no order.

    Yields:
        None for every image that is done. Close the generator to stop early.

    Raises:
        DataError: naming file and row of an image that cannot be decoded.
    """
    place = {int(row): index for index, row in enumerate(rows)}

    def work(row: int, stored: object) -> None:
        try:
            image = decode(stored, size)
        except Exception as error:  # Pillow raises many kinds, struct.error among them
            raise DataError(
                f"{source.row(split, row)}: the image cannot be decoded ({error}); drop that row or copy the file again"
            ) from error
        keep(place[row], image)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)  # threads: Pillow lets others run while it decodes and resizes
    waiting: deque[Future] = deque()
    try:
        for row, stored in enumerate(source.values(split, source.columns(split)[0])):
            if row in place:
                waiting.append(pool.submit(work, row, stored))
            if len(waiting) > WAITING * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # when this generator has ended, nothing calls `keep` any more

"""Small mirrors of real image sets, made on the spot with random images."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from lib.vision.decoding import decode_rows

NAMES = ["red_fox", "owl", "newt"]


def picture(rng, size=(40, 32), mode="RGB"):
    """A random image of (width, height) and mode, as PNG bytes."""
    shape = (size[1], size[0]) if mode in ("L", "P") else (size[1], size[0], len(mode))
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    if mode == "P":
        image = image.convert("RGB").quantize(16)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_split(
    folder: Path, split, labels, *, names=NAMES, column="image", pictures=None, label_feature=None, files=1
):
    """Write one split as parquet files; an image's bytes differ from row to row."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(labels) + sum(map(ord, split)))
    pictures = pictures or [picture(rng) for _ in labels]
    features = datasets.Features({column: datasets.Image(), "label": label_feature or datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict(
        {column: [data if data is None else {"bytes": data, "path": None} for data in pictures], "label": list(labels)},
        features=features,
    )
    for index in range(files):
        piece = rows.shard(files, index, contiguous=True)
        piece.to_parquet(folder / f"{split}-{index:05d}-of-{files:05d}.parquet")


def make_mirror(root: Path, name, *, train=60, test=20, **options):
    """A set `name` below `root` with balanced labels; returns its folder of files."""
    folder = root / name / "data"
    classes = len(options.get("names", NAMES))
    write_split(folder, "train", [i % classes for i in range(train)], **options)
    write_split(folder, "test", [i % classes for i in range(test)], **options)
    return folder


def read_images(source, split, rows, size):
    """Some rows of a file split, in the order asked for: uint8 [len(rows), 3, size, size]."""
    images = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    for place, image in decode_rows(source, split, rows, size):
        images[place] = image
    return images

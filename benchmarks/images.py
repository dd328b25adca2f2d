"""What real images cost: decoding them once, mapping them later, taking batches from them.

`python -m benchmarks.images --data-root ~/data/vision` decodes every set there at 224 pixels into a folder that is
removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from lib.runtime.keys import digest
from lib.vision.batches import gather
from lib.vision.tasks import load_split, load_task

BATCH, STEPS = 128, 40


def measure(name: str, data_root: str, side: int, cache: Path) -> dict[str, object]:
    """A row of the table: the training split of one set."""
    with contextlib.redirect_stdout(io.StringIO()):
        task = load_task(name, data_root=data_root)
        options = {"sizes": {}, "image_size": side, "data_root": data_root, "cache": cache}
        times = [time.perf_counter()]
        for _ in range(2):
            images = load_split(task, "train", **options).images
            digest(images)
            times.append(time.perf_counter())
    rows = [torch.randint(0, len(images), (BATCH,)) for _ in range(STEPS)]
    begin = time.perf_counter()
    for own in rows:
        gather([images], [own], "cpu")
    return {
        "set": name,
        "images": len(images),
        "GB": round(images.nbytes / 1e9, 2),
        "cold s": round(times[1] - times[0], 2),
        "images/s": round(len(images) / (times[1] - times[0])),
        "warm s": round(times[2] - times[1], 3),
        "random images/s": round(STEPS * BATCH / (time.perf_counter() - begin)),
    }


def main() -> None:
    """Measure all sets below a folder and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description="What real images cost.")
    parser.add_argument("--data-root", required=True, help="folder of <set>/data/train-*.parquet")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    given = parser.parse_args()
    found = sorted(path.name for path in Path(given.data_root).iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        print(pd.DataFrame(measure(name, given.data_root, given.side, Path(folder)) for name in found).to_string())


if __name__ == "__main__":
    main()

"""Read, decode and map a set in this fresh process; prints what that took (Linux): DATA_ROOT NAME SIDE CACHE."""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import pandas  # noqa: F401 - an import, not a part of reading
import pyarrow.dataset  # noqa: F401

from lib.files.sets import library
from lib.vision.tasks import SPLITS, load_split, load_task


def resident(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(word)) * 1024


def read(root, name, side, cache):
    """Bytes of all splits' images, and the seconds until they could be used."""
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        task = load_task(name, data_root=root)
        options = {"sizes": {}, "image_size": side, "data_root": root, "cache": Path(cache)}
        loaded = [load_split(task, split, **options) for split in SPLITS]
    seconds = time.perf_counter() - begin
    assert sum(int(part.images[:, 0].max()) for part in loaded) > 0  # all pages are touched
    return sum(part.images.nbytes for part in loaded), seconds


if __name__ == "__main__":
    library()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    size, cold = read(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    peak = resident("VmHWM") - before
    _, warm = read(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    print(json.dumps({"decoded": size, "peak": peak, "times": peak / size, "cold": cold, "warm": warm}))

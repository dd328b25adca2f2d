"""Command line of `lib.figures`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

from lib.figures import draw_all, draw_benchmarks
from lib.runtime.disk import ROOT
from lib.study.inputs import without_data


def main(arguments: list[str] | None = None) -> int:
    """Draw all figures from saved tables: by default the committed figures of a profile from its committed tables."""
    parser = argparse.ArgumentParser(description="Redraw every figure from saved tables; no model is run.")
    parser.add_argument("--profile", default="tiny-full", help="whose committed tables, a folder of data/results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="other tables: a folder with seed0, seed1, ..., such as runs/tiny")
    parser.add_argument("--out", type=Path, help="where their figures go, by default beside them")
    parser.add_argument("--benchmarks", action="store_true", help="draw those of `make benchmark` instead")
    given = parser.parse_args(arguments)
    matplotlib.use("agg")
    name = without_data(given.profile)
    results = given.results or ROOT / "data" / "results" / name
    out = given.out or (results / "figures" if given.results else ROOT / "figures" / name)
    try:
        written = draw_benchmarks() if given.benchmarks else draw_all(results, out, given.seed)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Drew {len(written)} figures into {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

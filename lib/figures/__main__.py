"""Command line of `lib.figures`."""

from __future__ import annotations

import argparse
import sys

import matplotlib

from lib.figures import draw_all, draw_benchmarks


def main(arguments: list[str] | None = None) -> int:
    """Command line: draw all figures of a profile from its saved tables."""
    parser = argparse.ArgumentParser(description="Redraw every figure from saved tables; no model is run.")
    parser.add_argument("--profile", default="tiny", help="a folder of data/results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benchmarks", action="store_true", help="draw those of `make benchmark` instead")
    options = parser.parse_args(arguments)
    matplotlib.use("agg")
    try:
        written = draw_benchmarks() if options.benchmarks else draw_all(options.profile, seed=options.seed)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Drew {len(written)} figures into {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

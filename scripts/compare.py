"""How far this machine's tables differ from the committed ones, in one line: `python -m scripts.compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from lib.runtime.disk import ROOT
from lib.study.inputs import difference, without_data
from lib.study.tables import seed_folders

MEASURED = ("step_cost",)  # times, which differ from run to run


def compare(mine: Path, ours: Path, seeds: Sequence[int]) -> str:
    """Compare the tables of a run with the committed tables of the same name and seed.

    Args:
        mine: folder of the run, with seed0, seed1, ...
        ours: folder of the committed tables.
        seeds: which seeds.

    Returns:
        One line: the largest difference in an accuracy, where it is, and how many tables are equal bit for bit.
    """
    pairs = list(_pairs(mine, ours, seeds))
    if not pairs:
        which = f"profile '{ours.name}', seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        missing = "committed tables" if seed_folders(mine).keys() & set(seeds) else f"tables in {mine}"
        return f"Compared with nothing: there are no {missing} of {which}"
    told = f"Compared with our tables{' (of other data)' if _other_inputs(mine, ours, seeds) else ''}: "
    different = [(one, other) for one, other in pairs if one.read_bytes() != other.read_bytes()]
    if not different:
        return f"{told}all {len(pairs)} are equal bit for bit"
    found = {one: largest_difference(pd.read_csv(one), pd.read_csv(other)) for one, other in different}
    rows = sorted({path.name for path, largest in found.items() if largest is None})
    worst = max((path for path in found if found[path]), key=lambda path: found[path][0], default=None)
    if worst is None or not found[worst][0]:
        told += "no accuracy differs"
    else:
        points, place = found[worst]
        seed = f"{worst.parent.name}/" if len(seeds) > 1 else ""
        told += f"largest difference {points:.3g} points, in {seed}{worst.name}{place and f' ({place})'}"
    told += f"; {len(pairs) - len(different)} of {len(pairs)} tables are equal bit for bit"
    return told + (f"; other rows in {', '.join(rows)}" if rows else "")


def largest_difference(mine: pd.DataFrame, ours: pd.DataFrame) -> tuple[float, str] | None:
    """The largest difference between two tables in any column that is an accuracy.

    Returns:
        The difference in points (percent) and the words of its row, such as "method TSV-M, task scenes"; None if the
        tables have different columns or rows.
    """
    if list(mine.columns) != list(ours.columns) or len(mine) != len(ours):
        return None
    words = [name for name in ours.columns if not pd.api.types.is_numeric_dtype(ours[name])]
    if not mine[words].equals(ours[words]):
        return None
    accuracies = [name for name in ours.columns if "accuracy" in name]
    apart = 100 * (mine[accuracies] - ours[accuracies]).abs().max(axis=1)
    if apart.isna().all():
        return 0.0, ""
    row = apart.idxmax()
    shown = [name for name in words if name not in ("split", "lineage", "model") and pd.notna(ours.loc[row, name])]
    return float(apart[row]), ", ".join(f"{name} {ours.loc[row, name]}" for name in shown)


def _pairs(mine: Path, ours: Path, seeds: Sequence[int]) -> Iterator[tuple[Path, Path]]:
    """The tables that are both in the run and among the committed ones."""
    for seed in seeds:
        for other in sorted((ours / f"seed{seed}").glob("*.csv")):
            one = mine / f"seed{seed}" / other.name
            if one.is_file() and other.stem not in MEASURED:
                yield one, other


def _other_inputs(mine: Path, ours: Path, seeds: Sequence[int]) -> bool:
    """Whether the committed tables say that they were made from other data or experts."""
    noted = [[folder / f"seed{seed}" / "about.json" for folder in (ours, mine)] for seed in seeds]
    told = [[json.loads(path.read_text()).get("inputs", {}) for path in both] for both in noted if _all_there(both)]
    return any(difference(*both) for both in told)


def _all_there(paths: Sequence[Path]) -> bool:
    return all(path.is_file() for path in paths)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: print the line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="such as runs/tiny+mask_steps=50")
    parser.add_argument("--seeds", default="0", help='such as "0 1 2"')
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    given = parser.parse_args(arguments)
    committed = given.root / "data" / "results" / without_data(given.run.name)
    print(compare(given.run, committed, [int(seed) for seed in given.seeds.split()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

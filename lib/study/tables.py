"""Saved tables: CSV files, written atomically, in a folder for each seed; none mixes experts of several lineages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lib.files.lineages import one_lineage
from lib.runtime.disk import atomic_path

# Columns whose entries are names: text, even of tasks that are called 101, 007, NA or null.
NAMES = ("task", "other", "subset", "method", "split", "lineage", "model", "layer")


def save_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, atomically, with numbers short enough to read (6 significant digits)."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return path


def load_table(path: Path) -> pd.DataFrame:
    """Read a saved table; only an empty field is a missing one, as it was written.

    Raises:
        FileNotFoundError: naming the table and the command that makes it.
        ValueError: if it mixes experts of several lineages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no saved table at {path}: run the notebook that makes it, or `make study`")
    table = pd.read_csv(path, dtype=dict.fromkeys(NAMES, "str"), keep_default_na=False, na_values=[""])
    one_lineage(table)
    return table


def seed_folders(results: Path, *names: str) -> dict[int, Path]:
    """The folders `seed0`, `seed1`, ... below `results` that hold all the named tables, by seed."""
    folders = {int(folder.name[4:]): folder for folder in results.glob("seed*") if folder.name[4:].isdecimal()}
    whole = (seed for seed in sorted(folders) if all((folders[seed] / f"{name}.csv").is_file() for name in names))
    return {seed: folders[seed] for seed in whole}


def load_seeds(folders: Mapping[int, Path], *names: str) -> dict[int, dict[str, pd.DataFrame]]:
    """The named tables of some seeds, each in its folder (see `seed_folders`): seed -> name -> table."""
    return {seed: {name: load_table(path / f"{name}.csv") for name in names} for seed, path in folders.items()}


def all_seeds(folders: Mapping[int, Path], name: str) -> pd.DataFrame:
    """One table of some seeds, each in its folder (see `seed_folders`), with the column `seed`.

    Raises:
        FileNotFoundError: if there is no seed.
        ValueError: if the seeds were run on experts of different lineages.
    """
    if not folders:
        raise FileNotFoundError(f"no seed has a saved table {name}.csv: run `make study` or `make reproduce`")
    tables = [load_table(folder / f"{name}.csv").assign(seed=seed) for seed, folder in folders.items()]
    one_lineage(*tables)
    return pd.concat(tables, ignore_index=True)

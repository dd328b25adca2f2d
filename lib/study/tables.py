"""Saved tables: CSV files that are written atomically and never mix experts of several lineages."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.files.lineages import one_lineage
from lib.runtime.disk import atomic_path


def save_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, atomically, with numbers short enough to read (6 significant digits)."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return path


def load_table(path: Path) -> pd.DataFrame:
    """Read a saved table.

    Raises:
        FileNotFoundError: naming the table and the command that makes it.
        ValueError: if it mixes experts of several lineages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no saved table at {path}: run the notebook that makes it, or `make study`")
    table = pd.read_csv(path)
    one_lineage(table)
    return table

"""The one-page report's tables: every comparison that a notebook's takeaways rest on, and what the runs cost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pandas as pd

from scripts.takeaways import comparisons

RUNS = {"vision": "tiny-full", "text": "tiny-t5-full", "real images": "deit-tiny"}
_SAVED = re.compile(r"study\.save\((?:[^()]|\([^()]*\))*?\"(\w+)\"\)")


def claims(root: Path) -> str:
    """Every comparison of every notebook's takeaways: a row each, in the notebooks' order."""
    head = ["notebook (cell)", "compared", "with", "difference", "95 % interval", "tasks up, down", "p", "verdict"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in comparisons(root).itertuples():
        interval = "" if pd.isna(row.low) else f"{row.low:+z.1f} to {row.high:+z.1f}"
        p = "" if pd.isna(row.p) else ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
        place = f"[{row.notebook[:2]}](../notebooks/{row.notebook}.ipynb) ({row.cell})"
        seeds = f"{row.up}, {row.down} ({row.seeds} seed{'s' if row.seeds > 1 else ''})"
        cells = [place, row.method, row.against, f"{row.difference:+z.1f}", interval, seeds, p, row.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("| -", "| −").replace("to -", "to −") + "\n"


def saved_by(notebooks: Path) -> dict[str, list[str]]:
    """Which notebooks save a table: its name -> their names."""
    found: dict[str, list[str]] = {}
    for path in sorted(notebooks.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for name in _SAVED.findall(code):
            found.setdefault(name, []).append(path.stem)
    return found


def cost(root: Path) -> str:
    """Minutes of every committed run, all its notebooks together, with the machine it was on."""
    lines = [
        "| run | seed | notebooks | minutes, one after the other | machine | threads |",
        "|---|---:|---:|---:|---|---:|",
    ]
    places = saved_by(root / "notebooks")
    for name, profile in RUNS.items():
        for path in sorted((root / "data" / "results" / profile).glob("seed*/about.json")):
            about = json.loads(path.read_text(encoding="utf-8"))
            last: dict[str, float] = {}
            for table, seconds in about["seconds"].items():
                for notebook in places.get(table, []):
                    if (notebook[:1] == "2") == (name == "text") and (notebook[:2] == "15") == (name == "real images"):
                        last[notebook] = max(last.get(notebook, 0), seconds)
            minutes = f"{sum(last.values()) / 60:.0f}"
            cells = [
                f"{name} (`{profile}`)",
                path.parent.name[4:],
                len(last),
                minutes,
                about["machine"],
                about["threads"],
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"

"""Which figure is drawn from which table, and which notebook shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lib.figures.benchmarks import adaptation_benchmark, merge_step, merge_step_size
from lib.figures.curves import bilevel, entropy_against_accuracy, mask_steps
from lib.figures.experts import contact_sheet
from lib.figures.mask import relaxation
from lib.figures.merging import by_task
from lib.figures.method import method

# The figures that are not drawn from the one table of their name.
APART: dict[Callable[..., Figure], str] = {
    method: "none (a diagram)",
    relaxation: "none (a formula)",
    bilevel: "none (a diagram)",
    contact_sheet: "contact_sheet.png, learning_curves.csv",
    entropy_against_accuracy: "phases.csv",
    mask_steps: "phases.csv",
    by_task: "results.csv, real_images.csv or concrete_adamerging.csv",
    merge_step: "data/benchmarks/merge_step.csv",
    merge_step_size: "data/benchmarks/merge_step.csv",
    adaptation_benchmark: "data/benchmarks/adaptation.csv",
}


def figure_index(drawn: Mapping[str, Callable[..., Figure]], notebooks: Path) -> pd.DataFrame:
    """An index of the study's figures.

    Args:
        drawn: the figures that are drawn from the table of their name, `figures.FIGURES`.
        notebooks: folder of the notebooks.

    Returns:
        Rows (figure, shows, table, notebook) in the order of the notebooks that show them first; `notebook` is "" for
        a figure that none shows.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(notebooks.glob("*.ipynb"))}
    rows = [
        {
            "figure": function.__name__,
            "shows": (function.__doc__ or "").partition("\n")[0],
            "table": APART.get(function, f"{function.__name__}.csv"),
            "notebook": next((name for name, text in texts.items() if f"figures.{function.__name__}(" in text), ""),
        }
        for function in dict.fromkeys((*drawn.values(), *APART))
    ]
    order = {name: number for number, name in enumerate((*texts, ""))}
    return pd.DataFrame(sorted(rows, key=lambda row: order[row["notebook"]]))

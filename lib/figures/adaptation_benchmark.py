"""Figure of the benchmark of whole adaptation steps (`python -m benchmarks.adaptation`)."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.plotting import new_figure


def adaptation_benchmark(table: pd.DataFrame) -> Figure:
    """Seconds of a step, the encoder's share and the rest, for each model, method and side; peak memory beside it."""
    models = list(table["model"].unique())
    bars = table.groupby("model", sort=False).size().max()
    figure, panels = new_figure(11, 1.2 + 0.42 * bars, columns=len(models))
    palette = sns.color_palette("colorblind", 10)
    for axes, model in zip([panels] if len(models) == 1 else panels, models, strict=True):
        rows = table[table["model"] == model]
        variants = rows["variant"].fillna("").map(lambda variant: f", {variant}" if variant else "")
        labels = rows["method"].str.split(",").str[0] + "\n" + rows["who"] + variants
        places = range(len(rows))
        colours = [palette[3] if who == "FusionBench" else palette[0] for who in rows["who"]]
        axes.barh(places, rows["encoder_seconds"], color="0.8", label="image encoder, forward and backward")
        axes.barh(places, rows["other_seconds"], left=rows["encoder_seconds"], color=colours)
        for place, row in zip(places, rows.itertuples(), strict=True):
            words = f" {row.encoder_seconds:.3g} + {row.other_seconds:.2g} s, {row.peak_gb:.1f} GB"
            axes.text(row.seconds_per_step, place, words, va="center", fontsize=8)
        axes.set_yticks(list(places), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * rows["seconds_per_step"].max())
        tasks = sorted(rows["tasks"].unique(), reverse=True)
        axes.set(xlabel="seconds per step", title=f"{model}, T = {' and '.join(map(str, tasks))}")
    handles = [
        *axes.get_legend_handles_labels()[0],
        *(axes.barh([0], [0], color=palette[colour]) for colour in (3, 0)),
    ]
    names = ["image encoder, forward and backward", "the rest, FusionBench", "the rest, this study"]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    row = table.iloc[0]
    figure.suptitle(f"{row['machine']}, {row['threads']} threads, torch {row['torch']}", fontsize=8, color="0.4")
    return figure

"""Figures of the benchmarks: time and memory of the merge in a step, growing with T and with D, and of whole steps."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from lib.figures.plotting import PALETTE, REFERENCE, new_figure

Table = pd.DataFrame

LAYER, ARITHMETIC = "layer-wise coefficients", "Concrete Task Arithmetic"
# What is drawn: label -> (implementation, method, task vectors' type, backend), colour, line, marker.
SERIES = {
    "FusionBench, layer-wise": (("fusion-bench", LAYER, "float32", "auto"), 3, "-", "X"),
    "this study, layer-wise": (("this study", LAYER, "float32", "auto"), 0, "-", "o"),
    "this study, layer-wise, bfloat16 task vectors": (("this study", LAYER, "bfloat16", "auto"), 9, "--", "s"),
    "this study, layer-wise, no compiler": (("this study", LAYER, "float32", "eager"), 7, ":", "v"),
    "this study, Concrete Task Arithmetic": (("this study", ARITHMETIC, "float32", "auto"), 2, "-.", "D"),
}


def _rows(table: Table, key: tuple[str, str, str, str]) -> Table:
    columns = ["implementation", "method", "task_vectors", "backend"]
    return table[(table[columns] == list(key)).all(axis=1)]


def _machine(table: Table) -> str:
    row = table.iloc[0]
    return f"{row['machine']}, {row['threads']} threads, torch {row['torch']}"


def merge_step(table: Table) -> Figure:
    """Seconds and peak memory of one mask step at ViT-B/32 size against the number of tasks T."""
    figure, (left, right) = new_figure(11, 4.2, columns=2)
    palette = PALETTE
    full = table[table["parameters"] == table["parameters"].max()]
    for label, (key, colour, line, marker) in SERIES.items():
        rows = _rows(full, key).sort_values("tasks")
        style = {"color": palette[colour], "ls": line, "marker": marker, "label": label}
        left.plot(rows["tasks"], rows["seconds"], **style)
        right.plot(rows["tasks"], rows["peak_gb"], **style)
    copy = full[full["implementation"] == "memory copy"].iloc[0]
    limit = copy["seconds"] / 8 * 64  # a copy moves 8 bytes per parameter, Concrete Task Arithmetic 64
    left.axhline(limit, ls=":", **REFERENCE)
    left.annotate(
        "64 bytes per parameter\nat copying speed", (2, limit), (0, -26), textcoords="offset points", color="0.4"
    )
    ticks = sorted(full.loc[full["tasks"] > 0, "tasks"].unique())
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="number of tasks T", xticks=ticks)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
    left.set_yticks([0.1, 0.2, 0.5, 1, 2, 5])
    right.set_yticks([2, 5, 10, 20])
    left.set(
        ylabel="seconds per step",
        ylim=(0.5 * limit, None),
        title=f"One mask step, D = {copy['parameters'] / 1e6:.1f} million",
    )
    right.set(ylabel="peak resident memory (GB)", title="The same process's memory")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(_machine(full), fontsize=9, color="0.4")
    return figure


def merge_step_size(table: Table) -> Figure:
    """Seconds of one mask step with eight tasks against the number of parameters D."""
    figure, axes = new_figure(7.5, 4)
    palette = PALETTE
    for label, (key, colour, line, marker) in SERIES.items():
        rows = _rows(table[table["tasks"] == 8], key).sort_values("parameters")
        if len(rows) > 1:
            axes.plot(rows["parameters"], rows["seconds"], color=palette[colour], ls=line, marker=marker, label=label)
    copy = table[table["implementation"] == "memory copy"].sort_values("parameters")
    axes.plot(copy["parameters"], copy["seconds"], color="0.5", ls=":", marker=".", label="copy of one vector")
    axes.set(xscale="log", yscale="log", xlabel="parameters D", ylabel="seconds per step")
    axes.set_title("One mask step, T = 8")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(_machine(table), fontsize=9, color="0.4")
    return figure


def adaptation_benchmark(table: Table) -> Figure:
    """Seconds of a step, the encoder's share and the rest, for each model, method and side; peak memory beside it."""
    models = list(table["model"].unique())
    bars = table.groupby("model", sort=False).size().max()
    figure, panels = new_figure(11, 1.2 + 0.42 * bars, columns=len(models))
    palette = PALETTE
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
            axes.text(row.encoder_seconds + row.other_seconds, place, words, va="center", fontsize=8)
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
    figure.suptitle(_machine(table), fontsize=9, color="0.4")
    return figure

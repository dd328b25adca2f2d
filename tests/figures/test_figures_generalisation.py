"""The figures of notebooks 13 and 90, from made-up tables with one and with three seeds; the index of all figures."""

import pandas as pd
import pytest
from error_bars import dots

from lib import figures
from lib.figures import generalisation
from lib.figures.index import figure_index
from lib.study.study import ROOT

METHODS = ("Task Arithmetic", "AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)")
TASKS = ("aerial", "textures", "street_digits")


def rows(seeds, **columns):
    """A table with every combination of the columns' values, methods and seeds."""
    index = pd.MultiIndex.from_product([*columns.values(), METHODS, seeds], names=[*columns, "method", "seed"])
    return index.to_frame(index=False)


def error_bars(axes):
    """Half lengths of the error bars, as drawn."""
    return [
        abs(segment[:, 0].max() - segment[:, 0].min()) / 2 + abs(segment[:, 1].max() - segment[:, 1].min()) / 2
        for container in axes.containers
        for bars in container[2]
        for segment in bars.get_segments()
    ]


def test_unseen_tasks_stand_beside_the_merged_ones(seeds):
    table = rows(seeds, experiment=["A", "B"], task=TASKS)
    table["seen"] = table["task"] != "street_digits"
    table["accuracy"] = 0.8 - 0.5 * ~table["seen"] + 0.01 * table["seed"] - 0.1 * (table["experiment"] == "B")
    figure = generalisation.unseen_tasks(table)
    assert [axes.get_title() for axes in figure.axes] == [
        "A: merged (2 tasks)", "A: not merged (street digits)",
        "B: merged (2 tasks)", "B: not merged (street digits)",
    ]  # fmt: skip
    middle = (len(seeds) - 1) / 2
    for axes, mean in zip(figure.axes, (80, 30, 70, 20), strict=True):
        assert dots(axes, "x") == pytest.approx([mean + middle] * len(METHODS))
        assert error_bars(axes) == pytest.approx([1.0] * len(METHODS) if len(seeds) > 1 else [])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(reversed(METHODS))


def test_corruptions_in_the_order_of_the_table(seeds):
    table = rows(seeds, corruption=["clean", "impulse_noise", "contrast"])
    table["accuracy"] = 0.9 - 0.2 * (table["corruption"] == "contrast") + 0.01 * table["seed"]
    (axes,) = generalisation.corruptions(table).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["clean", "impulse\nnoise", "contrast"]
    middle = (len(seeds) - 1) / 2
    assert dots(axes, "y") == pytest.approx([90 + middle, 90 + middle, 70 + middle] * len(METHODS))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(METHODS)
    places = dots(axes, "x")
    assert len({round(place, 3) for place in places}) == len(places), "two methods' dots lie on each other"
    assert max(error_bars(axes)) == pytest.approx(1.0 if len(seeds) > 1 else 0)


def test_similar_tasks_by_rising_cosine(seeds):
    table = rows(seeds, subset=["most alike", "least alike"])
    table["cosine"] = 0.1 + 0.2 * (table["subset"] == "most alike")
    table["share"] = 0.7 + 0.1 * (table["subset"] == "most alike")
    (axes,) = generalisation.similar_tasks(table).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "least alike\n(mean cosine 0.100)", "most alike\n(mean cosine 0.300)",
    ]  # fmt: skip
    assert dots(axes, "y") == pytest.approx([70, 80] * len(METHODS))


def test_pairs_left_out_are_drawn_as_gains_over_zero_shot(seeds):
    table = rows(seeds, pair=["a b", "a c"], task=["a"])
    table["accuracy"] = 0.5 + 0.1 * (table["pair"] == "a b")
    zero = table.drop_duplicates(["pair", "task", "seed"]).assign(method="Zero-shot", accuracy=0.4)
    (axes,) = generalisation.unseen_pairs(pd.concat([table, zero])).axes
    means = {line.get_label(): line.get_xdata()[0] for line in axes.get_lines() if line.get_label() in METHODS}
    assert means == pytest.approx(dict.fromkeys(METHODS, 15.0))
    assert axes.get_yticklabels()[0].get_text() == "a"


def test_triples_are_a_mark_each_and_equal_classes_are_told(seeds):
    sets = [("a b c", 0.01, 0.3, False), ("a b d", 0.02, 0.4, True), ("b c d", 0.03, 0.5, False)]
    table = pd.DataFrame(
        [(*row, seed) for row in sets for seed in seeds], columns=["tasks", "cosine", "share", "same_classes", "seed"]
    )
    (axes,) = generalisation.triples(table).axes
    different, same = (bars.lines[0].get_xydata().tolist() for bars in axes.containers)
    assert different == [pytest.approx([0.01, 30]), pytest.approx([0.03, 50])]
    assert same == [pytest.approx([0.02, 40])]
    assert "3 sets of three tasks" in axes.get_title()


def test_against_the_paper_in_the_published_order_and_on_one_lineage(seeds):
    table = rows(seeds).assign(lineage="task-vectors", model="ViT-B/32")
    table["published"] = table["method"].map(dict(zip(METHODS, (76, 93, 89), strict=True)))
    table["here"] = 70.0 + table["seed"]
    (axes,) = generalisation.against_the_paper(table).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [METHODS[0], METHODS[2], METHODS[1]]
    assert dots(axes, "x") == pytest.approx([70 + (len(seeds) - 1) / 2] * 3)
    assert "ViT-B/32" in axes.get_legend().get_texts()[1].get_text()
    table.loc[0, "lineage"] = "hugging-face"
    with pytest.raises(ValueError, match="hugging-face ViT-B/32; task-vectors ViT-B/32: choose one"):
        generalisation.against_the_paper(table)


def test_the_index_names_every_figure_that_is_committed():
    index = figure_index(figures.FIGURES, ROOT / "notebooks")
    assert index["figure"].is_unique
    named = tuple(index["figure"])
    for path in (ROOT / "figures").rglob("*.png"):  # a benchmark's figure may end in the name of a machine
        found = path.stem.startswith(named) if "benchmarks" in path.parts else path.stem in named
        assert found, f"{path} is not in the index: see lib/figures/index.py"
    by_name = index.set_index("figure")
    assert by_name.loc["norms", ["table", "notebook"]].tolist() == ["norms.csv", "02_task_vectors"]
    assert by_name.loc["relaxation", "table"] == "none (a formula)"
    assert by_name.loc["merge_step", "table"] == "data/benchmarks/merge_step.csv"
    assert not (by_name["shows"] == "").any()

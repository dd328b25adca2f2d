"""Figures of notebooks 09 and 17, drawn from small made-up tables."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from lib.figures.bases import ARMS, KINDS, any_base, few_coefficients, rates, unlabelled_data
from lib.figures.plotting import OBJECTIVE_NAMES

TASKS = ("scenes", "textures")


def rate_table(seeds):
    rows = itertools.product(seeds, OBJECTIVE_NAMES, (1e-3, 1e-2, 1e-1))
    return pd.DataFrame(
        {"objective": name, "rate": rate, "held_back": abs(np.log10(rate) + 2), "accuracy": 0.5 + rate, "seed": seed}
        for seed, name, rate in rows
    )


def base_table(seeds):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"objective": name, "base": base, "arm": arm, "task": task, "seed": seed, "accuracy": rng.uniform(0.6, 0.9)}
        for seed, name, base, arm, task in itertools.product(seeds, ("entropy", "expert-kl"), ("A", "B"), ARMS, TASKS)
    )


def few_table(seeds):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"coefficients": kind, "mask": mask, "task": task, "seed": seed, "accuracy": rng.uniform(0.6, 0.9)}
        for seed, kind, mask, task in itertools.product(seeds, KINDS, ("no mask", "mask"), TASKS)
    )


def data_table(seeds):
    rng = np.random.default_rng(0)
    amounts = [("amount", source, count) for source in ("adaptation split", "training split") for count in (8, 500)]
    points = [*amounts, ("amount", "another task's", 500), ("mixture", "even", 0), ("mixture", "long tail", 0)]
    return pd.DataFrame(
        {
            "experiment": experiment,
            "source": source,
            "images": count,
            "objective": name,
            "task": task,
            "seed": seed,
            "accuracy": rng.uniform(0.7, 0.9),
            "start_accuracy": 0.66,
        }
        for seed, (experiment, source, count), name, task in itertools.product(seeds, points, OBJECTIVE_NAMES, TASKS)
    )


DRAWN = [(rates, rate_table), (any_base, base_table), (few_coefficients, few_table), (unlabelled_data, data_table)]


@pytest.mark.parametrize(("drawn", "table"), DRAWN, ids=lambda value: value.__name__)
def test_figures_are_drawn_for_one_seed_and_for_several(drawn, table, seeds):
    figure = drawn(table(seeds))
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title() or axes.get_title("left")
    words = f"{len(seeds)} seed"
    assert words in " ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))
    first, second = io.BytesIO(), io.BytesIO()
    figure.savefig(first, format="png")
    drawn(table(seeds)).savefig(second, format="png")
    assert first.getvalue() == second.getvalue()


def test_the_ring_is_where_the_held_back_objective_is_lowest(seeds):
    figure = rates(rate_table(seeds))
    rings = [line for axes in figure.axes for line in axes.lines if line.get_markersize() == 12]
    assert len(rings) == 2 * len(OBJECTIVE_NAMES)
    assert {float(ring.get_xdata()[0]) for ring in rings} == {1e-2}


def test_every_arm_of_every_base_is_a_mark_at_its_mean(seeds):
    table = base_table(seeds)
    figure = any_base(table)
    for axes, objective in zip(figure.axes, ("entropy", "expert-kl"), strict=True):
        own = table[table["objective"] == objective]
        wanted = 100 * own.groupby(["base", "arm"])["accuracy"].mean()
        drawn = sorted(bar.lines[0].get_xdata()[0] for bar in axes.containers)
        assert drawn == pytest.approx(sorted(wanted))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["B", "A"], "the first on top"


def test_what_a_mask_adds_is_written_beside_its_row(seeds):
    table = few_table(seeds)
    figure = few_coefficients(table)
    mean = 100 * table.groupby(["coefficients", "mask"])["accuracy"].mean().unstack("mask")
    added = (mean["mask"] - mean["no mask"])[list(reversed(KINDS))]
    written = [text.get_text().replace("−", "-") for text in figure.axes[0].texts]
    assert written == [f"{difference:+.1f}" for difference in added]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(reversed(KINDS))


def test_an_objective_has_one_colour_in_all_panels(seeds):
    figure = unlabelled_data(data_table(seeds))
    colours = [{line.get_color() for line in axes.lines if line.get_marker() == "o"} for axes in figure.axes]
    assert colours[0] == colours[1] == colours[2]
    assert len(colours[0]) == len(OBJECTIVE_NAMES)

"""Figures of notebooks 08 and 12, drawn from small made-up tables."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from lib.figures.failures import gains, objectives
from lib.figures.protocol import differences, hypergradient, protocol

TASKS = {"scenes": 12, "street_digits": 10, "textures": 12}
BOTH = (("entropy", 0.0), ("information-maximisation", 1.0))


def objective_table(seeds):
    rng, rows = np.random.default_rng(0), []
    base = {"batch": 16, "scale": 0.3, "mix": "all images", "scored": "held-out", "method": "AdaMerging (layer-wise)"}

    def add(experiment, objective, diversity, **changed):
        for seed, (task, classes) in itertools.product(seeds, TASKS.items()):
            start = rng.uniform(0.3, 0.8)
            row = {"experiment": experiment, "objective": objective, "diversity": diversity, **base, **changed}
            rows.append(row | {"task": task, "classes": classes, "start_accuracy": start, "seed": seed})
            rows[-1]["accuracy"] = start + rng.normal(0.02 * (diversity > 0), 0.05)

    for objective, diversity in BOTH:
        for scale in (0.05, 0.15, 0.3, 0.6, 1.0):
            add("start", objective, diversity, scale=scale)
        for batch in (4, 16, 64):
            add("batch", objective, diversity, batch=batch)
        for mix, scored in itertools.product(("all images", "even (as few)", "long tail"), ("held-out", "long tail")):
            add("mix", objective, diversity, mix=mix, scored=scored)
        for method in ("AdaMerging (layer-wise)", "Concrete Task Arithmetic"):
            add("mask", objective, diversity, method=method)
    for diversity in (0.0, 0.3, 1.0, 3.0):
        add("diversity", BOTH[diversity > 0][0], diversity)
    return pd.DataFrame(rows)


def protocol_table(seeds):
    choices = [("base", ""), ("final_mask", "sample"), ("rescale", "False"), ("initial_logits", "3")]
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"choice": c, "value": v, "phase": p, "accuracy": rng.uniform(0.6, 0.7), "density": rng.uniform(), "seed": seed}
        for seed, (c, v), p in itertools.product(seeds, choices, ("after the mask", "after adaptation"))
    )


def hypergradient_table(seeds):
    sizes = {"SGD, rate 1": 1.0, "SGD, rate 0.1": 0.1, "Adam, moments kept": 0.08, "Adam, moments reset": 1e-4}
    return pd.DataFrame(
        {"inner_optimiser": name, "step": k, "cosine": 1 - size / 9, "relative_size": size * (1 + seed), "seed": seed}
        for seed, (name, size), k in itertools.product(seeds, sizes.items(), range(4))
    )


DRAWN = [(objectives, objective_table), (protocol, protocol_table), (hypergradient, hypergradient_table)]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize(("draw", "table"), DRAWN)
def test_every_panel_has_labelled_axes_and_can_be_written(draw, table, seeds):
    figure = draw(table(seeds))
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) in {objectives: (6,), protocol: (1, 2), hypergradient: (2,)}[draw]  # large effects apart
    for axes in shown:
        assert axes.has_data() and (axes.get_xlabel() or axes is not shown[-1])
        assert axes.get_title() or figure.get_suptitle()
    assert all(axes.get_ylabel() for axes in shown) or draw is protocol
    figure.savefig(stream := io.BytesIO(), format="png")
    assert stream.tell() > 5000


def test_a_table_with_some_experiments_draws_those():
    table = objective_table((0,))
    figure = objectives(table[table["experiment"].isin(["start", "diversity"])])
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert len(titles) == 3 and titles[-1] == "By the weight of diversity"


def test_gains_are_paired_with_their_own_start_and_spread_over_seeds_only():
    rows = [
        {"objective": "entropy", "task": task, "seed": seed, "start_accuracy": 0.5, "accuracy": 0.5 + gain}
        for (task, more), seed in itertools.product((("a", 0.0), ("b", 0.2)), (0, 1))
        for gain in [more + 0.02 * seed]
    ]
    found = gains(pd.DataFrame(rows), "objective").iloc[0]
    assert found["start"] == pytest.approx(50)
    assert found["gain"] == pytest.approx(11)
    assert found["std"] == pytest.approx(2 / 2**0.5)  # seeds 10 and 12; the tasks' 20 points apart do not count
    assert gains(pd.DataFrame(rows[:1]), "objective")["std"].iloc[0] == 0


def test_differences_are_taken_within_a_seed_and_phase():
    table = pd.DataFrame(
        [
            {"choice": c, "value": "", "phase": p, "seed": s, "density": 0.5, "accuracy": 0.5 + 0.1 * s + more}
            for p, s, (c, more) in itertools.product(
                ("after the mask", "after adaptation"), (0, 1, 2), (("base", 0.0), ("tie", 0.03))
            )
        ]
    )
    found = differences(table.sample(frac=1, random_state=0)).set_index(["choice", "phase"])
    assert found.loc[("tie", "after the mask"), "difference"] == pytest.approx(3)
    assert found["std"].to_numpy() == pytest.approx(np.zeros(4), abs=1e-9)
    assert found.loc["base", "difference"].to_numpy() == pytest.approx(np.zeros(2), abs=1e-9)

"""Which method when: what each method may use, what it costs, and its share of the gap."""

import io
import itertools

import pandas as pd
import pytest

from lib.figures.merging import which_method as draw
from lib.fusion import METHODS, PER_TASK
from lib.study.needs import GRADIENTS, INPUTS, LABELS, NEEDS, NOTHING, TEACHERS, gradients, needed, which_method
from lib.study.profiles import get_profile
from lib.study.recipes import RECIPES

BUDGET = get_profile("tiny", mask_steps=50, adaptation_steps=30)


@pytest.mark.parametrize(
    "method, uses",
    [
        ("Task Arithmetic", NOTHING),
        ("Ties-Merging (mean rule)", NOTHING),
        ("EMR-Merging", NOTHING),
        ("TSV-M (tuned)", LABELS),
        ("RegMean++", INPUTS),
        ("FeatCal", INPUTS),
        ("Concrete Task Arithmetic", GRADIENTS),
        ("AdaMerging (layer-wise), IM", GRADIENTS),
        ("Concrete AdaMerging (layer-wise) on TSV-M, experts", TEACHERS),
    ],
)
def test_what_a_method_may_use(method: str, uses: str) -> None:
    assert needed(method) == uses


def test_every_registered_method_has_its_place() -> None:
    for name in (*(entry.name for entry in (METHODS | PER_TASK).values()), *RECIPES):
        assert needed(name) in NEEDS


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is known of what 'Magic' needs"):
        needed("Magic")


@pytest.mark.parametrize(
    "method, count",
    [
        ("Task Arithmetic", 0),
        ("AdaMerging (task-wise)", 30),
        ("Concrete Task Arithmetic", 50),  # one gradient per step: there is no inner level
        ("Concrete AdaMerging (layer-wise), IM", 130),  # two per step of the mask, then adaptation
    ],
)
def test_gradients(method: str, count: int) -> None:
    assert gradients(method, BUDGET) == count


@pytest.fixture
def table() -> pd.DataFrame:
    """Two seeds; zero-shot at 0.5, experts at 0.9."""
    scores = {"Zero-shot": 0.5, "Task Arithmetic": 0.6, "FeatCal": 0.8, "AdaMerging (layer-wise)": 0.7, "Experts": 0.9}
    rows = itertools.product(scores.items(), ("a", "b"), ("test", "adaptation"), (0, 1))
    results = pd.DataFrame(
        {"method": name, "task": task, "split": split, "seed": seed, "accuracy": value + (0.1 if task == "a" else -0.1)}
        for (name, value), task, split, seed in rows
    )
    own = results[results["method"] == "FeatCal"]
    per_task = own.assign(method="EMR-Merging", keeps="a mask")
    arms = [("coefficients", 30, 0.86), ("mask and coefficients", 130, 0.88), ("shuffled mask", 130, 0.7)]
    any_base = pd.DataFrame(
        {"objective": objective, "base": base, "arm": arm, "task": "a", "seed": seed, "accuracy": value, "gradients": n}
        for objective, base, (arm, n, value), seed in itertools.product(
            ("entropy", "expert-kl"), ("Task Arithmetic", "TSV-M"), arms, (0, 1)
        )
    )
    kept = {"SyMerge": "a head", "coefficients, with Surgery": "a module", "coefficients": "nothing"}
    adapted = pd.concat([own.assign(method=name, keeps=what, gradients=30) for name, what in kept.items()])
    return which_method(results, per_task, any_base, adapted, BUDGET)


def test_shares_are_of_the_same_seed_and_of_held_out_inputs(table: pd.DataFrame) -> None:
    by_name = table[table["seed"] == 1].set_index("method")
    assert by_name.loc["Task Arithmetic", "share"] == pytest.approx(0.25)
    assert by_name.loc["AdaMerging (layer-wise) on TSV-M, experts", "share"] == pytest.approx(0.9)
    assert by_name.loc["EMR-Merging", "keeps"] == "a mask"
    assert by_name.loc["Concrete AdaMerging (layer-wise), experts", ["uses", "gradients"]].tolist() == [TEACHERS, 130]
    assert by_name.index.is_unique
    assert not {"Zero-shot", "Experts", "shuffled mask"} & set(by_name.index)


def test_the_figure_has_a_panel_for_each_need_and_a_line_for_each_method(table: pd.DataFrame) -> None:
    figure = draw(pd.read_csv(io.StringIO(table.to_csv(index=False))))  # as it is saved and read again
    assert len(figure.axes) == table["uses"].nunique()
    drawn = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert sorted(drawn) == sorted(table["method"].unique())
    hollow = {
        label.get_text()
        for axes in figure.axes
        for label, bars in zip(axes.get_yticklabels(), axes.containers, strict=True)
        if bars[0].get_markerfacecolor() == "white"
    }
    assert hollow == {"EMR-Merging", "SyMerge", "AdaMerging (layer-wise), with Surgery"}

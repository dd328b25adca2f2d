"""Figures of masks, phases and gains draw what the tables say, from one seed and from three."""

import numpy as np
import pandas as pd
import pytest

from lib.figures import curves, mask, merging

TASKS = ("scenes", "land_cover")
PLAIN, CONCRETE = "AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)"
CONTROL = "Concrete AdaMerging, shuffled mask (control)"


def phases_table(seeds):
    rows = []
    for seed in range(seeds):
        for method, parts in ((PLAIN, ["adaptation"]), (CONCRETE, ["mask", "adaptation"]), (CONTROL, ["adaptation"])):
            for phase in parts:
                for step in range(41):
                    rows.append(
                        {
                            "method": method, "phase": phase, "step": step, "seed": seed,
                            "loss": 4 - step / 40 + 0.1 * seed if step else np.nan,
                            "accuracy": 0.6 + step / 400 + 0.01 * seed if step % 20 == 0 else np.nan,
                            "averaging": 0.58 if step == 40 else np.nan,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def scores_table(seeds, **gain):
    """Accuracies by seed and task; every method lies `gain` above 0.6, which itself depends on seed and task."""
    return pd.DataFrame(
        {
            "method": method,
            "task": task,
            "split": split,
            "seed": seed,
            "accuracy": 0.6 + 0.1 * place + 0.05 * seed + more,
        }
        for method, more in gain.items()
        for place, task in enumerate(TASKS)
        for split in ("adaptation", "test")
        for seed in range(seeds)
    )


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("seeds", [1, 3])
def test_phases_show_the_mean_over_seeds_and_a_band_where_there_are_several(seeds):
    figure = curves.phases(phases_table(seeds))
    accuracy_mask, accuracy_adaptation, loss_mask, _ = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [1, 3, 1, 3]
    line = accuracy_mask.lines[0]
    assert list(line.get_xdata()) == [0, 20, 40], "only the steps that were scored"
    assert line.get_ydata()[-1] == pytest.approx(70 + (seeds - 1) / 2)
    assert len(accuracy_adaptation.collections) == (3 if seeds > 1 else 0)
    assert accuracy_mask.get_ylim() == accuracy_adaptation.get_ylim(), "the two phases share their scale"
    # each seed is smoothed over ten steps: at the end the mean of the steps 31 to 40
    assert loss_mask.lines[0].get_ydata()[-1] == pytest.approx(4 - 35.5 / 40 + 0.1 * (seeds - 1) / 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [PLAIN, CONCRETE, CONTROL]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("drawn", [curves.mask_curve, curves.adaptation_curve])
def test_curves_are_shown_against_their_start_and_plain_averaging(drawn, seeds):
    table = phases_table(seeds).query("phase == 'adaptation'")
    entropy, accuracy = drawn(table).axes
    assert len(entropy.lines) == 3
    references = {line.get_label(): line.get_ydata()[0] for line in accuracy.lines[-2:]}
    assert references == {"Task Arithmetic": pytest.approx(60 + (seeds - 1) / 2), "Weight averaging": pytest.approx(58)}


def test_a_method_keeps_its_line_whatever_else_is_drawn():
    assert curves.line_style(PLAIN) == "-"
    assert curves.line_style("AdaMerging (task-wise)") == "--"
    assert curves.line_style(CONTROL) == ":"


def test_the_diagram_names_both_levels_and_both_phases():
    words = " ".join(texts(curves.bilevel()))
    for word in ("inner level", "upper level", "Phase 1", "Phase 2"):
        assert word in words


@pytest.mark.parametrize("seeds", [1, 3])
def test_gains_are_differences_within_a_seed(seeds):
    table = scores_table(seeds, **{PLAIN: 0.04, CONCRETE: 0.03, CONTROL: 0.0})
    table.loc[table["split"] == "adaptation", "accuracy"] = 0  # not what is drawn
    figure = merging.concrete_adamerging(table)
    assert texts(figure) == ["\N{MINUS SIGN}4.0", "\N{MINUS SIGN}1.0"], (
        "from the last method up to the first, the base itself left out"
    )
    assert all(bar.has_xerr == (seeds > 1) for bar in figure.axes[0].containers)
    assert "3 seeds" in figure.axes[0].get_title() or seeds == 1


@pytest.mark.parametrize(
    ("drawn", "base"),
    [
        (merging.adaptation, "Task Arithmetic"),
        (merging.concrete_task_arithmetic, "Task Arithmetic"),
        (merging.concrete_adamerging, PLAIN),
    ],
)
def test_every_table_of_scores_has_its_base(drawn, base):
    figure = drawn(scores_table(2, **{base: 0.0, CONCRETE: 0.01}))
    assert texts(figure) == ["+1.0"]
    assert base in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("seeds", [1, 3])
def test_coefficients_are_averaged_over_seeds(seeds):
    rows = [
        {"method": method, "task": task, "position": layer, "coefficient": layer + 0.1 * seed, "seed": seed}
        for method in (PLAIN, CONCRETE) for task in TASKS for layer in range(12) for seed in range(seeds)
    ]  # fmt: skip
    figure = merging.concrete_coefficients(pd.DataFrame(rows))
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == [PLAIN, CONCRETE]
    shown = maps[0].collections[0].get_array().reshape(len(TASKS), 12)
    np.testing.assert_allclose(shown, np.tile(np.arange(12) + 0.1 * (seeds - 1) / 2, (len(TASKS), 1)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_density_has_one_dot_per_layer_whatever_the_number_of_seeds(seeds):
    rows = [
        {"position": layer, "kind": ("bias", "MLP")[layer % 2], "density": 0.5 + seed / 10, "seed": seed}
        for layer in range(4)
        for seed in range(seeds)
    ]
    axes = mask.density(pd.DataFrame(rows)).axes[0]
    kinds = [axes.collections[place].get_offsets() for place in (-2, -1)]  # a collection for each kind of layer
    assert [len(dots) for dots in kinds] == [2, 2]
    assert kinds[0][0][1] == pytest.approx(0.5 + (seeds - 1) / 20)


@pytest.mark.parametrize("seeds", [1, 3])
def test_mask_agreement_shows_the_mask_the_layers_and_the_overall_mean(seeds):
    rows = [
        {"by": by, "bin": place, "share": share, "probability": value + 0.01 * seed, "by_layer": 0.5, "seed": seed}
        for by in ("sign agreement", "size of the sum")
        for place, share, value in ((0.0, 0.75, 0.4), (1.0, 0.25, 0.8))
        for seed in range(seeds)
    ]
    figure = mask.mask_agreement(pd.DataFrame(rows))
    for axes in figure.axes:
        learned, layers, *_ = (container.lines[0] for container in axes.containers)
        shift = 0.01 * (seeds - 1) / 2
        np.testing.assert_allclose(learned.get_ydata().astype(float), [0.4 + shift, 0.8 + shift])
        np.testing.assert_allclose(layers.get_ydata().astype(float), 0.5)
        overall = next(line for line in axes.lines if line.get_label() == "over all parameters")
        assert overall.get_ydata()[0] == pytest.approx(0.5 + shift), "weighted by the bins' shares"


@pytest.mark.parametrize("seeds", [1, 3])
def test_masked_experts_end_with_their_mean_over_tasks(seeds):
    rows = [
        {"method": method, "task": task, "accuracy": level + 0.1 * place + 0.02 * seed, "seed": seed}
        for method, level in (("expert", 0.8), ("in the learned mask", 0.7))
        for place, task in enumerate(TASKS)
        for seed in range(seeds)
    ]
    axes = mask.masked_experts(pd.DataFrame(rows)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["scenes", "land cover", "mean"]
    inside = axes.containers[1].lines[0]
    np.testing.assert_allclose(inside.get_xdata().astype(float), np.array([70, 80, 75]) + seeds - 1)

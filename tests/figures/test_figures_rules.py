"""What holds for every figure of the study: ticks, labels, minus signs, one colour per method, the palette."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from lib.figures import ablations, backbones, counts, curves, experts, generalisation, language, mask, merging
from lib.figures.plotting import COLOURS, OBJECTIVE_COLOURS, PALETTE, method_colours, new_figure, number, percent_axis
from lib.figures.protocol import PHASES, protocol

STEPS = (0, 10, 20)
TASKS = ("scenes", "land_cover", "textures")
PLAIN, MASKED = "AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)"
METHODS = ("Weight averaging", "Task Arithmetic", "Concrete Task Arithmetic", PLAIN, MASKED)


def table(seeds=(0, 1, 2), **columns):
    """All combinations of the columns' values, with an accuracy up to 1 that differs between rows."""
    index = pd.MultiIndex.from_product([*columns.values(), seeds], names=[*columns, "seed"])
    rows = index.to_frame(index=False)
    return rows.assign(accuracy=np.random.default_rng(0).permutation(np.linspace(0.4, 1.0, len(rows))))


def scores():
    return table(method=METHODS, task=TASKS, split=["test"])


def phases():
    rows = table(method=[PLAIN, MASKED, f"{PLAIN}, IM", f"{MASKED}, IM"], phase=["mask", "adaptation"], step=STEPS)
    rows = rows.assign(loss=np.linspace(4, 2, len(rows)), averaging=0.4)
    return rows[rows["method"].str.startswith("Concrete") | (rows["phase"] == "adaptation")].copy()


def pairs_of_tasks():
    rows = [(a, b, -0.004 if a > b else 0.03, 0.49) for a, b in itertools.permutations(TASKS, 2)]
    return pd.DataFrame(rows, columns=["task", "other", "cosine", "sign_agreement"])


def choices():
    changed = [("base", "unchanged"), ("initial_logits", "-1"), ("final_mask", "hard"), ("inner_rate", "1")]
    rows = [
        (choice, value, phase, 0.5, seed, 0.9 - 0.2 * (value == "hard") - 0.001 * seed)
        for (choice, value), phase, seed in itertools.product(changed, PHASES, range(3))
    ]
    return pd.DataFrame(rows, columns=["choice", "value", "phase", "density", "seed", "accuracy"])


def counted():
    """Sets of two and of eight tasks, with the two ends of the scale."""
    learned = table(count=[2, 8], subset=["a"], objective=["entropy", "expert-kl"], method=METHODS[2:], task=TASKS)
    plain = table(count=[2, 8], subset=["a"], objective=["none"], method=METHODS[:2], task=TASKS)
    ends = table(count=[2, 8], subset=["a"], objective=["none"], method=["Zero-shot", "Experts"], task=TASKS)
    ends["accuracy"] = ends["method"].map({"Zero-shot": 0.3, "Experts": 1.0})
    return pd.concat([learned, plain, ends])


def temperatures():
    kinds = [*ablations.FINAL_MASKS]
    rows = table(temperature=[0.1, 0.5, 2.0], final_mask=kinds)
    return rows.assign(density=0.5, hard_share=1.0, undecided_share=0.0)


DRAWN = {
    "results": lambda: merging.results(scores()),
    "adaptation": lambda: merging.adaptation(scores()),
    "by_task": lambda: merging.by_task(scores()),
    "phases": lambda: curves.phases(phases()),
    "adaptation_curve": lambda: curves.adaptation_curve(phases().query("phase == 'adaptation'")),
    "entropy_against_accuracy": lambda: curves.entropy_against_accuracy(phases()),
    "mask_steps": lambda: curves.mask_steps(phases()),
    "architectures": lambda: backbones.architectures(table(architecture=["A", "B"], method=METHODS, task=TASKS)),
    "task_count": lambda: counts.task_count(counted()),
    "temperature": lambda: ablations.temperature(temperatures()),
    "similar_tasks": lambda: generalisation.similar_tasks(
        table(subset=["least alike", "most alike"], method=METHODS).assign(
            share=lambda rows: rows["accuracy"], cosine=lambda rows: -0.01 * (rows["subset"] == "least alike")
        )
    ),
    "similarity": lambda: experts.similarity(pairs_of_tasks()),
    "learning_curves": lambda: experts.learning_curves(
        table(seeds=(0,), task=["stanford_cars", "sun397"], step=[52, 104, 156, 416, 420]).assign(
            loss=0.5, validation_accuracy=lambda rows: rows["accuracy"]
        )
    ),
    "protocol": lambda: protocol(choices()),
    "first_token": lambda: language.first_token(
        table(model=list(language.MODELS), task=TASKS).assign(entropy=1.0, right=lambda rows: rows["accuracy"])
    ),
    "masked_experts": lambda: mask.masked_experts(
        table(method=["expert", "in the learned mask", "in it, shuffled", "in the hard mask"], task=TASKS)
    ),
}


def words(figure):
    """Every text that is seen on a figure."""
    FigureCanvasAgg(figure).draw()
    found = figure.findobj(lambda part: hasattr(part, "get_text"))
    return [part.get_text() for part in found if part.get_visible() and part.get_text()]


def seen_ticks(axis):
    """Ticks within the view."""
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_majorticklocs() if low <= tick <= high]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_keeps_the_rules(name):
    figure = DRAWN[name]()
    texts = words(figure)
    assert not [text for text in texts if re.search(r"(^|[\s(:])[-][\d.]", text)], "a hyphen in place of a minus sign"
    assert not [text for text in texts if re.search(r"−0\.?0*$", text)], "a zero with a sign"
    assert not [text for text in texts if re.search(r"[a-z]_[a-z]", text)], "the name of a column"
    for axes in figure.axes:
        if not axes.axison or not axes.has_data():
            continue
        assert axes.get_title() or axes.get_title("left") or figure.get_suptitle() or not axes.lines or name == "phases"
        for axis in (axes.xaxis, axes.yaxis):
            if "%" in axis.get_label_text():
                assert max(seen_ticks(axis), default=0) <= 100, f"{axis.get_label_text()}: {seen_ticks(axis)}"


@pytest.mark.parametrize("name", DRAWN)
def test_a_legend_has_no_two_entries_that_look_the_same(name):
    figure = DRAWN[name]()
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        looks = []
        for handle in legend.legend_handles:
            line = handle if hasattr(handle, "get_linestyle") and hasattr(handle, "get_marker") else None
            if line is not None:
                face = str(line.get_markerfacecolor())
                looks.append((to_rgb(line.get_color()), line.get_linestyle(), str(line.get_marker()), face))
        assert len(set(looks)) == len(looks), name


def test_no_tick_is_above_a_hundred_percent_and_all_are_whole():
    _, axes = new_figure(4, 3)
    for low, high in ((50, 106), (90, 100.4), (0, 101), (97, 103)):
        axes.plot([low, high], [low, high])
        percent_axis(axes, "y", "accuracy (%)")
        axes.set_ylim(low, high)
        ticks = seen_ticks(axes.yaxis)
        assert ticks and max(ticks) <= 100
        assert all(tick == int(tick) for tick in ticks)


def test_numbers_have_a_minus_sign_and_zero_has_none():
    assert [number(value, "+.1f") for value in (-2.04, 0.5, -0.04)] == ["\N{MINUS SIGN}2.0", "+0.5", "+0.0"]
    assert [number(value, ".2f") for value in (-0.001, -0.01)] == ["0.00", "\N{MINUS SIGN}0.01"]


def test_every_method_has_a_colour_of_its_own_whatever_else_is_drawn():
    colours = method_colours(COLOURS)
    for one, other in itertools.combinations(colours, 2):
        assert np.abs(np.subtract(colours[one], colours[other])).max() > 0.04, f"{one} and {other} look the same"
    for method in COLOURS:
        assert method_colours([method])[method] == colours[method]
        assert method_colours(["of one's own", method])[method] == colours[method]
    assert method_colours([f"{PLAIN} on TSV-M, experts"]).popitem()[1] == colours[PLAIN], "a variant is drawn alike"


def test_objectives_share_no_colour_with_methods():
    for objective, method in itertools.product(OBJECTIVE_COLOURS.values(), method_colours(COLOURS).values()):
        assert np.abs(np.subtract(objective, method)).max() > 0.04


def test_a_method_is_drawn_in_its_colour_in_every_figure():
    drawn = {
        "task_count": counts.task_count(counted()),
        "variance": backbones.activation_variance(table(method=METHODS, position=[0, 1, 2], share=[1.0])),
        "scaling": merging.scaling(table(method=METHODS, task=TASKS, scaling_factor=[0.1, 0.3, 1.0])),
    }
    wanted = method_colours(METHODS)
    for name, figure in drawn.items():
        for handle, text in zip(*(figure.axes[0].get_legend_handles_labels()), strict=True):
            line = handle if hasattr(handle, "get_color") else handle.lines[0]
            assert to_rgb(line.get_color()) == pytest.approx(wanted[text]), f"{text} in {name}"


def test_curves_without_a_method_come_from_the_colour_blind_safe_palette():
    figure = backbones.running_statistics(table(statistics=["pre-trained", "re-estimated"], scaling_factor=[0.1, 1.0]))
    safe = [*PALETTE, (0.2, 0.2, 0.2)]
    assert all(min(np.abs(np.subtract(to_rgb(line.get_color()), one)).max() for one in safe) < 0.01
               for line in figure.axes[0].lines)  # fmt: skip


def test_dumbbells_show_both_methods_the_gain_and_the_mean():
    rows = scores()
    figure = merging.by_task(rows)
    axes = figure.axes[1]
    assert axes.get_title() == f"{MASKED}\nagainst {PLAIN}"
    by_task = 100 * rows.pivot_table(index="task", columns="method", values="accuracy")
    gains = (by_task[MASKED] - by_task[PLAIN]).sort_values(ascending=False)
    names = [label.get_text() for label in axes.get_yticklabels()][::-1]
    assert names == [*(task.replace("_", " ") for task in gains.index), "mean"]
    assert [text.get_text() for text in axes.texts][-1] == number(gains.iloc[0], "+.1f"), "the largest on top"
    assert f"{(gains > 0).sum()} tasks up, {(gains < 0).sum()} down" in axes.get_xlabel()
    with pytest.raises(ValueError, match="none of the pairs"):
        merging.by_task(rows[rows["method"] == PLAIN])


def test_the_plane_of_entropy_and_accuracy_joins_the_phases():
    axes = curves.entropy_against_accuracy(phases()).axes[0]
    paths = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in paths] == [PLAIN, MASKED], "another objective has another loss"
    assert [len(line.get_xdata()) for line in paths] == [3, 6]
    assert axes.xaxis_inverted()


def test_the_gain_of_a_mask_starts_at_zero_and_is_taken_within_a_seed():
    rows = phases()
    rows["accuracy"] = 0.6 + 0.001 * rows["step"] + 0.1 * rows["seed"]
    for line in curves.mask_steps(rows).axes[0].lines[:2]:  # then comes the line at no gain
        assert list(line.get_ydata()) == pytest.approx([0, 1, 2])

"""Figures of the ablations, drawn from small made-up tables of one and of three seeds."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lib.figures import ablations, counts

TEMPERATURES = (0.1, 0.5, 2.0)
METHODS = ("Weight averaging", "Task Arithmetic", "Concrete Task Arithmetic")


def temperature_table(seeds):
    """The hard mask loses 10 points times the temperature, and seeds are 2 points apart."""
    rows = [
        {
            "temperature": value,
            "final_mask": kind,
            "accuracy": 0.6 + 0.02 * seed - (0.1 * value if kind == "hard" else 0),
            "density": 0.5,
            "hard_share": 0.4,
            "undecided_share": 0.25 * value,
            "seed": seed,
        }
        for seed in seeds
        for value in TEMPERATURES
        for kind in ablations.FINAL_MASKS
    ]
    rows += [{"temperature": None, "final_mask": ablations.NO_MASK, "accuracy": 0.55, "seed": seed} for seed in seeds]
    return pd.DataFrame(rows)


def noise_table(seeds):
    columns = ["temperature", "relative_variance", "theory_variance", "gradient_share", "theory_share", "seed"]
    rows = [
        (value, 2 / value + seed, 1 / value, 0.4 * value, 0.45 * value, seed)
        for seed in seeds
        for value in TEMPERATURES
    ]
    return pd.DataFrame(rows, columns=columns)


def curve_table(seeds):
    steps = range(24)
    rows = [(value, step, 10 - 0.1 * step + seed, seed) for seed in seeds for value in TEMPERATURES for step in steps]
    return pd.DataFrame(rows, columns=["temperature", "step", "loss", "seed"])


def count_table(seeds):
    """Zero-shot 20 %, experts 80 %, and a method closes 10 points less of the gap for each task more."""
    ends = {"Zero-shot": 0.2, "Experts": 0.8}
    rows = []
    for seed, count, (number, subset) in itertools.product(seeds, (2, 4, 8), enumerate(("a b", "b c"))):
        told = {"count": count, "subset": subset, "seed": seed}
        for task in ("one", "two"):
            rows += [told | {"objective": "none", "method": end, "task": task, "accuracy": ends[end]} for end in ends]
            for place, method in enumerate(METHODS):
                share = 0.9 - 0.1 * count + 0.04 * number + 0.1 * place
                for objective in ("none",) if place < 2 else ("entropy", "expert-kl"):
                    shift = {"one": 0.05, "two": -0.05}[task]
                    own = {"objective": objective, "method": method, "task": task}
                    rows.append(told | own | {"accuracy": 0.2 + 0.6 * share + shift})
    return pd.DataFrame(rows)


def every_table(seeds):
    rows = [
        {"count": count, "subset": subset, "kind": kind, "accuracy": 0.5, "alone": 0.5 + 0.01 * count,
         "zero_shot": 0.4, "expert": 0.9, "seed": seed}
        for seed, count, subset, kind in itertools.product(seeds, (2, 4), ("a b", "c d"), counts.KINDS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def gain_table(seeds):
    rows = [
        (count, f"{count} {number}", objective, method, 0.01 * count + 0.002 * number, seed)
        for seed in seeds
        for count in (2, 4, 8)
        for number in (0, 1)
        for objective in ("entropy", "expert-kl")
        for method in ("Concrete Task Arithmetic", "Concrete AdaMerging (layer-wise)")
    ]
    return pd.DataFrame(rows, columns=["count", "subset", "objective", "method", "gain", "seed"])


def cost_table(seeds):
    rows = [
        (count, part, 9.0 * count + seed if part == "encoder" else 4.0, seed)
        for seed in seeds
        for count in (2, 4, 8)
        for part in ("encoder", "rest")
    ]
    return pd.DataFrame(rows, columns=["count", "part", "milliseconds", "seed"])


TABLES = {
    "temperature": temperature_table,
    "gradient_noise": noise_table,
    "temperature_curve": curve_table,
    "task_count": count_table,
    "every_subset": every_table,
    "mask_gain": gain_table,
    "step_cost": cost_table,
}


def drawn(axes, label):
    """What an axes shows under a label of its legend: x, y, and half the length of the error bars (or None)."""
    for bars in axes.containers:
        if bars.get_label() == label:
            line, _, (pieces,) = bars.lines
            half = [np.ptp(segment[:, 1]) / 2 for segment in pieces.get_segments()]
            return line.get_xdata(orig=False), line.get_ydata(orig=False), half
    line = next(line for line in axes.get_lines() if line.get_label() == label)
    return line.get_xdata(), line.get_ydata(), None


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("name", TABLES)
def test_every_figure_renders_with_one_and_with_three_seeds(name, seeds):
    figure = getattr(ablations if hasattr(ablations, name) else counts, name)(TABLES[name](seeds))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 5
    assert all(axes.get_xlabel() for axes in figure.axes)
    words = " ".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)])
    assert ("3 seeds" if len(seeds) == 3 else "1 seed)") in words


def test_accuracy_is_a_mean_over_seeds_with_its_standard_deviation():
    left, _, _ = ablations.temperature(temperature_table((0, 1, 2))).axes
    values, accuracy, half = drawn(left, "sample")
    assert list(values) == list(TEMPERATURES)
    np.testing.assert_allclose(accuracy, 62)
    np.testing.assert_allclose(half, 2.0)


def test_the_gap_is_taken_within_seeds():
    _, _, right = ablations.temperature(temperature_table((0, 1, 2))).axes
    (bars,) = right.containers
    line, _, (pieces,) = bars.lines
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [1, 5, 20])
    np.testing.assert_allclose(
        [np.ptp(piece[:, 1]) for piece in pieces.get_segments()], 0, atol=1e-9
    )  # seeds differ by 2 points, their gaps do not


def test_the_row_without_a_mask_is_a_line_and_no_temperature():
    left, middle, _ = ablations.temperature(temperature_table((0,))).axes
    np.testing.assert_allclose(drawn(left, "no mask")[1], 55)
    _, binary, _ = drawn(middle, "nearly binary in a sample")
    np.testing.assert_allclose(binary, [97.5, 87.5, 50])


def test_gradient_noise_shows_measurement_beside_theory():
    left, right = ablations.gradient_noise(noise_table((0, 1, 2))).axes
    np.testing.assert_allclose(drawn(left, "measured")[1], [21, 5, 2])
    np.testing.assert_allclose(drawn(left, "theory, slope of the mask alone")[1], [10, 2, 0.5])
    np.testing.assert_allclose(drawn(right, "measured")[1], [4, 20, 80])


def test_curves_are_smoothed_within_a_seed_and_in_order_of_step():
    table = curve_table((0, 2))
    table["loss"] *= 1 + (table["temperature"] == 0.1)
    axes = ablations.temperature_curve(table.sample(frac=1, random_state=0)).axes[0]
    steps, loss, _ = drawn(axes, "0.1")
    np.testing.assert_allclose(steps, range(24))
    # twice the loss at 0.5, minus it: mean of the last three steps, mean of seeds 0 and 2
    np.testing.assert_allclose(loss[:4], [11, 10.95, 10.9, 10.8])
    np.testing.assert_allclose(drawn(axes, "2")[1], 0)


def test_the_share_of_the_gap_is_that_of_the_means_of_a_set():
    table = counts.shares(count_table((0,)))
    assert set(table["method"]) == set(METHODS)
    one = table[(table["subset"] == "a b") & (table["count"] == 2)].set_index(["objective", "method"])["share"]
    np.testing.assert_allclose(one["none"][["Weight averaging", "Task Arithmetic"]], [0.7, 0.8])
    np.testing.assert_allclose(one["expert-kl", "Concrete Task Arithmetic"], 0.9)


def test_a_panel_per_objective_and_what_learns_nothing_in_both():
    left, right = counts.task_count(count_table((0,))).axes
    assert [axes.get_title() for axes in (left, right)] == ["Adapted by: entropy", "Adapted by: KL to the experts"]
    for axes in (left, right):
        looks = {(bars.lines[0].get_color(), bars.lines[0].get_linestyle()) for bars in axes.containers}
        assert len(looks) == len(METHODS)
        _, middle, half = drawn(axes, "Task Arithmetic")
        np.testing.assert_allclose(middle, [82, 62, 22])
        np.testing.assert_allclose(half, 100 * np.std([0, 0.04], ddof=1))


def test_what_other_tasks_destroy_is_taken_at_equal_step_size():
    left, right = counts.every_subset(every_table((0, 1))).axes
    np.testing.assert_allclose(drawn(left, "tuned factor")[1], 20)
    np.testing.assert_allclose(drawn(right, "tuned factor")[1], [2, 4])


def test_cost_keeps_the_parts_apart():
    axes = counts.step_cost(cost_table((0, 1, 2))).axes[0]
    _, encoder, half = drawn(axes, counts.PARTS["encoder"])
    np.testing.assert_allclose(encoder, [19, 37, 73])
    np.testing.assert_allclose(half, 1.0)
    np.testing.assert_allclose(drawn(axes, counts.PARTS["rest"])[1], 4)


def test_gains_are_drawn_in_points_with_a_line_through_the_means():
    for axes in counts.mask_gain(gain_table((0,))).axes:
        count, gain, _ = drawn(axes, "Concrete Task Arithmetic")
        np.testing.assert_allclose(gain, [2.1, 4.1, 8.1])
        np.testing.assert_allclose(count, np.array([2, 4, 8]) - 0.1)

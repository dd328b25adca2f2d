"""Learning rates chosen without labels: what is held back, what it is compared by, what comes out."""

import pytest
import torch
from small_world import TASKS, World

from lib.study.rates import HeldBack, choose_rates, hold_back
from lib.study.recipes import merge_by_name

SHORT = {"adaptation_steps": 4, "mask_steps": 2, "evaluate_every": 2}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def rows(images):
    return {tuple(row.tolist()) for row in images.flatten(1)}


def test_what_is_held_back_is_never_adapted_on_and_nothing_is_lost(world):
    setting = world.setting()
    kept, others = hold_back(setting, seed=0)
    for task in TASKS:
        assert (len(kept.inputs[task]), len(others.inputs[task])) == (16, 4)
        assert not rows(kept.inputs[task]) & rows(others.inputs[task])
        assert rows(kept.inputs[task]) | rows(others.inputs[task]) == rows(setting.inputs[task])
    again, other = hold_back(setting, seed=0)[1], hold_back(setting, seed=1)[1]
    assert all(torch.equal(again.inputs[task], others.inputs[task]) for task in TASKS)
    assert not all(torch.equal(other.inputs[task], others.inputs[task]) for task in TASKS)
    assert others.batch == 4, "all in one batch"


def test_few_inputs_cannot_be_divided(world):
    setting = world.setting(inputs=dict.fromkeys(TASKS, world.inputs("adaptation", "one")[:2]))
    with pytest.raises(ValueError, match="task 'one' has 2 inputs: too few to hold back 20%"):
        hold_back(setting, seed=0)


@pytest.mark.parametrize("objective", ["entropy", "information-maximisation", "expert-kl"])
def test_the_judge_is_the_objective_on_what_was_held_back(world, objective):
    _, others = hold_back(world.setting(objective=objective), seed=0)
    theta, judge = world.theta0 + world.task_vectors.sum(0), HeldBack(world.objective(others))
    first = judge(theta)["held_back"]
    assert first == pytest.approx(world.objective(others)(0)(theta)[0].item(), rel=1e-5)
    judge(world.theta0)
    assert judge(theta)["held_back"] == first, "it remembers nothing"


@pytest.mark.parametrize("method", ["AdaMerging (task-wise)", "Concrete AdaMerging (layer-wise)"])
def test_the_rate_that_ends_lowest_on_held_back_inputs_is_chosen(world, method):
    setting, rates = world.setting(objective="expert-kl"), (1e-4, 3e-2, 1e-1)
    chosen = choose_rates(world, method, setting, rates=rates, **SHORT)
    tried = chosen.tried
    assert set(tried["field"]) == ({"adaptation_rate", "mask_rate"} if "Concrete" in method else {"adaptation_rate"})
    assert len(tried[tried["field"] == "adaptation_rate"]) == 2 * len(rates), "every second step of four"
    for field, own in tried.groupby("field"):
        assert chosen.changed[field] == own.loc[own["held_back"].idxmin(), "rate"]
    assert chosen.changed["adaptation_rate"] > 1e-4, "a rate at which nothing moves is not the best"
    kept, others = hold_back(setting, world.study.seed)
    own = tried[(tried["field"] == "adaptation_rate") & (tried["rate"] == 3e-2)]
    by = f"AdaMerging ({'layer' if 'Concrete' in method else 'task'}-wise)"
    by_hand = merge_by_name(world, by, kept, adaptation_rate=3e-2, adaptation_steps=4)
    value = HeldBack(world.objective(others))(by_hand.theta)["held_back"]
    assert own.loc[own["step"] == 4, "held_back"].item() == pytest.approx(value, rel=1e-5)
    merge_by_name(world, method, setting, **chosen.changed)  # as it is meant to be used


def test_the_rule_looks_at_unlabelled_adaptation_inputs_alone(world):
    choose_rates(world, "Concrete Task Arithmetic", rates=(1e-2, 1e-1), **SHORT)
    assert set(world.looked_at) == {("adaptation", "")}
    assert world.asked == [], "nothing was scored"

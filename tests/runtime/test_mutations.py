"""No stale result: random edits of code, and changes of every option, each make another key."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from small_world import TASKS, World

from lib.adaptation.loop import adapt
from lib.adaptation.protocol import CHOICES, Protocol
from lib.runtime import keys
from lib.runtime.disk import ROOT
from lib.runtime.store import Store
from lib.vectors.fine_tuning import fine_tune
from lib.vision.activations import diagonal_fisher, input_grams

EDITS = 50


def test_no_edit_of_what_a_result_was_made_by_leaves_its_key(tmp_path):
    """Constants, operators and arguments in functions that were seen to run, in a copy of the tree."""
    for name in ("lib", "worlds", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(ROOT / "data")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "tests" / "mutation_program.py", str(EDITS), "0"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert sum(told["made"].values()) == EDITS and min(told["made"].values()) > 3
    assert min(told["ran"].values()) >= 3, "functions of lib have been seen to run"
    assert told["stale"] == []


@pytest.fixture
def key_of(tmp_path, monkeypatch):
    """The key under which a remembered call would be kept."""
    asked = []
    monkeypatch.setattr(Store, "_get", lambda self, folder, *_: asked.append(folder.name))

    def key(routine, **arguments):
        Store(tmp_path).remember(routine)(**arguments)
        return asked.pop()

    return key


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, torch.Tensor):
        return torch.cat([value.flatten()[:1] + 1, value.flatten()[1:]]).view(value.shape)
    raise AssertionError(f"no other {value!r}")


def all_options(routine):
    """Its parameters but for those that say how a result is made or shown."""
    return set(inspect.signature(routine).parameters) - set(keys.ASIDE)


def forgotten(key_of, routine, base, changed):
    """The arguments that leave the key as it is, each in turn given another value."""
    before, found = key_of(routine, **base), []
    for name in sorted(all_options(routine)):
        value = changed[name] if name in changed else other(base[name])
        found += [name] * (key_of(routine, **base | {name: value}) == before)
    assert key_of(routine, **base) == before
    return found


def test_every_option_of_an_adaptation_counts(key_of, world):
    vectors = world.task_vectors
    base = {
        "objective_at": world.objective(), "theta0": world.theta0, "task_vectors": vectors, "layout": world.layout,
        "steps": 3, "initial_coefficient": 0.3, "learning_rate": 1e-3, "mask_learning_rate": 1e-3,
        "temperature": 0.5, "seed": 0, "learn_mask": False, "evaluate_every": 0,
    }  # fmt: skip
    changed = {
        "objective_at": world.objective(world.setting(objective="information-maximisation")),
        "layout": dataclasses.replace(world.layout, parts=2), "coefficients": "task", "protocol": Protocol(tie=True),
        "rescaled_mask": torch.ones_like(world.theta0), "watch": lambda merging: {}, "evaluate": world.held_out(),
    }  # fmt: skip
    assert forgotten(key_of, adapt, base, changed) == []


def test_every_choice_of_the_protocol_counts(key_of, world):
    base = {
        "objective_at": world.objective(), "theta0": world.theta0, "task_vectors": world.task_vectors,
        "layout": world.layout, "steps": 3,
    }  # fmt: skip
    seen = [key_of(adapt, **base)]
    for field in dataclasses.fields(Protocol):
        known = CHOICES.get(field.name, (other(field.default),))
        for value in (value for value in known if value != field.default):
            seen.append(key_of(adapt, **base, protocol=Protocol(**{field.name: value})))
    assert len(set(seen)) == len(seen) > len(dataclasses.fields(Protocol))


def test_what_scores_a_curve_counts(key_of, world):
    """Its test set, its size, its tasks."""
    base = {
        "objective_at": world.objective(), "theta0": world.theta0, "task_vectors": world.task_vectors,
        "layout": world.layout, "steps": 3, "evaluate_every": 1,
    }  # fmt: skip
    small = dataclasses.replace(world.study.profile, curve_images=world.study.profile.curve_images + 1)
    scorers = [
        world.held_out(),
        world.held_out(world.setting(TASKS[:2])),
        world.held_out(world.setting(corruption="noise")),
    ]
    world.study = dataclasses.replace(world.study, profile=small)
    scorers.append(world.held_out())
    assert len({key_of(adapt, **base, evaluate=scorer) for scorer in scorers}) == len(scorers)


def test_every_option_of_an_expert_and_of_statistics_counts(key_of, world):
    images, preprocess, runtime = world.inputs("train", "one"), world.backbone.preprocess, world.study.runtime
    losses = [lambda module, step, rate=rate: rate for rate in (1, 2)]
    narrow = World(world.study.root / "narrow").model
    narrow.module[2] = torch.nn.ReLU()
    base = {"model": world.model, "theta0": world.theta0, "task": "one", "steps": 3, "learning_rate": 1e-3}
    base |= {"loss_at": losses[0], "accuracy": losses[0]}
    changed = {"model": narrow, "loss_at": losses[1], "accuracy": losses[1], "keep": (2,)}
    assert forgotten(key_of, fine_tune, base, changed) == []
    other_pixels = dataclasses.replace(preprocess, mean=(0.4,) * 3)
    half = dataclasses.replace(runtime, precision="bf16")
    changed = {"model": narrow, "preprocess": other_pixels, "runtime": half, "statistics": {"a": torch.ones(1)}}
    base = {"model": world.model, "theta": world.theta0, "images": images, "preprocess": preprocess}
    grams = base | {"runtime": runtime, "batch": 64}
    assert forgotten(key_of, input_grams, grams, changed | {"layers": ("1.weight",)}) == []
    fisher = base | {"head": world.heads["one"], "signs": 1, "seed": 0}
    assert forgotten(key_of, diagonal_fisher, fisher, changed | {"labels": torch.zeros(20)}) == []

"""The recipes of the methods, on a small world that is made on the spot."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from lib import concrete, fusion
from lib.adaptation.protocol import Protocol
from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.study import recipes as methods
from lib.study.vision import Workspace
from lib.vectors.flat_model import FlatModel
from lib.vectors.task_vectors import check_task_vectors
from lib.vision.models import Preprocess

TASKS = ("one", "two", "three")


class World:
    """What `lib.study.recipes` asks of a workspace: a tiny encoder, three tasks, no labels anywhere."""

    def __init__(self, root):
        torch.manual_seed(0)
        profile = get_profile("tiny", mask_steps=4, adaptation_steps=3, evaluate_every=2, adaptation_batch=4)
        self.study = Study(profile, root=root)
        self.backbone = SimpleNamespace(preprocess=Preprocess((0.5,) * 3, (0.25,) * 3))
        self.model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 5)))
        self.layout, self.theta0 = self.model.layout, self.model.initial()
        self.task_vectors = 0.1 * torch.randn(3, self.layout.length) * self.layout.inside()
        check_task_vectors(self.theta0, self.task_vectors, self.layout)
        self.stored_vectors = self.task_vectors
        self.tasks = dict.fromkeys(TASKS)
        self.heads = {name: 4 * torch.randn(4, 5) for name in TASKS}
        self._images = {name: torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8) for name in TASKS}
        self.scored, self.looked_at = [], []

    def inputs(self, split, task, corruption=""):
        self.looked_at.append((split, corruption))
        return self._images[task]

    objective = Workspace.objective

    def evaluate(self, theta, method, *splits, tasks=(), corruption="", limit=None):
        self.scored.append((splits, tuple(tasks), corruption, limit))
        return pd.DataFrame({"accuracy": [0.25] * len(tasks)})


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("method", methods.RECIPES)
def test_every_adaptive_method_ends_where_its_parts_say(world, method):
    merged = methods.merge(world, method, methods.setting(world))
    again = concrete.merge(world.theta0, world.task_vectors, merged.coefficients, world.layout, merged.mask)
    assert torch.equal(merged.theta, again)
    assert (merged.mask is None) == (merged.mask_curve is None) == ("Concrete" not in method)
    assert (merged.curve is None) == (method == "Concrete Task Arithmetic")
    shape = {"task": (3,), "layer": (3, world.layout.layers), None: (3,)}[methods.RECIPES[method].coefficients]
    assert tuple(merged.coefficients.shape) == shape
    if merged.curve is not None:
        assert len(merged.curve) == 3
        assert not torch.allclose(merged.coefficients, torch.tensor(0.3))
    if merged.mask is not None:
        assert len(merged.mask_curve) == 4
        torch.testing.assert_close(concrete.layer_means(merged.mask, world.layout), torch.ones(world.layout.layers))
    stored = methods.merge(world, method, methods.setting(world))
    assert torch.equal(stored.theta, merged.theta)


def test_baselines_are_the_fusion_functions(world):
    point = (world.theta0, world.task_vectors, world.layout)
    found = {name: methods.merge(world, name, methods.setting(world)).theta for name in methods.BASELINES}
    assert torch.equal(found["Weight averaging"], fusion.weight_averaging(*point))
    assert torch.equal(found["Task Arithmetic"], fusion.task_arithmetic(*point, scaling_factor=0.3))
    changed = methods.merge(world, "Task Arithmetic", methods.setting(world), scaling_factor=0.1).theta
    assert torch.equal(changed, fusion.task_arithmetic(*point, scaling_factor=0.1))


def test_everything_that_determines_a_result_is_part_of_its_key(world):
    base = methods.setting(world)
    image = next(iter(base.inputs.values()))
    variants = [
        (base, {}),
        (methods.setting(world, objective="information-maximisation"), {}),
        (methods.setting(world, objective="information-maximisation", diversity=0.5), {}),
        (methods.setting(world, batch=5), {}),
        (methods.setting(world, scale=0.5), {}),
        (methods.setting(world, ["two", "one"]), {}),
        (methods.setting(world, inputs=dict.fromkeys(TASKS, image)), {}),
        (base, {"adaptation_steps": 2}),
        (base, {"adaptation_rate": 0.5}),
        (base, {"scaling_factor": 0.2}),
        (base, {"protocol": Protocol(l2=0.1)}),
        (base, {"mask": 2 * world.layout.inside()}),
    ]
    for setting, options in variants:
        methods.merge(world, "AdaMerging (layer-wise)", setting, **options)
    folders = list((world.study.root / "data" / "cache" / "artifacts" / "adaptation").iterdir())
    assert len(folders) == len(variants)


def test_a_setting_takes_the_tasks_it_names(world):
    some = methods.setting(world, ["three", "one"], scale=2.0, corruption="contrast")
    assert some.tasks == ("three", "one")
    assert torch.equal(some.task_vectors, 2 * world.task_vectors[[2, 0]])
    assert list(some.inputs) == ["three", "one"]
    assert set(world.looked_at) == {("adaptation", "contrast")}, "only unlabelled adaptation images are looked at"
    with pytest.raises(ValueError, match="unknown task 'four'; known: one, two, three"):
        methods.setting(world, ["four"])


def test_scores_along_the_way_do_not_change_the_way(world):
    plain = methods.merge(world, "Concrete AdaMerging (layer-wise)", methods.setting(world))
    scored = methods.merge(world, "Concrete AdaMerging (layer-wise)", methods.setting(world), curves=True)
    assert torch.equal(plain.theta, scored.theta)
    assert list(scored.mask_curve["accuracy"].notna()) == [False, True, False, True]
    assert world.scored[-1] == (("test",), TASKS, "", world.study.profile.curve_images)


def test_unknown_methods_and_fields_are_named(world):
    with pytest.raises(ValueError, match="unknown method 'AdaMerge'; known: Weight averaging"):
        methods.merge(world, "AdaMerge", methods.setting(world))
    with pytest.raises(TypeError, match="mask_stps"):
        methods.merge(world, "AdaMerging (layer-wise)", methods.setting(world), mask_stps=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        methods.setting(world).batch = 3

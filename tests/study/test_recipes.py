"""The recipes of the methods, on a small world that is made on the spot."""

import dataclasses

import pytest
import torch
from small_world import TASKS, World

from lib import concrete, fusion
from lib.adaptation.protocol import Protocol
from lib.study.recipes import BASELINES, RECIPES, merge_by_name


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("method", RECIPES)
def test_every_adaptive_method_ends_where_its_parts_say(world, method):
    merged = merge_by_name(world, method, world.setting())
    again = concrete.merge(world.theta0, world.task_vectors, merged.coefficients, world.layout, merged.mask)
    assert torch.equal(merged.theta, again)
    assert (merged.mask is None) == (merged.mask_curve is None) == ("Concrete" not in method)
    assert (merged.curve is None) == (method == "Concrete Task Arithmetic")
    shape = {"task": (3,), "layer": (3, world.layout.layers), None: (3,)}[RECIPES[method].coefficients]
    assert tuple(merged.coefficients.shape) == shape
    if merged.curve is not None:
        assert len(merged.curve) == 3
        assert not torch.allclose(merged.coefficients, torch.tensor(0.3))
    if merged.mask is not None:
        assert len(merged.mask_curve) == 4
        torch.testing.assert_close(concrete.layer_means(merged.mask, world.layout), torch.ones(world.layout.layers))
    stored = merge_by_name(world, method, world.setting())
    assert torch.equal(stored.theta, merged.theta)


def test_baselines_are_the_fusion_functions(world):
    point = (world.theta0, world.task_vectors, world.layout)
    found = {name: merge_by_name(world, name, world.setting()).theta for name in BASELINES}
    assert torch.equal(found["Weight averaging"], fusion.weight_averaging(*point))
    assert torch.equal(found["Task Arithmetic"], fusion.task_arithmetic(*point, scaling_factor=0.3))
    changed = merge_by_name(world, "Task Arithmetic", world.setting(), scaling_factor=0.1).theta
    assert torch.equal(changed, fusion.task_arithmetic(*point, scaling_factor=0.1))


def test_everything_that_determines_a_result_is_part_of_its_key(world):
    base = world.setting()
    image = next(iter(base.inputs.values()))
    variants = [
        (base, {}),
        (world.setting(objective="information-maximisation"), {}),
        (world.setting(objective="information-maximisation", diversity=0.5), {}),
        (world.setting(batch=5), {}),
        (world.setting(scale=0.5), {}),
        (world.setting(["two", "one"]), {}),
        (world.setting(inputs=dict.fromkeys(TASKS, image)), {}),
        (base, {"adaptation_steps": 2}),
        (base, {"adaptation_rate": 0.5}),
        (base, {"scaling_factor": 0.2}),
        (base, {"protocol": Protocol(l2=0.1)}),
        (base, {"mask": 2 * world.layout.inside()}),
    ]
    for setting, options in variants:
        merge_by_name(world, "AdaMerging (layer-wise)", setting, **options)
    folders = list((world.study.store.root / "adapt").iterdir())
    assert len(folders) == len(variants)


def test_a_setting_takes_the_tasks_it_names(world):
    some = world.setting(["three", "one"], scale=2.0, corruption="contrast")
    assert some.tasks == ("three", "one")
    assert torch.equal(some.task_vectors, 2 * world.task_vectors[[2, 0]])
    assert list(some.inputs) == ["three", "one"]
    assert set(world.looked_at) == {("adaptation", "contrast")}, "only unlabelled adaptation images are looked at"
    with pytest.raises(ValueError, match="unknown task 'four'; known: one, two, three"):
        world.setting(["four"])


def test_scores_along_the_way_do_not_change_the_way(world):
    plain = merge_by_name(world, "Concrete AdaMerging (layer-wise)", world.setting())
    scored = merge_by_name(world, "Concrete AdaMerging (layer-wise)", world.setting(), curves=True)
    assert torch.equal(plain.theta, scored.theta)
    assert list(scored.mask_curve["accuracy"].notna()) == [False, True, False, True]
    assert world.asked[-1] == (("test",), TASKS, "", world.study.profile.curve_images)


def test_unknown_methods_and_fields_are_named(world):
    with pytest.raises(ValueError, match="unknown method 'AdaMerge'; known: Weight averaging"):
        merge_by_name(world, "AdaMerge", world.setting())
    with pytest.raises(ValueError, match=r"unknown parameter 'mask_stps' \(did you mean 'mask_steps'\?\)"):
        merge_by_name(world, "AdaMerging (layer-wise)", world.setting(), mask_stps=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        world.setting().batch = 3

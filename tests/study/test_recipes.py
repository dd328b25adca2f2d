"""The recipes of the methods, on a small world that is made on the spot."""

import dataclasses
import functools

import pytest
import torch
from small_world import TASKS, World

from lib import concrete, fusion
from lib.adaptation.objectives import OBJECTIVES
from lib.adaptation.protocol import Protocol
from lib.runtime.device import Runtime
from lib.runtime.keys import content
from lib.study.recipes import BASELINES, RECIPES, merge_by_name, parts_of
from lib.study.vision import VisionWorkspace
from lib.vision.tasks import Split


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
        (base, {"base": "TSV-M"}),
        (base, {"base": "Iso-C"}),
        (world.setting(objective="expert-kl"), {}),
        (world.setting(objective="expert-kl", expert_temperature=2.0), {}),
        (world.setting(objective="expert-labels"), {}),
        (world.setting(objective="expert-labels", confidence=0.5), {}),
        (world.setting(objective="filtered-labels"), {}),
    ]
    for setting, options in variants:
        merge_by_name(world, "AdaMerging (layer-wise)", setting, **options)
    folders = list((world.study.store.root / "adapt").iterdir())
    assert len(folders) == len(variants)


@pytest.mark.parametrize("base", [base for base in fusion.BASES if base != "FeatCal"])
def test_a_base_starts_where_its_method_ends(world, base):
    world.grams = lambda: {"1.weight": torch.eye(48).expand(3, -1, -1), "3.weight": torch.eye(8).expand(3, -1, -1)}
    start = merge_by_name(
        world, "AdaMerging (layer-wise)", base=base, mask=world.layout.inside(), adaptation_rate=1e-12
    )
    parts, coefficient = parts_of(world, world.setting(), base, 0.3)
    even = world.theta0.new_full((3,), coefficient)
    torch.testing.assert_close(start.theta, concrete.merge(world.theta0, parts, even, world.layout))
    if base != "RegMean":
        merge = {found.name: found.merge for found in fusion.METHODS.values()}[base]
        torch.testing.assert_close(start.theta, merge(world.theta0, world.task_vectors, world.layout))
    learned = merge_by_name(world, "Concrete AdaMerging (layer-wise)", base=base)
    assert not torch.allclose(learned.theta, start.theta)


def test_a_base_of_one_factor_takes_the_study_s(world):
    start = merge_by_name(
        world, "AdaMerging (layer-wise)", base="Ties-Merging", scaling_factor=0.1, adaptation_rate=1e-12
    )
    merged = merge_by_name(world, "Ties-Merging", scaling_factor=0.1)
    torch.testing.assert_close(start.theta, merged.theta)


def test_a_base_in_a_setting_of_some_tasks_has_their_statistics(world):
    grams = torch.stack([(1 + task) * torch.eye(48) for task in range(3)])
    world.grams = lambda: {"1.weight": grams}
    some = world.setting(["three", "one"])
    found, _ = parts_of(world, some, "RegMean", 0.3)
    torch.testing.assert_close(
        found, fusion.BASES["RegMean"].parts(some.task_vectors, world.layout, {"1.weight": grams[[2, 0]]})
    )


def test_bases_are_for_methods_that_learn(world):
    with pytest.raises(ValueError, match="unknown base 'TSV'; known: Task Arithmetic, Ties-Merging, TSV-M"):
        merge_by_name(world, "AdaMerging (layer-wise)", base="TSV")
    with pytest.raises(ValueError, match="'Ties-Merging' is a method of its own: leave base='TSV-M' out"):
        merge_by_name(world, "Ties-Merging", base="TSV-M")


def test_experts_predictions_are_made_once_and_without_labels(world):
    setting = world.setting(objective="expert-kl")
    first = world.objective(setting)
    assert {len(own) for own in first.experts} == {20}
    world.objective(setting)
    assert len(list((world.study.store.root / "image_logits").iterdir())) == len(TASKS)
    head, theta = world.heads["two"], world.theta0 + world.task_vectors[1]
    pixels = world.backbone.preprocess(world.inputs("adaptation", "two"))
    features = torch.nn.functional.normalize(world.model.move_to(theta)(pixels), dim=-1)
    torch.testing.assert_close(first.experts[1], (features @ head.T).detach())
    assert set(world.looked_at) == {("adaptation", "")}, "no label, no other split"


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


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_that_is_learned_needs_a_label(world, objective):
    """The splits have images and no labels at all; whoever asked for one would find None."""
    world._splits["adaptation"] = {name: Split(world._images[name], None) for name in TASKS}
    world.inputs = functools.partial(VisionWorkspace.inputs, world)
    merged = merge_by_name(world, "Concrete AdaMerging (layer-wise)", world.setting(objective=objective))
    assert not torch.equal(merged.theta, world.theta0)


@pytest.mark.parametrize("changed", ["runtime", "images"])
def test_what_moments_depend_on_is_in_their_key(world, changed):
    before = content(world.calibration(images=8)["moments_at"])
    assert content(world.calibration(images=8)["moments_at"]) == before
    if changed == "runtime":
        world.study = dataclasses.replace(world.study, runtime=Runtime(precision="bf16"))
    assert content(world.calibration(images=8 if changed == "runtime" else 9)["moments_at"]) != before

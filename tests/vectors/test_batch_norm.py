"""BatchNorm's running statistics: re-estimation, what adaptation normalises with, experts that keep their own."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lib import fusion
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime
from lib.runtime.rng import generator
from lib.study.recipes import merge_by_name
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vectors import batch_norm
from lib.vectors.batch_norm import (
    batch_statistics,
    load_statistics,
    reestimate_batch_norm,
    statistics,
)
from lib.vectors.fine_tuning import fine_tune
from lib.vectors.flat_model import FlatModel
from lib.vision.heads import class_mean_head
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

RUNTIME, PREPROCESS = Runtime(), Preprocess((0.5,) * 3, (0.25,) * 3)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def batches(count=4, size=16, seed=0):
    draw = generator("batches", seed)
    return [3 * torch.randn(size, 3, 8, 8, generator=draw) + step for step in range(count)]


def pictures(count, seed):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator("pictures", seed))


def test_it_equals_update_bn():
    ours, theirs = net(), net()
    reestimate_batch_norm(ours, batches())
    update_bn(batches(), theirs)
    assert statistics(ours).keys() == statistics(theirs).keys()
    for name, value in statistics(theirs).items():
        assert torch.equal(statistics(ours)[name], value), name


def test_a_single_layer_has_the_closed_form():
    layer, given = nn.BatchNorm2d(3), batches()
    reestimate_batch_norm(layer, given)
    channels = [batch.transpose(0, 1).flatten(1) for batch in given]
    torch.testing.assert_close(layer.running_mean, torch.stack([rows.mean(1) for rows in channels]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([rows.var(1) for rows in channels]).mean(0))
    assert layer.momentum == 0.1
    assert not layer.training


def test_mixed_batches_see_the_spread_between_tasks():
    one, other = torch.zeros(32, 3, 4, 4), torch.ones(32, 3, 4, 4)
    apart, mixed = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    reestimate_batch_norm(apart, [one, other])
    reestimate_batch_norm(mixed, [torch.cat([one[:16], other[:16]])] * 2)
    assert apart.running_var.max() == 0
    torch.testing.assert_close(mixed.running_var, torch.full((3,), 0.25), rtol=1e-2, atol=0)


def test_nothing_but_batch_norm_is_in_training_mode_while_re_estimating():
    modes = []
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9))
    module[1].register_forward_hook(lambda part, *_: modes.append((part.training, module[0].training)))
    reestimate_batch_norm(module.train(), batches(2))
    assert modes == [(False, True)] * 2
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(3, 6), nn.Identity(), nn.BatchNorm2d(6, track_running_stats=False)], ids=type
)
def test_models_without_running_statistics_are_left_alone(layer):
    module = nn.Sequential(nn.Conv2d(3, 6, 3), layer).train()

    def unread():
        raise AssertionError("a batch was drawn")
        yield

    reestimate_batch_norm(module, unread())
    assert module.training
    assert statistics(module) == {}
    load_statistics(module, {})


def test_no_batch_and_foreign_statistics_are_errors():
    with pytest.raises(ValueError, match="no batch to re-estimate"):
        reestimate_batch_norm(net(), [])
    with pytest.raises(ValueError, match=r"running statistics '1\.num_batches_tracked' are in the model or in what"):
        load_statistics(net(), {})


def test_an_interrupted_re_estimation_leaves_no_training_mode_behind():
    module = net()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(module, [torch.zeros(4, 7, 8, 8)])
    assert not any(part.training or part.momentum != 0.1 for part in batch_norm.batch_norms(module).values())


def test_batch_statistics_normalise_and_are_not_kept():
    module, before = net().eval(), statistics(net())
    with batch_statistics(module):
        inside = module[1](module[0](batches(1)[0]))
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
    assert all(torch.equal(statistics(module)[name], value) for name, value in before.items())
    assert not module[1].training
    assert module[1].track_running_stats


def objective(module, **options):
    heads = [4 * torch.randn(3, 5, generator=generator("head", k)) for k in range(2)]
    sets = [pictures(12, k) for k in range(2)]
    return ImageObjective(FlatModel(module), heads, sets, PREPROCESS, RUNTIME, batch=6, seed=0, **options)


def test_adaptation_does_not_depend_on_running_statistics():
    first, second = net(), net()
    reestimate_batch_norm(second, batches())
    found = []
    for module in (first, second):
        goal, before = objective(module), statistics(module)
        loss, gradient = goal(0)(goal.model.initial())
        found.append((loss, gradient.clone()))
        assert all(torch.equal(statistics(module)[name], value) for name, value in before.items())
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_the_gradient_goes_through_the_batch_statistics():
    """Against finite differences of the loss as a whole."""
    goal = objective(net())
    theta = goal.model.initial()
    step = goal(0)
    gradient = step(theta)[1].clone()
    direction = gradient / gradient.norm()
    up, down = (step(theta + sign * 1e-3 * direction)[0] for sign in (1, -1))
    assert (up - down) / 2e-3 == pytest.approx(gradient.norm().item(), rel=2e-2)


def test_with_batch_norm_all_tasks_go_in_one_batch():
    with pytest.raises(ValueError, match="rows_at_once is 6, but BatchNorm needs all tasks in one batch"):
        objective(net(), rows_at_once=6)
    sizes = []
    module = net()
    module[0].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    goal = objective(module)
    goal(0)(goal.model.initial())
    assert sizes == [12]


def train(module, steps=9, checkpoint=None, stop=None):
    model = FlatModel(module)
    images, labels = pictures(32, 5), torch.arange(32) % 3

    def loss_at(encoder, step):
        if step == stop:
            raise KeyboardInterrupt
        rows = torch.arange(8) + 8 * (step % 4)
        return nn.functional.cross_entropy(encoder(PREPROCESS(images[rows])), labels[rows])

    start = model.initial()
    options = {"task": "test", "steps": steps, "learning_rate": 1e-2, "checkpoint": checkpoint}
    return model, start, fine_tune(model, start, loss_at, lambda _: 0.0, **options).theta


def test_fine_tuning_starts_from_the_pre_trained_statistics_and_resumes_with_its_own(tmp_path):
    model, start, theta = train(net())
    whole = statistics(model.module)
    assert not all(torch.equal(whole[name], value) for name, value in model.initial_statistics.items())
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(net(), checkpoint=Checkpoint(path, every=0), stop=5)
    resumed, _, again = train(net(), checkpoint=Checkpoint(path, every=0))
    assert torch.equal(theta, again)
    assert all(torch.equal(statistics(resumed.module)[name], value) for name, value in whole.items())
    second = fine_tune(model, start, lambda encoder, _: encoder(torch.ones(4, 3, 8, 8)).sum(), lambda _: 0.0,
                       task="other", steps=1, learning_rate=1e-3)  # fmt: skip
    assert second.theta.shape == theta.shape
    assert all(torch.equal(second.statistics[name], value) for name, value in statistics(model.module).items())
    assert statistics(model.module)["1.num_batches_tracked"] == 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A ConvNet with BatchNorm on two drawn tasks, its two experts trained for a few steps."""
    from lib.study.profiles import get_profile

    profile = dataclasses.replace(
        get_profile("tiny"), model="timm:resnet18(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))", head="class-mean",
        image_size=32, tasks="handwritten_digits land_cover", train_images=120, validation_images=20,
        adaptation_images=60, test_images=60, fine_tuning_steps=12, fine_tuning_batch=20, adaptation_steps=2,
        mask_steps=2, evaluate_every=1,
    )  # fmt: skip
    opened = VisionWorkspace(Study(profile, root=tmp_path_factory.mktemp("root")))
    for name in opened.tasks:
        opened.fine_tune(name)
    return opened


def test_a_stored_expert_gives_its_own_scores_again(workspace):
    """In a fresh process-like workspace, from the store alone, and as its learning curve says."""
    again = VisionWorkspace(workspace.study)
    for name in workspace.tasks:
        expert = again.expert(name)
        own = expert.statistics
        assert len(own) == 3 * len(batch_norm.batch_norms(again.backbone.encoder))
        last = expert.curve["validation_accuracy"].iloc[-1]
        scores = again.evaluate(expert.theta, name, "validation", tasks=[name], statistics=own)
        assert scores["accuracy"].iloc[0] == last


def test_a_merged_model_is_re_estimated_whatever_came_before(workspace):
    theta = fusion.weight_averaging(workspace.theta0, workspace.task_vectors, workspace.layout)
    first = workspace.evaluate(theta, "x")
    found = statistics(workspace.model.module)
    stale = workspace.evaluate(theta, "x", statistics=workspace.model.initial_statistics)
    assert not first["loss"].equals(stale["loss"])
    assert first.equals(workspace.evaluate(theta, "x"))
    assert first.equals(VisionWorkspace(workspace.study).evaluate(theta, "x"))
    expected = workspace.model.move_to(theta)
    update_bn(list(workspace.mixed_batches(list(workspace.tasks), "")), expected)
    torch.testing.assert_close(statistics(expected), found)
    one = workspace.evaluate(theta, "x", tasks=["land_cover"])
    assert one["loss"].iloc[0] != first.set_index("task")["loss"]["land_cover"]


@pytest.mark.parametrize("method", ["AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)"])
def test_adaptive_methods_run_on_a_conv_net(workspace, method):
    merged = merge_by_name(workspace, method, curves=True)
    assert torch.isfinite(merged.theta).all()
    assert merged.curve["accuracy"].notna().any()


def test_statistics_of_experts_are_taken_with_their_own_normalisation(workspace):
    fisher = workspace.fisher(images=4)
    shutil.rmtree(workspace.study.store.root / "diagonal_fisher")
    load_statistics(workspace.model.module, workspace.model.initial_statistics)
    torch.testing.assert_close(workspace.fisher(images=4), fisher)
    assert fisher.shape == workspace.task_vectors.shape


def test_heads_are_made_with_the_pre_trained_normalisation(workspace):
    fresh = VisionWorkspace(workspace.study)
    heads = {name: head.clone() for name, head in fresh.heads.items()}
    train_set = fresh.split("train")["land_cover"]
    encoder = fresh.place(fresh.theta0, fresh.model.initial_statistics)
    with torch.no_grad():
        features = nn.functional.normalize(encoder(fresh.backbone.preprocess(train_set.images)), dim=-1)
    expected = class_mean_head(features, train_set.labels, 10, fresh.study.profile.head_scale)
    torch.testing.assert_close(heads["land_cover"], expected, rtol=1e-4, atol=1e-4)

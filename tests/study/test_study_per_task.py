"""Scores of models that keep something per task: they are `evaluate`'s where nothing is kept, and use what is kept."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_world import TASKS, World
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from lib.adaptation.surgery import Surgery
from lib.adaptation.symerge import symerge
from lib.fusion import PER_TASK, emr_merging, task_arithmetic
from lib.study.evaluation import COLUMNS
from lib.study.per_task import KEEPS, evaluate_per_task, learn_surgeries
from lib.study.vision import VisionWorkspace
from lib.vectors.flat_model import FlatModel
from lib.vision.objective import features_at
from lib.vision.scoring import image_features
from lib.vision.tasks import Split


class Labelled(World):
    """A small world with labels, which may be read for scoring alone, and with BatchNorm if wanted."""

    def __init__(self, root, norm=False):
        super().__init__(root)
        self.labelled = True
        if norm:
            self.model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
            self.theta0 = self.model.initial()
            self.task_vectors = 0.1 * torch.randn(3, self.layout.length) * self.layout.inside()
        self._labels = {name: torch.randint(0, 4, (20,)) for name in TASKS}

    def split(self, name):
        assert self.labelled, "no labels reach what learns"
        return {task: Split(self._images[task], self._labels[task]) for task in TASKS}

    def expert(self, task):
        torch.manual_seed(TASKS.index(task))
        return SimpleNamespace(statistics={
            name: own if "batches" in name else own + torch.rand_like(own)
            for name, own in self.model.initial_statistics.items()
        })  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "BatchNorm"])
def world(request, tmp_path):
    return Labelled(tmp_path, request.param)


def scores_in_words(logits, labels):
    hits = [int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)]
    return {"accuracy": sum(hits) / len(hits), "loss": cross_entropy(logits, labels).item(), "n": len(hits)}


def of_task(table, task):
    row = table[table["task"] == task].iloc[0]
    return {name: row[name] for name in ("accuracy", "loss", "n")}


@pytest.mark.parametrize("where", [{}, {"tasks": ("three", "one"), "limit": 7}])
def test_where_nothing_is_kept_it_is_the_table_of_a_merged_model(world, where):
    theta = task_arithmetic(world.theta0, world.task_vectors, world.layout)
    wanted = VisionWorkspace.evaluate(world, theta, "merged", "test", "adaptation", **where)
    found = evaluate_per_task(world, theta, "merged", "test", "adaptation", **where)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert list(found.columns) == list(COLUMNS)
    nothing = Surgery(torch.randn(2, 5), torch.zeros(5, 2))
    same = evaluate_per_task(
        world,
        theta,
        "merged",
        "test",
        "adaptation",
        heads=world.heads,
        surgeries=dict.fromkeys(TASKS, nothing),
        **where,
    )
    pd.testing.assert_frame_equal(same, wanted)


def test_each_task_has_its_own_head_and_its_features_go_through_its_surgery_first(world):
    torch.manual_seed(1)
    heads = {task: 4 * torch.randn(4, 5) for task in TASKS}
    surgeries = {task: Surgery(torch.randn(2, 5), torch.randn(5, 2)) for task in TASKS}
    found = evaluate_per_task(world, world.theta0, "kept", heads=heads, surgeries=surgeries)
    encoder = world.place(world.theta0)
    for task in TASKS:
        own = surgeries[task]
        features = encoder(world.backbone.preprocess(world._images[task])).detach()
        features = features - torch.relu(features @ own.down.T) @ own.up.T
        logits = features / features.norm(dim=1, keepdim=True) @ heads[task].T
        assert of_task(found, task) == pytest.approx(scores_in_words(logits, world._labels[task]), rel=1e-5)
    alone = evaluate_per_task(world, world.theta0, "kept", heads=heads)
    features = image_features(encoder, world._images["two"], world.backbone.preprocess, world.study.runtime)
    wanted = scores_in_words(features @ heads["two"].T, world._labels["two"])
    assert of_task(alone, "two") == pytest.approx(wanted, rel=1e-5)


def test_each_task_is_scored_at_its_own_point(world):
    points = emr_merging(world.theta0, world.task_vectors, world.layout)
    found = evaluate_per_task(world, points, "EMR-Merging", "test", "adaptation")
    assert found["task"].tolist() == 2 * list(TASKS)
    for task, point in zip(TASKS, points, strict=True):
        wanted = VisionWorkspace.evaluate(world, point, "EMR-Merging", tasks=(task,))
        assert of_task(found, task) == of_task(wanted, task)
    some = evaluate_per_task(world, points[[2, 0]], "EMR-Merging", tasks=("three", "one"))
    assert of_task(some, "one") == of_task(found, "one")
    assert of_task(some, "three") == of_task(found, "three")


def test_surgeries_are_learned_between_the_merged_model_and_each_expert_without_labels(world):
    theta = task_arithmetic(world.theta0, world.task_vectors, world.layout)
    setting = world.setting()
    world.labelled = False
    surgeries = learn_surgeries(world, theta, setting, rank=4, steps=300, learning_rate=1e-2)
    assert list(surgeries) == list(TASKS)
    given = world.backbone.preprocess, world.study.runtime
    encoder = world.place(theta)
    for task, point in world.points():
        pixels = setting.inputs[task]
        normalised = image_features(world.place(theta), pixels, *given)
        merged = encoder(world.backbone.preprocess(pixels)).detach()
        torch.testing.assert_close(normalize(merged, dim=-1), normalised)
        expert = features_at(world.model, point, pixels, *given, world.expert(task).statistics)
        before, after = ((own - expert).abs().mean() for own in (merged, surgeries[task](merged)))
        assert after < 0.8 * before, task
        assert surgeries[task].curve["loss"].iloc[0] == pytest.approx(before.item(), rel=0.3)
    assert not torch.equal(surgeries["one"].down, surgeries["two"].down)
    folder = world.study.store.root / "surgery"
    assert len(list(folder.iterdir())) == 3
    again = learn_surgeries(world, theta, setting, rank=4, steps=300, learning_rate=1e-2)
    assert torch.equal(again["two"].up, surgeries["two"].up)
    some = learn_surgeries(world, theta, world.setting(("two",)), steps=1)
    assert list(some) == ["two"]


def test_symerge_runs_through_a_study_and_its_heads_are_scored(world):
    setting = world.setting(objective="expert-labels")
    world.labelled = False
    given = world.objective(setting), world.theta0, setting.task_vectors, world.layout
    merged = world.study.remember(symerge)(*given, steps=40)
    world.labelled = True
    heads = dict(zip(setting.tasks, merged.heads, strict=True))
    found = evaluate_per_task(world, merged.theta, "SyMerge", heads=heads)
    frozen = evaluate_per_task(world, merged.theta, "SyMerge")
    assert merged.curve["loss"].iloc[-5:].mean() < merged.curve["loss"].iloc[:5].mean()
    assert not found["loss"].equals(frozen["loss"])


def test_every_method_says_what_it_keeps():
    assert set(KEEPS) == {"Surgery", "SyMerge"}
    assert not set(KEEPS) & {method.name for method in PER_TASK.values()}
    assert KEEPS["SyMerge"] == "a head"


def test_what_is_missing_for_a_task_is_named(world):
    theta, heads = world.theta0, dict(world.heads)
    with pytest.raises(ValueError, match="2 points for 3 tasks"):
        evaluate_per_task(world, world.task_vectors[:2], "kept")
    two = heads.pop("two")
    with pytest.raises(ValueError, match="there is no head of task 'two'; there are those of one, three"):
        evaluate_per_task(world, theta, "kept", heads=heads)
    with pytest.raises(ValueError, match="there is no surgery of task 'one'"):
        evaluate_per_task(world, theta, "kept", surgeries={})
    with pytest.raises(ValueError, match=r"the head of task 'two' has shape \[3, 5\], expected \[4, 5\]"):
        evaluate_per_task(world, theta, "kept", heads=heads | {"two": two[:3]})

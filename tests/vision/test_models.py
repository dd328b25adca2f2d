"""The shipped tiny CLIP, the entropy objective, fine-tuning and its resumption, evaluation."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lib.adaptation.losses import entropy
from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices, generator, seed_of
from lib.study.evaluation import methods_by_tasks
from lib.study.profiles import get_profile
from lib.study.study import ROOT, Study
from lib.study.vision import VisionWorkspace
from lib.vectors.fine_tuning import fine_tune, learning_rate_at
from lib.vectors.flat_model import FlatModel
from lib.vision.batches import shifted
from lib.vision.heads import class_mean_head, linear_probe_head, text_head
from lib.vision.models import load_clip
from lib.vision.objective import ImageObjective
from lib.vision.scoring import image_features, score
from lib.vision.tasks import Split
from lib.vision.training import image_loss
from worlds.images import draw_split

RUNTIME = Runtime()


@pytest.fixture(scope="module")
def clip():
    return load_clip()


@pytest.fixture(scope="module")
def digits():
    images, labels = draw_split("handwritten_digits", "test of the tests", 80, workers=1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def test_the_shipped_model_is_an_ordinary_open_clip_folder(clip):
    import open_clip

    folder = ROOT / "data" / "tiny_clip"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a sedan."])
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), clip.model.encode_text(clip.tokenizer(["a photo of a sedan."])))
    assert not any(p.requires_grad for name, p in clip.model.named_parameters() if not name.startswith("visual"))
    assert all(p.requires_grad for p in clip.visual.parameters())


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="no CLIP model at 'ViT-Q-99'"):
        load_clip("ViT-Q-99")


def test_a_text_head_is_the_normalised_mean_of_its_prompts(clip):
    head = text_head(clip, ["one", "two"], ["a photo of a {}.", "the number {}"])
    with torch.no_grad():
        both = clip.model.encode_text(clip.tokenizer(["a photo of a two.", "the number two"]), normalize=True)
    expected = torch.nn.functional.normalize(both.mean(0), dim=0) * clip.logit_scale
    torch.testing.assert_close(head[1], expected)


def test_class_mean_head_and_probe_on_separable_features():
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), dim=1)
    labels = torch.tensor([0, 0, 1, 1])
    head = class_mean_head(features, labels, 2, 10.0)
    torch.testing.assert_close(head, torch.tensor([[10.0, 0.0], [0.0, 10.0]]))
    assert score(features, head, labels)["accuracy"] == 1.0
    probe = linear_probe_head(features, labels, 2, 10.0)
    assert score(features, probe, labels)["accuracy"] == 1.0
    with pytest.raises(ValueError, match="class 2 has no training image"):
        class_mean_head(features, labels, 3, 10.0)


def test_entropy_of_known_distributions():
    torch.testing.assert_close(entropy(torch.zeros(1, 8)), torch.tensor([8.0]).log())
    assert entropy(torch.tensor([[1e4, 0.0]])).item() == 0.0


def test_the_objective_equals_separate_forwards_per_task(clip, digits):
    """All tasks' rows in one forward pass: the same loss and gradient as one pass per task, added up."""
    images, _ = digits
    model = FlatModel(clip.visual)
    heads = [torch.randn(10, 96, generator=generator("head", k)) * 5 for k in range(3)]
    sets = [images[:30], images[30:60], images[60:]]
    objective = ImageObjective(model, heads, sets, clip.preprocess, RUNTIME, batch=8, seed=0)
    theta = model.initial()
    loss, gradient = objective(3)(theta)
    loss, gradient = loss, gradient.clone()
    expected_loss, expected = 0.0, torch.zeros_like(gradient)
    for task, rows in objective.rows(3).items():
        pixels, head = clip.preprocess(sets[task][rows]), heads[task]
        features = torch.nn.functional.normalize(model.move_to(theta)(pixels), dim=-1)
        value = entropy(features @ head.T).mean()
        value.backward()
        expected_loss, expected = expected_loss + value.item(), expected + model.gradient
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_objective_has_no_way_in_for_labels(clip, digits):
    import inspect

    assert not [name for name in inspect.signature(ImageObjective).parameters if "label" in name]
    images, labels = digits
    model, head = FlatModel(clip.visual), torch.ones(10, 96)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageObjective(model, [head], [labels], clip.preprocess, RUNTIME, batch=4, seed=0)
    with pytest.raises(ValueError, match="1 heads and 2 image sets"):
        ImageObjective(model, [head], [images, images], clip.preprocess, RUNTIME, batch=4, seed=0)


def test_batches_are_named_and_cover_an_epoch_without_replacement():
    order = torch.cat([batch_indices(20, 5, step, "x", 1) for step in range(4)])
    assert sorted(order.tolist()) == list(range(20))
    assert torch.equal(batch_indices(20, 5, 2, "x", 1), order[10:15])
    assert not torch.equal(batch_indices(20, 5, 2, "x", 2), order[10:15])
    assert len(batch_indices(3, 5, 0, "x")) == 3
    assert seed_of("a", 1) != seed_of("a1")
    with pytest.raises(ValueError, match="batches of 5 from 0"):
        batch_indices(0, 5, 0, "x")


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate_at(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_shifts_move_whole_images(digits):
    images, _ = digits
    moved = shifted(images, 2, "test")
    assert moved.dtype == torch.uint8
    centre = images[:, :, 4:-4, 4:-4]
    found = [
        any(
            torch.equal(moved[k, :, 4 + down : 28 + down, 4 + right : 28 + right], centre[k])
            for down in range(-2, 3)
            for right in range(-2, 3)
        )
        for k in range(len(images))
    ]
    assert all(found)
    assert torch.equal(shifted(images, 0, "test"), images)


def small_fine_tuning(clip, digits, checkpoint=None, steps=12, rate=1e-3):
    model = FlatModel(load_clip().visual)
    theta0 = model.initial()
    head = text_head(clip, [str(k) for k in range(10)], ["{}"])
    loss_at = image_loss(head, digits, clip.preprocess, RUNTIME, task="digits", batch=16, seed=0)

    def accuracy(encoder):
        return score(image_features(encoder, digits[0], clip.preprocess, RUNTIME), head, digits[1])["accuracy"]

    options = {"task": "digits", "steps": steps, "learning_rate": rate, "checkpoint": checkpoint}
    return fine_tune(model, theta0, loss_at, accuracy, **options)


def test_fine_tuning_learns(clip, digits):
    expert = small_fine_tuning(clip, digits, steps=60)
    assert expert.curve["validation_accuracy"].iloc[-1] > 0.6
    assert list(expert.curve.columns) == ["task", "step", "loss", "validation_accuracy"]
    model = FlatModel(clip.visual)
    assert not (expert.theta * (1 - model.layout.inside())).any()  # padding stays zero


def test_a_diverging_run_stops_with_task_and_step(clip, digits):
    with pytest.raises(ValueError, match=r"fine-tuning digits: the loss is (nan|inf) at step \d+; lower"):
        small_fine_tuning(clip, digits, rate=float("inf"))


SCRIPT = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from lib.runtime.checkpoint import Checkpoint
sys.path.insert(0, "tests/vision")
from test_models import RUNTIME, draw_split, load_clip, small_fine_tuning
images, labels = draw_split("handwritten_digits", "test of the tests", 80, workers=1)
digits = torch.from_numpy(images), torch.from_numpy(labels)
folder = Path(sys.argv[1])
checkpoint, steps = Checkpoint(folder / "checkpoint.pt", every=0), int(sys.argv[2])
save_file({"theta": small_fine_tuning(load_clip(), digits, checkpoint, steps).theta}, folder / "theta.safetensors")
"""


def run_script(folder, steps):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(steps)], cwd=ROOT, stdout=subprocess.DEVNULL
    )


def test_a_killed_run_continues_to_the_same_bits_as_one_in_another_process(tmp_path):
    """SIGKILL in the middle of fine-tuning, then continue; compare with an uninterrupted run of its own process."""
    steps = 40
    killed = run_script(tmp_path / "killed", steps)
    checkpoint, deadline = tmp_path / "killed" / "checkpoint.pt", time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        if checkpoint.is_file() and torch.load(checkpoint, weights_only=True)["step"] >= 5:
            break
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["step"]
    assert 5 <= reached < steps, "the run was over before it could be killed"
    assert run_script(tmp_path / "killed", steps).wait() == 0
    assert run_script(tmp_path / "whole", steps).wait() == 0
    continued = (tmp_path / "killed" / "theta.safetensors").read_bytes()
    assert continued == (tmp_path / "whole" / "theta.safetensors").read_bytes()


def test_evaluation_is_a_tidy_table(clip, digits, tmp_path):
    workspace = VisionWorkspace(Study(get_profile("tiny"), root=tmp_path))
    head = text_head(clip, [str(k) for k in range(10)], ["{}"])
    workspace.heads = {"a": head, "b": head}
    workspace._tasks.update(dict.fromkeys("ab"))
    workspace._splits["test"] = dict.fromkeys("ab", Split(*digits))
    table = workspace.evaluate(workspace.theta0, "x")
    assert list(table.columns) == ["method", "task", "split", "seed", "accuracy", "loss", "n"]
    features = image_features(clip.visual, digits[0], clip.preprocess, RUNTIME, batch=7)
    expected = (features @ head.T).argmax(1).eq(digits[1]).double().mean().item()
    assert table["accuracy"].tolist() == [expected, expected]
    assert methods_by_tasks(table).loc["x", "mean"] == round(100 * expected, 1)
    some = workspace.evaluate(workspace.theta0, "x", tasks=["b"], limit=10)
    assert some[["task", "n"]].to_numpy().tolist() == [["b", 10]]

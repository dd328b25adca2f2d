"""What a step of adaptation copies between host and device: a batch of images, and nothing else."""

import pytest
import torch
from torch import nn
from transfers import NoDevice, Transfers

from lib.adaptation import loop
from lib.adaptation.loop import LOOK_EVERY, adapt
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective
from lib.vision.scoring import image_features

METHODS = {
    "AdaMerging": {"coefficients": "layer"},
    "Concrete Task Arithmetic": {"learn_mask": True, "coefficients": None, "temperature": 0.1},
    "Concrete AdaMerging": {"learn_mask": True, "coefficients": "layer"},
}


def world(runtime=None):
    """An objective on three tasks, theta0, task vectors and their layout, on the device without numbers."""
    runtime = runtime or NoDevice()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5))
    model = FlatModel(encoder, runtime.device)
    heads = [torch.randn(classes, 5) for classes in (4, 9, 30)]
    images = [torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8) for _ in heads]
    given = model, heads, images, Preprocess((0.5,) * 3, (0.25,) * 3), runtime
    objective = ImageObjective(*given, batch=4, seed=0, objective="information-maximisation")
    theta0 = model.initial()
    return objective, theta0, torch.zeros(3, len(theta0), device=runtime.device), model.layout


@pytest.mark.parametrize("method", METHODS)
def test_between_two_looks_nothing_is_read_from_the_device(monkeypatch, method):
    """Budget of a step: 0 numbers down; up only its images, once for each level of the method."""
    monkeypatch.setattr(loop, "LOOK_EVERY", 4)
    monkeypatch.setattr(loop, "progress", lambda steps, *_, **__: steps)  # shows the loss every few seconds

    def transfers(steps):
        with Transfers() as found:
            adapt(*world(), steps=steps, backend="eager", **METHODS[method])
        return found

    transfers(1)  # makes what is made once for each device
    one, three = transfers(4), transfers(12)  # one look, three looks
    levels = 2 if method == "Concrete AdaMerging" else 1
    assert three.up[len(one.up) :] == [("aten._to_copy.default", (3 * 4, 3, 4, 4))] * 8 * levels
    assert len(three.down) - len(one.down) == 2, "the numbers of a look come down in one copy"


def test_the_counter_counts():
    found = Transfers()
    here, there = torch.ones(3), torch.ones(3, device="meta")
    with found:
        assert float(there.sum()) == 1
        there.cpu(), there.tolist(), bool(there.sum() > 0), there.sum().item(), here.copy_(there)
        assert len(found.down) == 6
        here.to("meta"), there.copy_(here), torch.tensor([1.0, 2.0], device="meta")
        assert len(found.up) == 3
        here.sum().item(), here.tolist(), torch.full((), 3.0, device="meta"), there + 1
    assert (len(found.down), len(found.up)) == (6, 3)


@pytest.mark.parametrize("first", [0, 3, LOOK_EVERY - 1, LOOK_EVERY, 30])
def test_a_loss_that_is_not_finite_is_named_by_its_first_step_and_never_saved(tmp_path, first):
    """Although nobody looks at each: at the next look, at a save, or at the end."""
    _, theta0, vectors, layout = world(Runtime())

    def diverges(step):
        return lambda theta: (torch.tensor(float("nan") if step >= first else 1.0), torch.zeros_like(theta))

    saved = []

    class Watched(Checkpoint):
        def _write(self, state):
            saved.append([row["loss"] for row in state["curve"]])

    for checkpoint in (None, Watched(tmp_path / "checkpoint.pt", every=0)):
        with pytest.raises(ValueError, match=rf"the loss is nan at step {first}; lower the learning rate"):
            adapt(diverges, theta0, vectors, layout, steps=40, checkpoint=checkpoint)
    assert saved == [[1.0] * (step + 1) for step in range(first)], "nothing is saved from the first on"


def test_features_come_back_in_one_copy():
    images = torch.zeros(20, 3, 4, 4, dtype=torch.uint8)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8)).to("meta")
    found, preprocess = Transfers(), Preprocess((0.5,) * 3, (0.25,) * 3)
    with found:
        first = image_features(encoder, images, preprocess, NoDevice(), batch=4)
        image_features(encoder, images, preprocess, NoDevice(), batch=4)
    assert first.shape == (20, 8)
    assert [shape for _, shape in found.down] == [(20, 8)] * 2
    assert sum(shape == (4, 3, 4, 4) for _, shape in found.up) == 10
    assert len(found.up) <= 10 + 2, "mean and standard deviation are there after the first batch"


def test_images_go_up_from_pinned_memory_without_waiting(monkeypatch):
    images, asked = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), []
    to = torch.Tensor.to

    def recorded(tensor, *args, **options):
        if args[:1] == ("cuda",):
            asked.append(options.get("non_blocking", False))
            return tensor
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pinned") or tensor)
    encoder, preprocess = nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), Preprocess((0.5,) * 3, (0.25,) * 3)
    found = image_features(encoder, images, preprocess, Runtime("cuda"), batch=4)
    assert asked == ["pinned", True] * 2
    assert torch.equal(found, image_features(encoder, images, preprocess, Runtime(), batch=4))

"""Supervised pre-training: its classes, its frozen classifier, shipping and loading."""

import dataclasses
import hashlib
import json

import pytest
import torch

from lib.runtime.device import Runtime
from lib.vectors.batch_norm import batch_norms
from lib.vision.backbones import load_backbone
from worlds.images import DRAWN
from worlds.training import backbones as supervised
from worlds.training.backbones import (
    FOLDER,
    RECIPES,
    Recipe,
    class_offsets,
    labelled_web,
    orthogonal_head,
    pretrain,
    ship,
)

SMALL = Recipe("timm:resnet18(layers=(1, 1, 1, 1), channels=(8, 8, 16, 24))", 1e-3, families="land_cover textures",
               pictures=120, steps=3, batch=20)  # fmt: skip


def test_classes_are_counted_through_all_families():
    images, labels = labelled_web(SMALL)
    assert images.shape == (120, 3, 32, 32)
    first, classes = len(DRAWN["land_cover"].CLASSES), class_offsets(["land_cover", "textures"])[-1]
    assert labels[:60].max() == first - 1
    assert (labels[60:].min(), labels[60:].max()) == (first, classes - 1)
    assert torch.equal(images, labelled_web(SMALL)[0])


def test_the_frozen_classifier_has_orthogonal_directions():
    head = orthogonal_head(5, 8, 20.0, seed=0)
    torch.testing.assert_close(head @ head.T, 400 * torch.eye(5), rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="8 features have no 9 orthogonal directions"):
        orthogonal_head(9, 8, 20.0, seed=0)


def test_pre_training_moves_the_weights_and_ships_what_loads(tmp_path):
    encoder, curve = pretrain(SMALL, Runtime())
    assert list(curve.columns) == ["step", "loss", "accuracy"]
    start = load_backbone(SMALL.source, image_size=32).encoder.state_dict()
    assert not torch.equal(encoder.state_dict()["conv1.weight"], start["conv1.weight"])
    loaded = load_backbone(SMALL.source, str(ship(encoder, SMALL, "Small", tmp_path)), 32).encoder.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded[name], value.half().float() if value.is_floating_point() else value), name
    assert loaded["bn1.num_batches_tracked"] == SMALL.steps


@pytest.mark.parametrize("kind", RECIPES)
def test_the_shipped_weights_match_their_recipe(kind):
    noted = json.loads((FOLDER / f"{kind.lower()}.json").read_text())
    weights = FOLDER / f"{kind.lower()}.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == noted["sha256"]
    assert {**dataclasses.asdict(RECIPES[kind]), "sha256": noted["sha256"]} == noted
    encoder = load_backbone(RECIPES[kind].source, str(weights), RECIPES[kind].image_size).encoder
    assert 350_000 < sum(parameter.numel() for parameter in encoder.parameters()) < 400_000
    assert bool(batch_norms(encoder)) == (kind == "ConvNet")


def test_the_command_trains_and_ships_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supervised, "FOLDER", tmp_path / "data" / "tiny_backbones")
    monkeypatch.setattr(supervised, "RECIPES", {"Small": SMALL})
    supervised.main()
    assert "commit data/tiny_backbones" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "data" / "tiny_backbones").iterdir()}
    assert names == {"small.safetensors", "small.json", "small.csv"}

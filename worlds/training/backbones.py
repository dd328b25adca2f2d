"""Supervised pre-training of a small ConvNet and a small ViT, to compare architectures from equal starts.

The pictures are those of the web world (`worlds.images.web`), with class labels instead of captions, and of half of its
families: told apart all eight, the ConvNet would leave hardly anything for its experts to learn. The classifier is a
frozen set of orthogonal directions (Hoffer et al., "Fix your classifier", https://arxiv.org/abs/1801.04540), so
pre-training is fine-tuning from random weights: the same loop, and nothing is left over when the classifier goes.

`make pretrain` trains the shipped weights again: `python -m worlds.training.backbones`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime, choose_runtime
from lib.runtime.disk import ROOT
from lib.runtime.rng import generator
from lib.study.tables import save_table
from lib.vectors.fine_tuning import fine_tune
from lib.vectors.flat_model import FlatModel
from lib.vision.backbones import load_backbone
from lib.vision.scoring import image_features, score
from lib.vision.training import image_loss
from worlds.images import DRAWN, draw_splits
from worlds.images.web import web_jobs
from worlds.training import shipping

FOLDER = ROOT / "data" / "tiny_backbones"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a pre-trained backbone.

    Attributes:
        source: the architecture, see `backbones.load_timm`.
        learning_rate: AdamW's peak.
        image_size: side of the pictures in pixels.
        families: the drawn tasks whose classes are told apart, separated by spaces.
        pictures: of the web world, equally many of every family and degree of wildness.
        steps: optimiser steps.
        batch: pictures per step.
        scale: factor between cosine similarity and logit.
        seed: names every random choice.
    """

    source: str
    learning_rate: float
    image_size: int = 32
    families: str = "scenes aerial street_digits textures"
    pictures: int = 24000
    steps: int = 2000
    batch: int = 128
    scale: float = 20.0
    seed: int = 0


# Two architectures of about 0.4 million parameters whose training step costs about the same: convolutions with
# BatchNorm at a stride of 8 pixels, and attention with LayerNorm over patches of 8 pixels. Each has the better of a few
# learning rates that were tried for 250 steps; everything else is equal.
RECIPES = {
    "ConvNet": Recipe(
        "timm:resnet18(layers=(1, 1, 1, 1), channels=(32, 64, 96, 96), output_stride=8, stem_type='deep', "
        "stem_width=16)",
        learning_rate=4e-3,
    ),
    "ViT": Recipe(
        "timm:vit_tiny_patch16_224(patch_size=8, embed_dim=96, depth=3, num_heads=3)",
        learning_rate=2e-3,
    ),
}


def labelled_web(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Pictures of the web world, uint8 [N, 3, 32, 32], and classes counted through all families, int64 [N]."""
    families = recipe.families.split()
    jobs = web_jobs(families, recipe.pictures, recipe.seed)
    first = dict(zip(families, class_offsets(families), strict=False))
    drawn = draw_splits(jobs)
    images = np.concatenate([pictures for pictures, _ in drawn])
    labels = np.concatenate([own + first[job.task] for job, (_, own) in zip(jobs, drawn, strict=True)])
    return torch.from_numpy(images), torch.from_numpy(labels)


def class_offsets(families: Sequence[str]) -> list[int]:
    """The number of the first class of each family, and the number of all classes."""
    return np.cumsum([0, *(len(DRAWN[family].CLASSES) for family in families)]).tolist()


def orthogonal_head(classes: int, width: int, scale: float, seed: int) -> Tensor:
    """A frozen classifier: orthogonal directions of length `scale`, [C, width].

    Raises:
        ValueError: if there are more classes than dimensions.
    """
    if classes > width:
        raise ValueError(f"{width} features have no {classes} orthogonal directions, one per class: widen the model")
    return scale * torch.linalg.qr(torch.randn(width, classes, generator=generator("directions", seed))).Q.T


def pretrain(recipe: Recipe, runtime: Runtime, checkpoint: Checkpoint | None = None) -> tuple[nn.Module, pd.DataFrame]:
    """Train a backbone from random weights to tell the classes of all families apart.

    Args:
        recipe: what to do.
        runtime: device and precision.
        checkpoint: where to save and from where to continue.

    Returns:
        The encoder, and its learning curve (step, loss, accuracy); the accuracy is on 1000 of the training pictures.
    """
    backbone = load_backbone(recipe.source, image_size=recipe.image_size)
    model, given = FlatModel(backbone.encoder, runtime.device), (backbone.preprocess, runtime)
    images, labels = labelled_web(recipe)
    width = image_features(model.module, images[:2], *given).shape[1]
    head = orthogonal_head(class_offsets(recipe.families.split())[-1], width, recipe.scale, recipe.seed)
    named = {"task": "web", "batch": recipe.batch, "seed": recipe.seed}
    few = torch.randperm(len(images), generator=generator("pre-training curve", recipe.seed))[:1000]

    def accuracy(encoder: nn.Module) -> float:
        return score(image_features(encoder, images[few], *given), head, labels[few])["accuracy"]

    expert = fine_tune(
        model, model.initial(), image_loss(head, (images, labels), *given, **named), accuracy,
        task="web", steps=recipe.steps, learning_rate=recipe.learning_rate, checkpoint=checkpoint,
    )  # fmt: skip
    curve = expert.curve.drop(columns="task").rename(columns={"validation_accuracy": "accuracy"})
    return model.move_to(expert.theta).cpu().eval(), curve


def ship(encoder: nn.Module, recipe: Recipe, name: str, folder: Path = FOLDER) -> Path:
    """Save an encoder in timm's format, in half precision: theta0 is by definition what is in the file.

    Args:
        encoder: what to save.
        recipe: noted beside the weights with their SHA-256.
        name: of the files.
        folder: where to; files already there are replaced, atomically.
    """
    place = folder / name.lower()
    return shipping.ship(encoder.state_dict(), place.with_suffix(".safetensors"), place.with_suffix(".json"), recipe)


def main() -> None:
    """`make pretrain`: train the two backbones again and put them in place of the shipped ones."""
    for name, recipe in RECIPES.items():
        encoder, curve = pretrain(recipe, choose_runtime(), shipping.checkpoint_of(recipe))
        weights = ship(encoder, recipe, name, FOLDER)
        save_table(curve, FOLDER / f"{name.lower()}.csv")
        shipping.announce(weights)


if __name__ == "__main__":
    main()

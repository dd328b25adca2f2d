"""Backbones, CLIP through open_clip among them: loading, preprocessing, and the frozen heads of the tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from lib.device import Runtime
from lib.rng import seed_of

TINY_CLIP = Path(__file__).resolve().parents[1] / "data" / "tiny_clip"


@dataclass(frozen=True)
class Preprocess:
    """uint8 pixels to the encoder's input: (pixel / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 3, H, W]."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class Backbone:
    """A model taken apart into what the study needs: an image encoder, and how its input is made.

    Attributes:
        model: everything that was loaded.
        preprocess: pixels to input.
        image_size: side of the input in pixels.
    """

    model: nn.Module
    preprocess: Preprocess
    image_size: int

    @property
    def encoder(self) -> nn.Module:
        """The image encoder, the only part that is fine-tuned and merged: [N, 3, H, W] -> features [N, width]."""
        return self.model


@dataclass(frozen=True)
class Clip(Backbone):
    """A backbone with a text side.

    Attributes:
        model: the open_clip model (text tower frozen).
        tokenizer: its tokenizer.
    """

    tokenizer: open_clip.HFTokenizer | open_clip.SimpleTokenizer

    @property
    def visual(self) -> nn.Module:
        """The image tower, in open_clip's word."""
        return self.model.visual

    @property
    def encoder(self) -> nn.Module:
        """The image tower."""
        return self.visual

    @property
    def logit_scale(self) -> float:
        """Factor between cosine similarity and logit (CLIP's inverse temperature)."""
        return self.model.logit_scale.exp().item()


def load_clip(source: str = "", pretrained: str = "", image_size: int = 0) -> Clip:
    """Load a CLIP model: the shipped tiny one, a folder in open_clip's format, or one of open_clip's by name.

    Args:
        source: "" for the shipped tiny CLIP, a folder holding `open_clip_config.json`, or an open_clip model name.
        pretrained: for a model name, its weights (e.g. "openai"), downloaded by open_clip; "" for random ones, always
            the same. The activation is the one that the weights were trained with: OpenAI's compute with QuickGELU, and
            open_clip only warns if a model's name, such as "ViT-B-32", stands for another.
        image_size: side of the input in pixels; 0 takes the model's own.

    Raises:
        ValueError: if the folder or the name is unknown, the shipped checkpoint is missing, or its weights do not fit
            the image size.
    """
    folder = Path(source) if source else TINY_CLIP
    if (folder / "open_clip_config.json").is_file():
        name, weights = f"local-dir:{folder}", None
    elif not source:
        raise ValueError(f"the shipped checkpoint is missing at {folder}: restore it by git, or run `make pretrain`")
    elif source in open_clip.list_models():
        name, weights = source, pretrained or None
    else:
        raise ValueError(f"no CLIP model at '{source}': neither a folder with open_clip_config.json nor a model name")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports every step of loading on the root logger
    try:
        quick = bool(weights and open_clip.get_pretrained_cfg(name, weights).get("quick_gelu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("initial weights", name))
            model = open_clip.create_model(
                name, pretrained=weights, force_quick_gelu=quick, force_image_size=image_size or None
            )
        tokenizer = open_clip.get_tokenizer(name)
    except RuntimeError as error:
        if not image_size:
            raise
        raise ValueError(
            f"'{source}' cannot be loaded at {image_size} pixels, leave image_size out: {error}"
        ) from error
    finally:
        logging.getLogger().setLevel(level)
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    size = model.visual.image_size
    mean, std = model.visual.image_mean, model.visual.image_std
    side = size[0] if isinstance(size, (tuple, list)) else size
    return Clip(model.eval(), Preprocess(tuple(mean), tuple(std)), side, tokenizer)


@torch.no_grad()
def text_head(clip: Clip, class_names: Sequence[str], templates: Sequence[str], scale: float = 0.0) -> Tensor:
    """The zero-shot head of a task: normalised mean text embedding of each class's prompts, times a logit scale.

    Radford et al., https://arxiv.org/abs/2103.00020, section 3.1.4 (prompt ensembling).

    Args:
        clip: the model.
        class_names: C names.
        templates: prompts with one `{}`.
        scale: factor between cosine similarity and logit; 0 takes the model's own.

    Returns:
        [C, width]; logits are `normalised features @ head.T`.
    """
    rows = []
    for name in class_names:
        tokens = clip.tokenizer([template.format(name) for template in templates])
        embeddings = clip.model.encode_text(tokens.to(clip.model.logit_scale.device), normalize=True)
        rows.append(torch.nn.functional.normalize(embeddings.mean(0), dim=0))
    return torch.stack(rows) * (scale or clip.logit_scale)


def class_mean_head(features: Tensor, labels: Tensor, classes: int, logit_scale: float) -> Tensor:
    """A head without text: the normalised mean pre-trained feature of each class's training images.

    Used, frozen like a text head, where the prompts of a small CLIP say nothing about a data set (profile
    `tiny-real`). Features are centred neither here nor at test time, so the head stays a plain linear map.

    Args:
        features: normalised features of the training images [N, width].
        labels: int64 [N].
        classes: C.
        logit_scale: factor between cosine similarity and logit.

    Returns:
        [C, width].

    Raises:
        ValueError: if a class has no image.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no training image to take a mean of")
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels.cpu(), features.float().cpu())
    return torch.nn.functional.normalize(sums, dim=-1) * logit_scale


def minimise(loss_at: Callable[[], Tensor], *parameters: Tensor, **options: object) -> None:
    """Move parameters, in place, to where a smooth loss is least: L-BFGS, at most 100 iterations.

    Args:
        loss_at: the loss at the parameters as they are.
        parameters: leaves that require gradients.
        options: of `torch.optim.LBFGS`.
    """
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, **options)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_at()
        loss.backward()
        return loss

    optimiser.step(closure)


def linear_probe_head(
    features: Tensor, labels: Tensor, classes: int, logit_scale: float, penalty: float = 1e-4
) -> Tensor:
    """A head without text: the directions of a logistic regression on the pre-trained features of training images.

    Class means of a backbone without text lie close together, so that even an expert's logits stay close; directions
    that were fitted to tell the classes apart do not. Each is brought to length 1, so that one temperature holds for
    all tasks, whatever the regression made of its own.

    Args:
        features: normalised features of the training images [N, width].
        labels: int64 [N].
        classes: C.
        logit_scale: factor between cosine similarity and logit.
        penalty: weight of half the squared norm of the regression's weights (L-BFGS, no bias).

    Returns:
        [C, width].

    Raises:
        ValueError: if a class has no image.
    """
    directions = 20 * class_mean_head(features, labels, classes, 1.0)  # near the length that the fit will have
    directions.requires_grad_(True)
    features, labels = features.float().cpu(), labels.cpu()

    def loss_at() -> Tensor:
        fit = torch.nn.functional.cross_entropy(features @ directions.T, labels)
        return fit + penalty / 2 * directions.square().sum()

    minimise(loss_at, directions, line_search_fn="strong_wolfe")
    return torch.nn.functional.normalize(directions.detach(), dim=-1) * logit_scale


@torch.no_grad()
def image_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """Normalised features of uint8 images: [N, 3, H, W] -> float32 [N, width] on the CPU."""
    encoder.eval()
    parts = []
    for rows in pixels.split(batch):
        with runtime.autocast():
            features = encoder(preprocess(rows.to(runtime.device)))
        parts.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
    return torch.cat(parts)


def on_device(backbone: Backbone, runtime: Runtime) -> Backbone:
    """The same model on the runtime's device."""
    return replace(backbone, model=backbone.model.to(runtime.device))

"""Backbones, CLIP through open_clip among them: loading and preprocessing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from lib.files.weights import Weights, fit, prefix_of, read_weights
from lib.runtime.device import Runtime
from lib.runtime.disk import ROOT
from lib.runtime.keys import key_of
from lib.runtime.rng import seed_of
from lib.vision.small_maps import with_small_maps

TINY_CLIP = ROOT / "data" / "tiny_clip"


@dataclass(frozen=True)
class Preprocess:
    """uint8 pixels to the encoder's input: (pixel / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 3, H, W]."""
        mean, std = self._constants(pixels.device)
        return (pixels.float() / 255 - mean) / std

    @lru_cache(maxsize=8)  # noqa: B019 - few and small; copied anew for every batch, they would hold up a GPU
    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))


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

    def determines(self) -> dict[str, object]:
        """For keys: the model and what its tokenizer makes of texts, a hash of a megabyte."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # of transformers; else open_clip's own
        words = inner.backend_tokenizer.to_str() if inner is not None else self.tokenizer.encoder
        told = {"model": self.model, "preprocess": self.preprocess, "image_size": self.image_size}
        return told | {"words": key_of({"words": words})}

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
        pretrained: for a model name, its weights: open_clip's name of some (e.g. "openai"), downloaded, or a file or
            folder (see `lib.files.weights`); "" for random ones, always the same. The activation is the one that the
            weights were trained with: OpenAI's compute with QuickGELU, whatever a model's name, such as "ViT-B-32",
            stands for. Of a file it must be known (see `_quick_gelu`).
        image_size: side of the input in pixels; 0 takes the model's own.

    Raises:
        ValueError: if the folder or the name is unknown, weights are missing or damaged, they do not fit the model or
            the image size, or their activation is not known.
    """
    folder, name, tag, weights = Path(source).expanduser() if source else TINY_CLIP, source, None, None
    if (folder / "open_clip_config.json").is_file():
        name, weights = f"local-dir:{folder}", read_weights(folder)
    elif not source:
        raise ValueError(f"the shipped checkpoint is missing at {folder}: restore it by git, or run `make pretrain`")
    elif (name := source.removesuffix("-gelu")) not in open_clip.list_models():
        neither = "neither a folder with open_clip_config.json nor a model name (timm's are timm:NAME)"
        raise ValueError(f"no CLIP model at '{source}': {neither}")
    elif pretrained in open_clip.list_pretrained_tags_by_model(name):
        tag = pretrained
    elif pretrained:
        weights = read_weights(pretrained)
    quick = bool(tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    quick = quick or (name == source and weights is not None and _quick_gelu(name, weights.place))
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports every step of loading on the root logger
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("initial weights", name))
            options = {"force_quick_gelu": quick, "force_image_size": image_size or None}
            model = open_clip.create_model(name, pretrained=tag, load_weights=weights is None, **options)
        if weights is not None:
            _load(model, weights)
        tokenizer = open_clip.get_tokenizer(name)
    except RuntimeError as error:
        if tag and "download" in str(error):
            raise ValueError(f"no weights '{tag}' of {name} within reach: set pretrained to a file of them") from error
        if not image_size:
            raise
        raise ValueError(f"{source}: cannot be loaded at {image_size} pixels, leave image_size out: {error}") from error
    finally:
        logging.getLogger().setLevel(level)
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    size = model.visual.image_size
    mean, std = model.visual.image_mean, model.visual.image_std
    side = size[0] if isinstance(size, (tuple, list)) else size
    return Clip(with_small_maps(model.eval()), Preprocess(tuple(mean), tuple(std)), side, tokenizer)


def _quick_gelu(name: str, place: Path) -> bool:
    """Whether weights in a file compute with QuickGELU, where a model can have either: from its name, or its folder's.

    Raises:
        ValueError: if that does not say it.
    """
    if f"{name}-quickgelu" not in open_clip.list_models():
        return False
    words = f"{place.parent.name}/{place.name}".lower()
    if tags := [tag for tag in open_clip.list_pretrained_tags_by_model(name) if tag in words]:
        return bool(open_clip.get_pretrained_cfg(name, max(tags, key=len)).get("quick_gelu"))
    raise ValueError(
        f"{place} does not say with which activation these weights compute: set model='{name}-quickgelu' if they are "
        f"OpenAI's or come from those, else model='{name}-gelu'"
    )


def _load(model: nn.Module, weights: Weights) -> None:
    """Load weights into a CLIP, position embeddings resampled where the input's size asks for it."""
    own = model.state_dict()
    state = dict(weights.below(prefix_of(weights, own)[0]))
    resize_pos_embed(state, model)
    model.load_state_dict(own | dict(fit(Weights.of(weights.place, state), own)))


def on_device(backbone: Backbone, runtime: Runtime) -> Backbone:
    """The same model on the runtime's device."""
    return replace(backbone, model=backbone.model.to(runtime.device))

"""What can be fine-tuned and merged: CLIP image encoders, and any backbone that timm builds."""

from __future__ import annotations

import ast
import re
import sys

import timm
import torch
from torch import nn

from lib.files.weights import Weights, fit, prefix_of, read_weights
from lib.runtime.parameters import closest
from lib.runtime.rng import seed_of
from lib.vision.models import Backbone, Preprocess, load_clip
from lib.vision.small_maps import with_small_maps

TIMM = "timm:"
SOURCE = re.compile(r"(?P<name>[\w.-]+)(\((?P<options>.*)\))?", re.DOTALL)


def load_backbone(source: str = "", pretrained: str = "", image_size: int = 0) -> Backbone:
    """Load what a profile's `model`, `pretrained` and `image_size` name: see `load_timm` and `models.load_clip`."""
    return (load_timm if source.startswith(TIMM) else load_clip)(source, pretrained, image_size)


def load_timm(source: str, pretrained: str = "", image_size: int = 0) -> Backbone:
    """Load a backbone of timm without its classifier: pixels to pooled features.

    Args:
        source: "timm:NAME", or "timm:NAME(option=value, ...)" with options of timm's own constructor, such as
            "timm:vit_tiny_patch16_224(patch_size=8, depth=3)".
        pretrained: "" for random weights (always the same ones), "hub" for timm's download, or a file or folder with
            weights under timm's names (see `lib.files.weights`), whose activation must be known.
        image_size: side of the input in pixels; 0 takes the model's own. Position embeddings of another size are
            resampled by timm.

    Raises:
        ValueError: if timm cannot build the model, or the weights are missing or those of another model.
    """
    name, options = parse(source)
    base, _, tag = name.partition(".")
    twin, of_file = base.replace("_clip_", "_clip_quickgelu_"), pretrained not in ("", "hub")
    either = twin != base and timm.is_model(twin) and "act_layer" not in options
    if either and (tag == "openai" or (of_file and not tag)):
        raise ValueError(
            f"OpenAI's weights compute with QuickGELU, '{source}' with GELU: set model='timm:{twin}' if they are "
            f"OpenAI's or come from those, else model='timm:{base}(act_layer=\"gelu\")'"
        )
    size, fixed = _input_size(name)
    if image_size and fixed:  # convolutions take any size as they are
        options["img_size"] = image_size
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("initial weights", source))
            model = timm.create_model(name, pretrained=pretrained == "hub", num_classes=0, **options)
    except (TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"timm cannot build '{source}' ({error}): see the arguments of its constructor") from error
    except (OSError, RuntimeError) as error:
        mend = "name a file with them instead of 'hub'"
        raise ValueError(f"timm has no weights of '{name}' within reach ({error}): {mend}") from error
    if pretrained not in ("", "hub"):
        _load_weights(model, pretrained, source)
    model.requires_grad_(True)
    preprocess = Preprocess(tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
    return Backbone(with_small_maps(model.eval()), preprocess, options.get("img_size") or image_size or size)


def parse(source: str) -> tuple[str, dict[str, object]]:
    """The name and the options in "timm:NAME(option=value, ...)"; values are Python literals and run no code.

    Raises:
        ValueError: if it is written otherwise, or timm knows no such model.
    """
    found = SOURCE.fullmatch(source.removeprefix(TIMM))
    try:
        call = ast.parse(f"dict({found['options'] or ''})", mode="eval").body
        options = {part.arg: ast.literal_eval(part.value) for part in call.keywords}
        if call.args or None in options:
            raise ValueError
    except (TypeError, SyntaxError, ValueError, AttributeError):
        form = "timm:NAME or timm:NAME(option=value, ...)"
        raise ValueError(f"model '{source}' cannot be read: write {form} with plain values") from None
    if not timm.is_model(found["name"].partition(".")[0]):
        raise ValueError(f"timm knows no model '{found['name']}'{closest(found['name'], timm.list_models())}")
    return found["name"], options


def _input_size(name: str) -> tuple[int, bool]:
    """The side of a model's own input, and whether the model is built for one size."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return config.input_size[-1], bool(config.fixed_input_size)


def _load_weights(model: nn.Module, place: str, source: str) -> None:
    """Load weights into a model without classifier, resampled where the input's size asks for it."""
    weights, own = read_weights(place), model.state_dict()
    try:
        state = dict(weights.below(prefix_of(weights, own)[0]))
        # timm keeps what brings an older or differently sized checkpoint into the model's form beside each family
        adjust = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        fitted = fit(Weights.of(weights.place, adjust(state, model) if adjust else state), own)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{weights.place} is no checkpoint of '{source}': {error}") from None
    model.load_state_dict(own | dict(fitted))

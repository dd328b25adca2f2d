"""Merged image models, written as the library that their experts came from reads them.

| library | what is written | read by |
|---|---|---|
| open_clip | `open_clip_model.safetensors`, `open_clip_config.json` | `open_clip.create_model("local-dir:FOLDER")` |
| hugging-face | `model.safetensors`, `config.json` of a `CLIPModel` | `CLIPModel.from_pretrained(FOLDER)` |
| timm | `model.safetensors`, `config.json` | `timm.create_model("local-dir:FOLDER", pretrained=True)` |
| torchvision | `model.pth`, a state dict without `fc` | `model.load_state_dict(torch.load(...), strict=False)` |

Beside each lie the tasks' frozen heads, `heads.safetensors`, and their class names, `heads.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import timm
import torch
import torchvision
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from lib.files.clip_names import TRANSPOSED, sources
from lib.files.experts import activation_of
from lib.vision.backbones import parse
from lib.vision.models import TINY_CLIP, Backbone, Clip

CONFIG = "open_clip_config.json"
TOKENIZER = ("*token*", "*vocab*", "merges.txt", "*.model")  # files of a folder's own tokenizer


def libraries_of(backbone: Backbone, source: str) -> tuple[str, ...]:
    """For which libraries a backbone can be written; the one it was loaded from first.

    Args:
        backbone: as `load_backbone` gives it.
        source: the profile's `model`.
    """
    if isinstance(backbone, Clip):
        whole = isinstance(backbone.visual, VisionTransformer) and isinstance(backbone.model, open_clip.CLIP)
        return ("open_clip", "hugging-face") if whole else ("open_clip",)
    name, own = parse(source)[0].partition(".")[0], backbone.model.state_dict().keys()
    if name not in torchvision.models.list_models():
        return ("timm",)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict().keys()
    return ("timm", "torchvision") if {n for n in theirs if not n.startswith("fc.")} == set(own) else ("timm",)


def library_for(backbone: Backbone, source: str, library: str = "") -> str:
    """The library, if the backbone can be written for it; for "" the first of `libraries_of`.

    Raises:
        ValueError: if it cannot.
    """
    known = libraries_of(backbone, source)
    if library not in ("", *known):
        raise ValueError(f"model '{source}' cannot be written for {library}; for {' and '.join(known)} it can")
    return library or known[0]


def write_backbone(backbone: Backbone, source: str, folder: Path, library: str = "") -> str:
    """Write a backbone as it is now, its merged parameters and statistics; returns the library that it is written for.

    Args:
        backbone: the whole model; a CLIP's text tower is written, too, as it was pre-trained.
        source: the profile's `model`, from which the backbone was loaded.
        folder: where to; it exists.
        library: see `library_for`, which raises what is wrong with it.
    """
    library = library_for(backbone, source, library)
    state = {name: tensor.cpu().contiguous() for name, tensor in backbone.model.state_dict().items()}
    if library == "open_clip":
        _write_open_clip(backbone, source, folder, state)
    elif library == "hugging-face":
        hugging_face(backbone, state).save_pretrained(folder)
        side, pixels = backbone.image_size, backbone.preprocess
        sizes = {"size": {"shortest_edge": side}, "crop_size": side}
        CLIPImageProcessor(**sizes, image_mean=pixels.mean, image_std=pixels.std).save_pretrained(folder)
    elif library == "timm":
        own = {"input_size": (3, backbone.image_size, backbone.image_size), "crop_pct": 1.0, "interpolation": "bicubic"}
        given = {"model_args": parse(source)[1], "data_config": own}  # how images came in here, not at timm
        timm.models.save_for_hf(backbone.model, str(folder), safe_serialization=True, **given)
    else:
        torch.save(state, folder / "model.pth")
    return library


def _write_open_clip(clip: Clip, source: str, folder: Path, state: Mapping[str, Tensor]) -> None:
    place = Path(source).expanduser() if source else TINY_CLIP
    if (place / CONFIG).is_file():
        config = json.loads((place / CONFIG).read_text("utf-8"))
        for path in {path for pattern in TOKENIZER for path in place.glob(pattern) if path.is_file()}:
            if path.suffix != ".safetensors":
                shutil.copyfile(path, folder / path.name)
    else:
        config = {"model_cfg": open_clip.get_model_config(source.removesuffix("-gelu"))}
    vision = config["model_cfg"]["vision_cfg"]
    config["model_cfg"] |= {"quick_gelu": activation_of(clip.visual) == "quick_gelu"} if "width" in vision else {}
    vision["image_size"] = clip.image_size
    config["preprocess_cfg"] = {"mean": clip.preprocess.mean, "std": clip.preprocess.std}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def hugging_face(clip: Clip, state: Mapping[str, Tensor]) -> CLIPModel:
    """A CLIP of open_clip as one of transformers.

    Args:
        clip: what is translated; its image tower is a vision transformer.
        state: its parameters by open_clip's names.
    """
    model, act = clip.model, activation_of(clip.visual)
    text, image = ({"hidden_act": act, "layer_norm_eps": 1e-5} | _sizes(part) for part in (model, clip.visual))
    text |= {"vocab_size": model.vocab_size, "max_position_embeddings": model.context_length}
    # transformers takes the first end token, open_clip the largest number: the same, since the end is the last one
    text |= {"eos_token_id": model.vocab_size - 1, "bos_token_id": model.vocab_size - 2, "pad_token_id": 0}
    image |= {"patch_size": clip.visual.conv1.weight.shape[-1], "image_size": clip.image_size}
    width = state["text_projection"].shape[1]
    both = {"projection_dim": width}
    config = CLIPConfig(text_config=text | both, vision_config=image | both, **both)
    translated = {}
    for name, tensor in state.items():
        parts, tensor = sources(name), tensor.T if name in TRANSPOSED else tensor
        pieces = tensor.chunk(len(parts)) if len(parts) > 1 else [tensor]
        translated |= {part: piece.contiguous() for part, piece in zip(parts, pieces, strict=True)}
    with torch.device("meta"):
        found = CLIPModel(config)
    found.load_state_dict(translated, strict=True, assign=True)
    return found.eval()


def _sizes(tower: nn.Module) -> dict[str, int]:
    """Width, depth and heads of a tower."""
    blocks = tower.transformer.resblocks
    width, heads = blocks[0].attn.embed_dim, blocks[0].attn.num_heads
    inner = blocks[0].mlp.c_fc.out_features
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(blocks)}
    return sizes | {"num_attention_heads": heads}


def write_heads(heads: Mapping[str, Tensor], class_names: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Write the tasks' heads, which read features as `lib.vision.scoring.logits_of` says.

    Args:
        heads: task -> [C, width], or [C, width + 1] with biases.
        class_names: task -> C names.
        folder: where to.
    """
    save_file({task: head.cpu().contiguous() for task, head in heads.items()}, folder / "heads.safetensors")
    names = {task: list(own) for task, own in class_names.items()}
    (folder / "heads.json").write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

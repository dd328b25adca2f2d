"""Published experts of CLIP's image encoder, in either file format, under the names of today's open_clip.

- `CLIPVisionModel` of transformers: `model.safetensors` or `pytorch_model.bin`. It keeps queries, keys and values
  apart, open_clip stacks them. It has no projection: the pre-trained one was used, frozen, while it was fine-tuned. So
  here `proj` is the pre-trained one, and its part of the task vector is zero.
- A pickled `ImageEncoder` of the original task vectors, read by `lib.files.pickled` without its classes; its names
  under `model.visual` are those of today's open_clip.

Both are experts of OpenAI's weights, which compute with QuickGELU, x * sigmoid(1.702 x).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.files.lineages import FILES, HUGGING_FACE, TASK_VECTORS, path_of, pattern_of
from lib.files.pickled import read_tensors
from lib.vectors.layout import Layout

# Parts of names in open_clip -> in transformers. Weights and biases of attention's input are stacked, see `_sources`.
RENAMED = (
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_pre.", "pre_layrnorm."),  # spelt like this there
    ("ln_post.", "post_layernorm."),
    ("conv1.weight", "embeddings.patch_embedding.weight"),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
)
PREFIX = "vision_model."  # transformers 5 leaves it out
PROJECTION = "visual_projection.weight"
OF_TEXT = ("text_model.", "text_projection.", "logit_scale")
FAR = 0.5  # an expert differs from its start by some percent of its length, other weights by 1.4 times it


def load_published(
    experts: str, task: str, layout: Layout, theta0: Tensor, *, lineage: str, model: str = ""
) -> tuple[dict[str, Tensor], Path]:
    """Load the published expert of a task.

    Args:
        experts: where they lie, a folder, file or name on the hub with {task} in it; or "hugging-face".
        task: its name in the study.
        layout: of the pre-trained image encoder, under open_clip's names.
        theta0: its parameters [D].
        lineage: of all experts, see `lineages.lineage_of`.
        model: the pre-trained model's name, which "hugging-face" needs.

    Returns:
        A state dict with exactly the layout's names, and the file it was read from.

    Raises:
        ValueError: if there is no such file, it cannot be read, or it is no expert of this model (a layer missing or
            unknown, another shape or type, NaN or Inf, another activation, another start); names file and layer.
    """
    path = locate(pattern_of(experts, model), lineage, task)
    start = layout.views(theta0.cpu())
    try:
        if lineage == TASK_VECTORS:
            state = from_task_vectors(read_tensors(path, lambda name: "visual." in name))
        else:
            check_config(path.parent / "config.json", start)
            state = from_hugging_face(_read(path), start)
        layout.check(state)
        for name in layout.names:
            layout.check_type(name, state[name].dtype)
        check_start(state, start)
    except ValueError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(message) from None
    return {name: state[name] for name in layout.names}, path


def locate(pattern: str, lineage: str, task: str) -> Path:
    """Find the file of an expert: a file, one in a folder, or one on the hub.

    Raises:
        ValueError: if there is none; names what was looked for.
    """
    place = path_of(pattern, lineage, task)
    for path in (place, *(place / name for name in FILES[lineage])):
        if path.is_file():
            return path
    if place.is_dir():
        raise ValueError(f"no expert of '{task}' in {place}: expected {' or '.join(FILES[lineage])} there")
    if pattern.startswith(("/", ".", "~")) or pattern.count("/") != 1 or lineage == TASK_VECTORS:
        raise ValueError(
            f"no expert of '{task}' at {place}: put it there, or set experts to where it is (a name on the hub has "
            "exactly one /)"
        )
    return _download(str(place))


def _download(hub: str) -> Path:
    """Fetch an expert's files from the hub, or find them in its cache."""
    from huggingface_hub import snapshot_download  # here, not above: importing it takes long

    try:
        for name in FILES[HUGGING_FACE]:
            path = Path(snapshot_download(hub, allow_patterns=["config.json", name])) / name
            if path.is_file():
                return path
    except Exception as error:  # the hub's client and its HTTP library share no base class
        raise ValueError(
            f"cannot fetch '{hub}' from the Hugging Face hub ({type(error).__name__}); check the network, or set "
            "experts to a folder with {task} in it that holds config.json and model.safetensors"
        ) from error
    raise ValueError(f"'{hub}' on the Hugging Face hub holds none of {', '.join(FILES[HUGGING_FACE])}")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_tensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); download it again") from None


def from_task_vectors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's part of a pickled module: what comes after "visual." in each name.

    Raises:
        ValueError: if there is none, or two.
    """
    found = {name.partition("visual.")[2]: tensor for name, tensor in tensors.items() if "visual." in name}
    if not found or len({name.partition("visual.")[0] for name in tensors}) > 1:
        raise ValueError(
            "expected a pickled ImageEncoder with one open_clip model in it; a CLIPVisionModel must not be named .pt, "
            f"which stands for the lineage '{TASK_VECTORS}'"
        )
    return found


def from_hugging_face(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and stack the parameters of a `CLIPVisionModel`.

    Args:
        tensors: its state dict; of a whole `CLIPModel` or `CLIPVisionModelWithProjection` the image encoder is taken.
        start: the pre-trained image encoder under open_clip's names, whose projection is kept if the expert has none.

    Returns:
        A state dict under open_clip's names.

    Raises:
        ValueError: naming a layer that is missing, or that no layer of `start` is made of.
    """
    given = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if not name.startswith(OF_TEXT)}
    sources = {name: _sources(name) for name in start}
    used = {source for names in sources.values() for source in names}
    if unknown := [name for name in given if name not in used and given[name].is_floating_point()]:
        raise ValueError(f"layer '{unknown[0]}' is not part of the pre-trained model: was it made for another one?")
    made = {}
    for name, names in sources.items():
        if names == (PROJECTION,):
            made[name] = given[PROJECTION].T if PROJECTION in given else start[name]
            continue
        if missing := [source for source in names if source not in given]:
            raise ValueError(f"layer '{missing[0]}' is missing: is this a CLIPVisionModel of the same size?")
        parts = [given[source] for source in names]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            raise ValueError(f"layers {', '.join(names)} differ in shape or type, and cannot be stacked")
        made[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return made


def _sources(name: str) -> tuple[str, ...]:
    """Which layers of a `CLIPVisionModel` a layer of open_clip is made of."""
    if name == "proj":
        return (PROJECTION,)
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    block, stacked, kind = name.partition(".attn.in_proj_")
    return tuple(f"{block}.self_attn.{part}_proj.{kind}" for part in "qkv") if stacked else (name,)


def check_config(path: Path, start: Mapping[str, Tensor]) -> None:
    """Compare what the weights do not show with OpenAI's models: the activation and the number of heads.

    Raises:
        ValueError: if one differs. A file without a config beside it is taken as it is.
    """
    if not path.is_file():
        return
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration of a model; download it again")
    config = config.get("vision_config", config)
    heads = len(start["class_embedding"]) // 64 if "class_embedding" in start else None
    for what, expected in (("hidden_act", "quick_gelu"), ("num_attention_heads", heads)):
        if expected and config.get(what, expected) != expected:
            found = f"{path}: {what} is {config[what]}"
            raise ValueError(f"{found}, OpenAI's models have {expected}: take experts of those")


def check_start(state: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """An expert must be near the pre-trained model.

    Raises:
        ValueError: if it is not: its difference is no task vector.
    """
    away = sum((state[name].double() - start[name].double()).square().sum().item() for name in start)
    length = sum(tensor.double().square().sum().item() for tensor in start.values())
    if away > FAR**2 * length:
        raise ValueError(
            f"it differs from the pre-trained model by {(away / length) ** 0.5:.0%} of that one's length: it was "
            "fine-tuned from other weights; set model and pretrained to those"
        )


def check_activation(encoder: nn.Module) -> None:
    """Published experts compute with QuickGELU; with another activation every score would be slightly off.

    Raises:
        ValueError: if a layer of the encoder does not.
    """
    for name, part in encoder.named_modules():
        if isinstance(part, nn.GELU):
            raise ValueError(
                f"layer '{name}' is GELU, but published experts compute with QuickGELU: set pretrained='openai', or a "
                "model whose name ends in -quickgelu"
            )

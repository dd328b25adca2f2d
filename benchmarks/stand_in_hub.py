"""A local mirror of all that the paper's profiles fetch, filled with noise: `python -m benchmarks.stand_in_hub FOLDER`.

What a machine without a way to the internet cannot do is download; everything behind it can be tried. So this writes
the same files with random numbers in them:

- `model/<name>`: a CLIP of the architecture in open_clip's format; its tokenizer comes with open_clip;
- `tanganke/clip-vit-<name>_<task>` and `task-vectors/<name>/<Set>/finetuned.pt`: the same experts, which are that model
  with a little noise added, in the file format of either lineage (see `lib.files.lineages`);
- `data/<set>/data/*.parquet`: the image sets, with the official number of classes and a few pictures of each.

Scores on them mean nothing. Time, memory, file formats and every line of code in between are the real ones.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.files.lineages import HUGGING_FACE, ORIGINAL, TASK_VECTORS, name_of
from lib.runtime.rng import seed_of
from lib.study.profiles import PAPER_TASKS, PROFILES, VisionProfile
from lib.vision.registry import REGISTRY

# Of the same kind as the paper's, for tests: four patches, two blocks.
QUICK = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
MODELS = ("quick", *(profile.model for profile in PROFILES.values() if getattr(profile, "pretrained", "") == "openai"))
CHANGE = 0.02  # length of a layer's change as a share of the layer's, about what fine-tuning at 1e-5 does
SMALLEST = 1e-3  # standard deviation of the change where a layer is zero, as biases are at first
SIDE = 48  # of the pictures, in pixels
PREFIX = "vision_model."  # transformers 4, which wrote the hub's files, has it, transformers 5 leaves it out


@dataclass(frozen=True)
class StandIn:
    """Where everything lies, as the study is told.

    Attributes:
        model: the parameter `model`, a folder.
        experts: the parameter `experts` of each lineage.
        data_root: the parameter `data_root`.
    """

    model: str
    experts: dict[str, str]
    data_root: str


def write_stand_in(
    folder: Path, model: str = "quick", tasks: Sequence[str] = tuple(PAPER_TASKS.split()), images: int = 2
) -> StandIn:
    """Write model, experts and image sets.

    Args:
        folder: where to; made if needed.
        model: one of `MODELS`.
        tasks: names of registered sets.
        images: pictures per class, in train and in test.

    Raises:
        ValueError: for an unknown model or set; names the known ones.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model '{model}'; known: {', '.join(MODELS)}")
    if unknown := [task for task in tasks if task not in REGISTRY]:
        raise ValueError(f"unknown set '{unknown[0]}'; known: {', '.join(REGISTRY)}")
    folder = folder.expanduser().resolve()
    clip = write_model(folder / "model" / model, model)
    patterns = {
        HUGGING_FACE: f"{folder}/tanganke/clip-vit-{model}_{{task}}",
        TASK_VECTORS: f"{folder}/{TASK_VECTORS}/{model}/{{task}}/{ORIGINAL}",
    }
    start = copy.deepcopy(clip.visual.state_dict())
    for task in tasks:
        expert = perturbed(start, task)
        place = {lineage: pattern.replace("{task}", name_of(task, lineage)) for lineage, pattern in patterns.items()}
        write_vision_model(expert, clip.visual, Path(place[HUGGING_FACE]))
        clip.visual.load_state_dict(expert)
        write_image_encoder(clip, Path(place[TASK_VECTORS]))
    for task in tasks:
        write_set(folder / "data", task, images)
    return StandIn(str(folder / "model" / model), patterns, str(folder / "data"))


def write_model(folder: Path, name: str) -> nn.Module:
    """A CLIP with random weights in open_clip's format, and the same in memory."""
    config = QUICK if name == "quick" else open_clip.get_model_config(name)
    config = {**config, "quick_gelu": True}  # as OpenAI's weights need it
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    (folder / "open_clip_config.json").write_text(text + "\n")
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return clip


def perturbed(start: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """The expert of a task: every layer and a little noise, but the projection as it is, which one lineage lacks."""
    generator = torch.Generator().manual_seed(seed_of("stand-in", task))
    expert = {}
    for name, tensor in start.items():
        size = max(CHANGE * tensor.square().mean().sqrt().item(), SMALLEST)
        noise = torch.randn(tensor.shape, generator=generator).mul_(size)
        expert[name] = tensor.clone() if name == "proj" else noise.add_(tensor)
    return expert


def write_vision_model(expert: Mapping[str, Tensor], visual: nn.Module, folder: Path) -> None:
    """Save an image encoder as transformers does.

    Args:
        expert: its parameters under open_clip's names.
        visual: an image encoder of open_clip of that architecture.
        folder: for config.json and model.safetensors.

    Raises:
        ValueError: if transformers has other names or shapes for that architecture.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    (width, _, patch, _), side = expert["conv1.weight"].shape, visual.image_size
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=len(expert["transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=len(visual.transformer.resblocks), num_attention_heads=width // 64,
        image_size=side[0] if isinstance(side, tuple) else side, patch_size=patch,
        projection_dim=expert["proj"].shape[1], hidden_act="quick_gelu",
    )  # fmt: skip
    config.architectures = [CLIPVisionModel.__name__]
    named = dict(under_transformers_names(expert))
    with torch.device("meta"):  # only its names and shapes: these must be those of the class that wrote the hub's files
        model = CLIPVisionModel(config)
    today = {name.removeprefix(PREFIX): tensor.shape for name, tensor in model.state_dict().items()}
    if today != {name: tensor.shape for name, tensor in named.items()}:
        raise ValueError("transformers' CLIPVisionModel has other layers than the stand-in: mend its names here")
    config.save_pretrained(folder)
    with_prefix = {PREFIX + name: tensor.contiguous() for name, tensor in named.items()}
    save_file(with_prefix, folder / "model.safetensors", metadata={"format": "pt"})


def under_transformers_names(expert: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a `CLIPVisionModel`, written down independently of `lib.files.experts`, which reads them."""
    parts = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    yield "embeddings.class_embedding", expert["class_embedding"]
    yield "embeddings.patch_embedding.weight", expert["conv1.weight"]
    yield "embeddings.position_embedding.weight", expert["positional_embedding"]
    for kind in ("weight", "bias"):
        yield f"pre_layrnorm.{kind}", expert[f"ln_pre.{kind}"]
        yield f"post_layernorm.{kind}", expert[f"ln_post.{kind}"]
        for number in range(sum(name.endswith("ln_1.weight") for name in expert)):
            block, layer = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
            for ours, theirs in parts.items():
                yield f"{layer}.{theirs}.{kind}", expert[f"{block}.{ours}.{kind}"]
            for part, stacked in zip("qkv", expert[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                yield f"{layer}.self_attn.{part}_proj.{kind}", stacked.clone()  # safetensors wants a storage for each


class ImageEncoder(nn.Module):
    """What was pickled for the original task vectors: a CLIP without its text transformer, and its transforms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        side = model.visual.image_size
        self.model = model
        self.train_preprocess = open_clip.image_transform(side, is_train=True)
        self.val_preprocess = open_clip.image_transform(side, is_train=False)
        self.cache_dir = None
        if hasattr(model, "transformer"):
            del model.transformer


@contextmanager
def pickled_as(kind: type, module: str) -> Iterator[None]:
    """Let a class be pickled under the name of a module that does not exist here, nor where the file is read."""
    own, parents = kind.__module__, [module.rpartition(".")[0], module]
    before = {name: sys.modules.get(name) for name in parents}
    sys.modules |= {name: types.ModuleType(name) for name in parents}
    setattr(sys.modules[module], kind.__name__, kind)
    kind.__module__ = module
    try:
        yield
    finally:
        kind.__module__ = own
        for name, found in before.items():
            sys.modules.pop(name)
            if found is not None:
                sys.modules[name] = found


def write_image_encoder(clip: nn.Module, path: Path) -> None:
    """Pickle an image encoder as the original task vectors are; the CLIP's text transformer is deleted by that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pickled_as(ImageEncoder, "src.modeling"):
        torch.save(ImageEncoder(clip), path)


def class_names(task: str) -> list[str]:
    """As many as the official set has; digits, and EuroSAT's raw labels, are the official ones."""
    if task == "eurosat":
        return list(REGISTRY[task].prompted)
    count = REGISTRY[task].classes
    return [str(label) if task in ("mnist", "svhn") else f"{task} class {label}" for label in range(count)]


def write_set(root: Path, task: str, images: int) -> None:
    """An image set in the hub's layout: for every class a colour of its own, and noise."""
    import datasets
    from pyarrow import Table, parquet

    rng, names = np.random.default_rng(seed_of("stand-in", "images", task)), class_names(task)
    colours = rng.integers(0, 256, (len(names), 1, 1, 3))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (root / task / "data").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels = [label for _ in range(images) for label in range(len(names))]
        pictures = [{"bytes": picture(rng, colours[label]), "path": None} for label in labels]
        rows = Table.from_pydict({"image": pictures, "label": labels}, schema=features.arrow_schema)
        parquet.write_table(rows, root / task / "data" / f"{split}-00000-of-00001.parquet")


def picture(rng: np.random.Generator, colour: np.ndarray) -> bytes:
    """Noise around a colour [1, 1, 3], as JPEG."""
    pixels = np.clip(colour + rng.normal(0, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def profile_of(model: str) -> str:
    """The profile that a model stands in for; the small one for the smallest."""
    vision = [profile for profile in PROFILES.values() if isinstance(profile, VisionProfile)]
    return next((profile.name for profile in vision if profile.model == model), "clip-vit-b-32")


def main() -> None:
    """Write it and say how the study is run on it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="ViT-B-32", choices=MODELS)
    parser.add_argument("--tasks", default=PAPER_TASKS)
    parser.add_argument("--images", type=int, default=2, help="pictures per class, in train and in test")
    given = parser.parse_args()
    made = write_stand_in(given.folder, given.model, given.tasks.split(), given.images)
    tasks = "" if given.tasks == PAPER_TASKS else f' TASKS="{given.tasks}"'
    for pattern in made.experts.values():
        params = f"model='{made.model}' experts='{pattern}' mask_steps=2 adaptation_steps=2"
        command = f"make study PROFILE={profile_of(given.model)} DATA_ROOT={made.data_root}{tasks}"
        print(f'{command} PARAMS="{params}"')


if __name__ == "__main__":
    main()

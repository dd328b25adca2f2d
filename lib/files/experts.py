"""Experts that others fine-tuned, under the names of the pre-trained model here.

That model's names are understood, in a CLIP those of the image encoder alone, of a whole CLIP of open_clip (a pickled
one included, as the original task vectors have it), and of transformers' `CLIPVisionModel` and `CLIPModel`. There they
keep queries, keys and values apart, open_clip stacks them. A `CLIPVisionModel` has no projection: the pre-trained one
was used, frozen, while it was fine-tuned. So here `proj` is the pre-trained one, its part of the task vector is zero.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.files.clip_names import WHOLE, tower_sources
from lib.files.lineages import GIVEN, locate, pattern_of
from lib.files.weights import FLOATING, HEAD, Weights, fit, prefix_of, read_weights, say
from lib.vectors.layout import Layout

DOWNLOADED = ("model.safetensors", "pytorch_model.bin")
FAR = 0.5  # an expert differs from its start by some percent of its length, other weights by 1.4 times it
SAME = 0.999  # cosine of task vectors from which on they may be one expert's


def opened(experts: str, task: str, lineage: str, model: str = "") -> Weights:
    """The weights of the finished expert of a task, as they are stored; arguments as of `load_published`."""
    found = locate("experts", pattern_of(experts, model, [task]), lineage, task)
    return read_weights(found if isinstance(found, Path) else _download(found))


def load_published(
    experts: str,
    task: str,
    layout: Layout,
    theta0: Tensor,
    *,
    lineage: str,
    model: str = "",
    statistics: Mapping[str, Tensor] | None = None,
    activation: str = "quick_gelu",
) -> tuple[dict[str, Tensor], Path]:
    """Load the finished expert of a task.

    Args:
        experts: where they lie, a folder, file or name on the hub with {task} in it; or "hugging-face".
        task: its name in the study.
        layout: of the pre-trained image encoder.
        theta0: its parameters [D].
        lineage: of all experts, see `lineages.lineage_of`.
        model: the pre-trained model's name, which "hugging-face" needs.
        statistics: its BatchNorm statistics.
        activation: what it computes with, see `activation_of`.

    Returns:
        A state dict with exactly the names of layout and statistics, of theta0's type, and the file it was read from.

    Raises:
        ValueError: if there is no such file, it cannot be read, or it is no expert of this model (layers missing or
            unknown, another shape, NaN or Inf, another activation, another start, or nothing learned); names the file.
    """
    weights = opened(experts, task, lineage, model)
    start = layout.views(theta0.cpu())
    try:
        if lineage != GIVEN and "class_embedding" in start and activation == "gelu":
            raise ValueError(
                f"experts of '{lineage}' compute with QuickGELU: set pretrained='openai', or a -quickgelu model"
            )
        weights = _ours(weights, {**start, **(statistics or {})}, activation)
        state = {name: weights[name].to(start[name].dtype if name in start else None) for name in weights}
        layout.check({name: state[name] for name in layout.names})
        change = check_start(state, start)
    except ValueError as error:
        message = str(error) if str(weights.place) in str(error) else f"{weights.place}: {error}"
        raise ValueError(message) from None
    _say_rounding(weights, start, task, change)
    return state | {name: own for name, own in (statistics or {}).items() if name not in state}, weights.place


def classifier_of(weights: Weights, layers: Collection[str], shape: tuple[int, int]) -> Tensor:
    """The classifier that an expert came with, a linear layer on the model's features.

    Args:
        weights: the expert's, as `opened` reads them.
        layers: names of the pre-trained model's.
        shape: number of classes, which it is taken to have in the task's order, and of features.

    Returns:
        [classes, features + 1], float32: the last column are the biases.

    Raises:
        ValueError: if there is none, it is no single linear layer, or of another shape.
    """
    own = weights.below(prefix_of(weights, layers)[0])
    names = sorted((name for name in own if HEAD.search(name) and name not in layers), reverse=True)
    kinds = [name.rpartition(".")[2] for name in names]
    if kinds not in (["weight", "bias"], ["weight"]) or len({name.rpartition(".")[0] for name in names}) > 1:
        raise ValueError(f"{weights.place} has no classifier of one linear layer (found: {', '.join(names) or 'none'})")
    parts = [own[name] for name in names]
    sizes = [list(part.shape) for part in parts]
    if [size + [1] * (4 - len(size)) for size in sizes] != [[*shape, 1, 1], [shape[0], 1, 1, 1]][: len(sizes)]:  # 1 x 1
        found = f"its classifier is {' and '.join(map(str, sizes))}"
        raise ValueError(f"{weights.place}: {found}, but the task has {shape[0]} classes, of {shape[1]} features")
    head = torch.cat([part.float().reshape(shape[0], -1) for part in [*parts, torch.zeros(shape[0])][:2]], dim=1)
    if not head.isfinite().all() or any(part.dtype not in FLOATING for part in parts):
        raise ValueError(f"{weights.place}: its classifier has NaN or Inf, or is stored as integers")
    return head


def _ours(weights: Weights, start: Mapping[str, Tensor], activation: str) -> Weights:
    """An expert under the names of the pre-trained model."""
    sources = {name: tower_sources(name) for name in start if name != "proj"}
    stacked = {part for parts in sources.values() for part in parts}
    if prefix_of(weights, stacked)[1] <= prefix_of(weights, start)[1]:
        return fit(weights, start)
    check_config(weights.place.parent / "config.json", start, activation)
    projection = next((name for name in weights if name.endswith(WHOLE["visual.proj"])), "")
    others = Weights(weights.place, {n: own for n, own in weights.like.items() if n != projection}, weights.read)
    made = fit(others, {name: start[name] for name in sources}, sources)
    own = {"proj": weights[projection].T if projection else start["proj"]} if "proj" in start else {}
    if own and own["proj"].shape != start["proj"].shape:
        raise ValueError(f"layer '{projection}' has shape {list(own['proj'].T.shape)} (another size of the model?)")
    like = {name: {**made.like, **own}[name] for name in start if name in made or name in own}
    return Weights(weights.place, like, lambda name: own[name] if name in own else made[name])


def _say_rounding(weights: Weights, start: Mapping[str, Tensor], task: str, change: float) -> None:
    """An expert in half precision beside a float32 model: how much of its task vector is rounding."""
    kinds = {name: weights.like[name].dtype for name in start}
    half = {name: kind for name, kind in kinds.items() if kind.itemsize < start[name].dtype.itemsize}
    if half:
        noise = sum((start[name].to(kind) - start[name]).double().square().sum().item() for name, kind in half.items())
        said = f"expert of '{task}' is stored as {' and '.join(sorted({str(kind)[6:] for kind in half.values()}))}"
        say(f"{said}: about {min(1, noise**0.5 / change):.0%} of its task vector is rounding")


def described(theta0: Tensor, vectors: Tensor, tasks: Sequence[str]) -> Iterator[str]:
    """A line for each expert: how far it is from the pre-trained model, and which other one is most like it.

    Args:
        theta0: pre-trained parameters [D].
        vectors: task vectors [T, D].
        tasks: their names.
    """
    grams = sum((part := columns.to(theta0)) @ part.T for columns in vectors.split(1 << 22, dim=1))
    lengths = grams.diag().clamp(min=0).sqrt()
    cosines = (grams / (lengths[:, None] * lengths).clamp(min=1e-30)).fill_diagonal_(-1)
    for task, length, row in zip(tasks, lengths.tolist(), cosines, strict=True):
        share = length / theta0.norm().item()
        line = f"expert of '{task}': |tau| is {share:.2%} of |theta0|"
        line += " (no fine-tune of this model?)" * (share > FAR)
        if len(tasks) > 1:
            most, other = row.max(0)
            line += f", largest cosine {most.item():.2f} with '{tasks[int(other)]}'"
            line += ": are they one expert?" * (most.item() > SAME)
        yield line


def _download(hub: str) -> Path:
    """Fetch an expert's files from the hub, or find them in its cache."""
    from huggingface_hub import snapshot_download  # here, not above: importing it takes long

    try:
        for name in DOWNLOADED:
            path = Path(snapshot_download(hub, allow_patterns=["config.json", name])) / name
            if path.is_file():
                return path
    except Exception as error:  # the hub's client and its HTTP library share no base class
        raise ValueError(
            f"cannot fetch '{hub}' from the Hugging Face hub ({type(error).__name__}); check the network, or set "
            "experts to a folder with {task} in it that holds config.json and model.safetensors"
        ) from error
    raise ValueError(f"'{hub}' on the Hugging Face hub holds none of {', '.join(DOWNLOADED)}")


def check_config(path: Path, start: Mapping[str, Tensor], activation: str = "quick_gelu") -> None:
    """Compare what the weights do not show with the pre-trained model: the activation and the number of heads.

    Raises:
        ValueError: if one differs. A file without a config beside it is taken as it is.
    """
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text("utf-8"))
        config = config.get("vision_config", config)
        found = {what: config.get(what) for what in ("hidden_act", "num_attention_heads")}
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is no configuration of a model; download it again") from None
    heads = len(start["class_embedding"]) // 64 if "class_embedding" in start else None
    for what, expected in (("hidden_act", activation), ("num_attention_heads", heads)):
        if expected and found[what] is not None and found[what] != expected:
            raise ValueError(
                f"{path}: {what} is {found[what]}, the pre-trained model has {expected}: take experts of that"
            )


def check_start(state: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """An expert must be near the pre-trained model, but not that itself; returns the length of its task vector.

    Raises:
        ValueError: if it is otherwise: its difference is no task vector.
    """
    away = sum((state[name].double() - start[name].double()).square().sum().item() for name in start)
    length = sum(tensor.double().square().sum().item() for tensor in start.values())
    if not away:
        raise ValueError("it is the pre-trained model itself: was the fine-tuned one saved?")
    if away > FAR**2 * length:
        raise ValueError(
            f"it differs from the pre-trained model by {(away / length) ** 0.5:.0%} of that one's length: it was "
            "fine-tuned from other weights; set model and pretrained to those"
        )
    return away**0.5


def activation_of(encoder: nn.Module) -> str:
    """The activation of a CLIP, as transformers calls it."""
    return "gelu" if any(isinstance(part, nn.GELU) for part in encoder.modules()) else "quick_gelu"

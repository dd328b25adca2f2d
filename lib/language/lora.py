"""LoRA adapters through peft, and the two ways to make a task vector of one.

An adapter of a layer with weights W adds B A times alpha / rank to them (Hu et al., https://arxiv.org/abs/2106.09685).
All experts start from the same A, drawn from a named seed, and from B = 0. What is merged is either

- the adapted weights (the authors' scripts merge each adapter into W and subtract W): tau = alpha / rank * B A, or
- the adapters' own parameters: tau = (A - A_0, B). Cheaper to store and to mask, but merging A and B apart is another
  thing than merging their products: (sum B)(sum A) holds every B_s A_t, also of different tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from lib.runtime.rng import seed_of

# Ways to initialise an adapter that change the frozen weights beneath it, too.
CHANGING_THE_BASE = ("pissa", "olora", "loftq", "corda")
SAME_START = 0.1  # least cosine of two A that may have been trained from one: independent ones have about 0.01
PREFIX, NAME = "base_model.model.", "default"  # what peft puts around the names of layers, and the adapter's name


def sharing_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A copy of a model that shares its parameters but for some: a large frozen model is in memory once.

    Args:
        model: what is copied.
        own: names of the parameters that the copy has for itself.
    """
    shared = {id(parameter): parameter for name, parameter in model.named_parameters() if name not in own}
    return deepcopy(model, shared)  # deepcopy takes what it finds there for already copied


def attach(
    model: nn.Module, *, rank: int, alpha: int, targets: Sequence[str], dropout: float = 0.0, seed: int = 0
) -> PeftModel:
    """A copy of a model with a fresh adapter on some of its linear layers; only the adapter can be trained.

    Args:
        model: the pre-trained model; left unchanged, but its parameters are frozen and shared with the copy.
        rank: r.
        alpha: B A is scaled by alpha / r.
        targets: the layers, by the last part of their name.
        dropout: in front of A while training.
        seed: names the initial A, the same for every task.

    Raises:
        ValueError: if no layer has one of these names.
    """
    present = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if missing := [target for target in targets if target not in present]:
        raise ValueError(f"no linear layer is called '{missing[0]}'; there are {', '.join(sorted(present))}")
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's way to ask
        torch.manual_seed(seed_of("lora", seed))
        return get_peft_model(sharing_copy(model), config)


def adapted(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of every adapted layer: name of its weights in the model without adapters -> A [r, in], B [out, r].

    Args:
        adapter: peft's names -> tensors, as a model or a file has them.

    Raises:
        ValueError: if a factor is missing, or a name is not that of a LoRA factor.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.items():
        layer, found, factor = name.removeprefix(PREFIX).removesuffix(".weight").partition(".lora_")
        factor = factor.removesuffix(f".{NAME}")
        if not found or factor not in ("A", "B"):
            raise ValueError(f"'{name}' is no LoRA factor: expected names such as {PREFIX}<layer>.lora_A.weight")
        factors.setdefault(f"{layer}.weight", {})[factor] = tensor
    if incomplete := [layer for layer, pair in factors.items() if len(pair) < 2]:
        raise ValueError(f"the adapter has only one of A and B for '{incomplete[0]}'; save both")
    return {layer: (pair["A"], pair["B"]) for layer, pair in factors.items()}


def weight_change(adapter: Mapping[str, Tensor], *, rank: int, alpha: int) -> dict[str, Tensor]:
    """What an adapter adds to the weights: name of the weights -> alpha / rank * B A [out, in]."""
    return {layer: alpha / rank * (b.float() @ a.float()) for layer, (a, b) in adapted(adapter).items()}


def save_adapter(model: PeftModel, adapter: Mapping[str, Tensor], folder: Path) -> Path:
    """Write an adapter as peft writes it: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        model: the model that it belongs to.
        adapter: the model's own parameter names -> tensors.
        folder: where to; made when needed.
    """
    model.save_pretrained(folder, state_dict=dict(adapter))
    return folder


def load_adapter(source: str, model: PeftModel) -> dict[str, Tensor]:
    """Read an adapter from a folder or the hub, under the parameter names of a model that it fits.

    Args:
        source: a folder that `save_adapter` or peft wrote, or a name on the hub.
        model: a model with a fresh adapter of the same rank, alpha and layers.

    Returns:
        Name -> factor. Where `alpha_pattern` gives a layer an alpha of its own, B is multiplied by what that changes.

    Raises:
        ValueError: if rank, alpha or layers differ, naming the first difference and what to set.
    """
    config, wanted = LoraConfig.from_pretrained(source), model.peft_config[NAME]
    for what, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha"), ("target_modules", "lora_targets")):
        found, expected = getattr(config, what), getattr(wanted, what)
        if found != expected:
            shown = " ".join(sorted(found)) if isinstance(found, (set, list)) else found
            raise ValueError(f"adapter {source} has {what} {found}, not {expected}; set {name}={shown!r}")
    begun = str(config.init_lora_weights).lower()
    if config.use_rslora or config.use_dora or config.bias != "none" or begun.startswith(CHANGING_THE_BASE):
        odd = "rslora, dora, biases, or an initialisation that changes the weights beneath it"
        raise ValueError(f"adapter {source} is no plain LoRA adapter ({odd}): merge it with peft")
    tensors = load_peft_weights(source, device="cpu")
    named = {
        name.replace(".weight", f".{NAME}.weight"): tensor.float() * _own_scale(config, name)
        for name, tensor in tensors.items()
    }
    own = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if different := sorted(own.keys() ^ named.keys()):
        raise ValueError(f"adapter {source} and the model differ in '{different[0]}'; was it made for another model?")
    if wrong := [name for name, tensor in named.items() if tensor.shape != own[name].shape]:
        shapes = f"{list(named[wrong[0]].shape)}, not {list(own[wrong[0]].shape)}"
        raise ValueError(f"adapter {source}: '{wrong[0]}' has shape {shapes}; was it made for another model?")
    return {name: named[name] for name in own}


def _own_scale(config: LoraConfig, name: str) -> float:
    """What a factor must be multiplied by, so that the adapter's one alpha holds for its layer."""
    layer, _, factor = name.removeprefix(PREFIX).partition(".lora_")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, layer), config.lora_alpha)
    return alpha / config.lora_alpha if factor.startswith("B") else 1.0


def check_same_start(adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], source: str) -> None:
    """The parameters of an adapter can only be compared with the fresh one it was trained from.

    Args:
        adapter: name -> factor.
        start: the fresh adapter, under the same names.
        source: where the adapter is from.

    Raises:
        ValueError: if it began from another random A: then A - A_0 says nothing of what was learned.
    """
    own, first = (
        torch.cat([factors[name].flatten() for name in start if ".lora_A." in name]) for factors in (adapter, start)
    )
    cosine = torch.nn.functional.cosine_similarity(own.double(), first.double(), dim=0).item()
    if cosine < SAME_START:
        raise ValueError(
            f"adapter {source} did not begin from this study's random A (cosine {cosine:.2f}), so its parameters have "
            "no task vector here: set task_vector='weights', or the seed that it was trained with"
        )

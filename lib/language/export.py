"""A merged change of low rank, as one adapter that peft reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from lib.language.lora import PREFIX

ROUNDING = 2**-21  # what float32 leaves uncertain of weights after a few sums of them, relative


def low_rank(start: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The change of every layer as factors A [r, in] and B [out, r], of the least rank that is as exact as rounding.

    Args:
        start: pre-trained weights by name.
        merged: the same layers, merged.

    Returns:
        Name -> (A, B), float32; empty if a changed layer is no matrix, or needs more than half of its rank.
    """
    factors = {}
    for name, weights in merged.items():
        change = weights.double().cpu() - start[name].double().cpu()
        if not change.any():
            continue
        if change.dim() != 2:
            return {}
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        rest = values.square().flip(0).cumsum(0).flip(0).sqrt()  # what is left out by keeping the values before it
        rank = max(1, int((rest > ROUNDING * weights.double().norm()).sum()))
        if 2 * rank > min(change.shape):
            return {}
        root = values[:rank].sqrt()
        factors[name] = (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float()
    return factors


def write_adapter(factors: Mapping[str, tuple[Tensor, Tensor]], base: str, folder: Path) -> None:
    """Write factors as one adapter of peft, with a rank for each layer: `PeftModel.from_pretrained(base, folder)`.

    Args:
        factors: name of the weights -> (A, B), see `low_rank`.
        base: name or folder of the pre-trained model.
        folder: where to.
    """
    layers = {name.removesuffix(".weight"): len(a) for name, (a, _) in factors.items()}
    rank = max(layers.values())
    ranks = {layer: own for layer, own in layers.items() if own != rank}
    LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=ranks, target_modules=list(layers),
        base_model_name_or_path=base, inference_mode=True,
    ).save_pretrained(folder)  # fmt: skip
    tensors = {}
    for name, (a, b) in factors.items():
        layer = PREFIX + name.removesuffix(".weight")
        tensors |= {f"{layer}.lora_A.weight": a.contiguous(), f"{layer}.lora_B.weight": b.contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

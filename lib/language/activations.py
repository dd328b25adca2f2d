"""Statistics of text experts that data-dependent fusion needs: diagonal Fisher information and Gram matrices."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from lib.fusion.activations import Call, read_grams
from lib.language.generation import first_token_logits
from lib.language.tokens import PADDING, model_inputs
from lib.runtime.device import Runtime
from lib.runtime.rng import generator
from lib.vectors.flat_model import FlatModel


def diagonal_fisher(model: FlatModel, theta: Tensor, prompts: Tensor, *, signs: int = 1, seed: int = 0) -> Tensor:
    """Diagonal Fisher information of the first decoded token's distribution, without labels.

    Mean over prompts of sum_c p_c g_c^2 (Matena and Raffel, https://arxiv.org/abs/2111.09832, section 3), estimated
    with random signs s_c as in `lib.vision.diagonal_fisher`: E (sum_c s_c sqrt(p_c) g_c)^2 is that sum, so the
    number of backward passes does not grow with the vocabulary.

    Args:
        model: a T5 bound to flat vectors; it is left at theta.
        theta: where to take the gradients [D].
        prompts: int32 [N, L], padded with 0.
        signs: backward passes per prompt.
        seed: names the random signs.

    Returns:
        [D], in theta's dtype; the padding is zero.
    """
    module, fisher, draw = model.move_to(theta).eval(), torch.zeros_like(theta), generator("signs", seed)
    for row in prompts:
        for _ in range(signs):
            log_p = first_token_logits(module, model_inputs(row[None], str(theta.device)), Runtime()).log_softmax(-1)[0]
            sign = (torch.randint(0, 2, log_p.shape, generator=draw) * 2 - 1).to(log_p)
            model.gradient.zero_()
            (sign * log_p.detach().div(2).exp() * log_p).sum().backward()
            fisher += model.gradient.square()
    return fisher / (len(prompts) * signs)


def prompt_calls(prompts: Tensor, device: str, batch: int = 64) -> Iterator[Call]:
    """Forward passes over prompts of equal lengths, so that no padding is read; only the first token is decoded."""
    lengths = (prompts != PADDING).sum(1)
    for length in lengths.unique():
        for rows in prompts[lengths == length].split(batch):
            inputs = model_inputs(rows, device)
            yield (), inputs | {"decoder_input_ids": torch.zeros_like(inputs["input_ids"][:, :1])}


def prompt_grams(
    model: FlatModel, theta: Tensor, prompts: Tensor, runtime: Runtime, *, layers: Collection[str] = ()
) -> dict[str, Tensor]:
    """Gram matrices of what layers read of some prompts: see `lib.fusion.activations.read_grams`; uses no labels.

    Args:
        model: a T5 bound to flat vectors.
        theta: parameters to run it with [D].
        prompts: int32 [N, L], padded with 0.
        runtime: device and precision.
        layers: parameter names to read; by default all that can be read.
    """
    return read_grams(model, theta, prompt_calls(prompts, runtime.device), runtime, layers=layers)

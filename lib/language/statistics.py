"""Statistics of text experts that data-dependent fusion needs: diagonal Fisher information and Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.language.objective import first_token_logits, model_inputs
from lib.language.tokens import PADDING
from lib.rng import batch_indices, generator
from lib.statistics import VERSION, Call, read_grams
from lib.store import digest

if TYPE_CHECKING:
    from lib.language.workspace import LanguageWorkspace


def diagonal_fisher(model: FlatModel, theta: Tensor, prompts: Tensor, *, signs: int = 1, seed: int = 0) -> Tensor:
    """Diagonal Fisher information of the first decoded token's distribution, without labels.

    Mean over prompts of sum_c p_c g_c^2 (Matena and Raffel, https://arxiv.org/abs/2111.09832, section 3), estimated
    with random signs s_c as in `lib.statistics.diagonal_fisher`: E (sum_c s_c sqrt(p_c) g_c)^2 is that sum, so the
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


def fisher(workspace: LanguageWorkspace, *, texts: int, signs: int) -> Tensor:
    """Diagonal Fisher information of every expert on its own training prompts: [T, D]."""
    seed = workspace.study.seed

    def compute(theta: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        return {"fisher": diagonal_fisher(workspace.model, theta, prompts, signs=signs, seed=seed)}

    found = _per_expert(workspace, "fisher", texts, compute, {"signs": signs, "seed": seed})
    return torch.stack([tensors["fisher"] for tensors in found]).to(workspace.theta0)


def grams(workspace: LanguageWorkspace, *, texts: int) -> dict[str, Tensor]:
    """Gram matrices of what every merged layer reads under every expert, layer name -> [T, in, in]; uses no labels."""
    runtime, layers = workspace.study.runtime, workspace.layout.names

    def compute(theta: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        calls = prompt_calls(prompts, runtime.device)
        return read_grams(workspace.model, theta, calls, runtime, layers=layers)

    found = _per_expert(workspace, "grams", texts, compute, {})
    return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}


def _per_expert(
    workspace: LanguageWorkspace,
    kind: str,
    texts: int,
    compute: Callable[[Tensor, Tensor], dict[str, Tensor]],
    options: dict[str, object],
) -> list[dict[str, Tensor]]:
    """`compute(theta_t, prompts)` of every expert, from the store when it is there."""
    found = []
    for task, task_vector in zip(workspace.tasks, workspace.task_vectors, strict=True):
        prompts = workspace.inputs("train", task)
        rows = batch_indices(len(prompts), texts, 0, "statistics", task, workspace.study.seed)
        given = workspace.theta0 + task_vector, prompts[rows]
        precision = workspace.study.runtime.precision
        determines = {"version": VERSION, "inputs": digest(*given), "precision": precision, **options}
        made = workspace.study.store.get(kind, determines, lambda _, given=given: (compute(*given), None))
        found.append(made.tensors)
    return found

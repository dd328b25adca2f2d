"""What fine-tuning minimises on texts, and what scores it on the way.

Apart from what adaptation does, so that an edit there does not make other experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.language.generation import answer_length, generate
from lib.language.registry import TextTask
from lib.language.scoring import score
from lib.language.tokens import Tokenizer, Tokens, model_inputs
from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices, seed_of


def token_loss(
    train: Tokens, runtime: Runtime, *, task: str, batch: int, seed: int
) -> Callable[[nn.Module, int], Tensor]:
    """Cross-entropy of the targets' tokens, on the batch of a step.

    Args:
        train: training prompts and targets.
        runtime: device and precision.
        task: names the order of the batches and the dropout.
        batch: examples per step.
        seed: likewise.
    """

    def loss_at(module: nn.Module, step: int) -> Tensor:
        rows = batch_indices(len(train.inputs), batch, step, "fine-tuning", task, seed)
        inputs = model_inputs(train.inputs[rows], runtime.device)
        with torch.random.fork_rng(), runtime.autocast():
            torch.manual_seed(seed_of("dropout", task, seed, step))  # so that a continued run drops the same
            return module(**inputs, labels=train.targets[rows].long().to(runtime.device)).loss.float()

    return loss_at


def answer_accuracy(
    task: TextTask, tokenizer: Tokenizer, prompts: Tensor, targets: Sequence[str], runtime: Runtime
) -> Callable[[nn.Module], float]:
    """What scores the answers of a model on the way, for its learning curve.

    Args:
        task: says how answers are scored.
        tokenizer: makes texts of numbers.
        prompts: int32 [N, L].
        targets: N answers that would be right.
        runtime: device and precision.
    """

    def accuracy(module: nn.Module) -> float:
        answers = generate(module, tokenizer, prompts, runtime, answer_length(task, tokenizer))
        return score(task, answers, targets)["accuracy"]

    return accuracy

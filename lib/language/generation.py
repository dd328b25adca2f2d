"""Answers of a sequence-to-sequence model, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lib.language.registry import TextTask
from lib.language.tokens import IGNORED, PADDING, Tokenizer, model_inputs
from lib.runtime.device import Runtime

AT_ONCE = 128  # prompts that are answered together


def in_batches(rows: Tensor, size: int, read: Callable[[Tensor], list]) -> list:
    """`read(numbers of rows)` batch by batch, similar lengths together; results in the order of the rows.

    Args:
        rows: int32 [N, L], padded with 0.
        size: rows per batch.
        read: takes int64 [B], returns B results.
    """
    order = (rows != PADDING).sum(1).argsort(stable=True)
    results = [result for batch in order.split(size) for result in read(batch)]
    return [results[place] for place in order.argsort().tolist()]


def first_token_logits(model: nn.Module, inputs: Mapping[str, Tensor], runtime: Runtime) -> Tensor:
    """Logits of the first token of the answer, over the whole vocabulary: [N, V]."""
    start = torch.zeros_like(inputs["input_ids"][:, :1])  # T5 starts to decode with the padding token
    with runtime.autocast():
        return model(**inputs, decoder_input_ids=start).logits[:, 0].float()


@torch.no_grad()
def generate(
    module: nn.Module, tokenizer: Tokenizer, prompts: Tensor, runtime: Runtime, length: int, batch: int = AT_ONCE
) -> list[str]:
    """The model's answers by greedy decoding.

    Args:
        module: T5, with or without an adapter.
        tokenizer: makes texts of numbers.
        prompts: int32 [N, L].
        runtime: device and precision.
        length: tokens of an answer at most; longer answers are cut.
        batch: prompts at a time.
    """

    def answer(rows: Tensor) -> list[str]:
        with runtime.autocast():
            found = module.generate(
                **model_inputs(prompts[rows], runtime.device), max_new_tokens=length, do_sample=False, num_beams=1
            )
        return tokenizer.inner.batch_decode(found, skip_special_tokens=True)

    return in_batches(prompts, batch, answer)


@torch.no_grad()
def respond(
    module: nn.Module, tokenizer: Tokenizer, prompts: Tensor, targets: Tensor, runtime: Runtime, length: int
) -> tuple[list[str], float]:
    """The answers as in `generate`, and how far the model was from the targets; prompts are read once for both.

    Args:
        module: T5, with or without an adapter.
        tokenizer: makes texts of numbers.
        prompts: int32 [N, L].
        targets: int32 [N, M], padded with -100.
        runtime: device and precision.
        length: tokens of an answer at most; longer answers are cut.

    Returns:
        N answers, and the mean cross-entropy (nats) of the targets' tokens: of each target the mean over its own,
        then over targets.
    """

    def answer(rows: Tensor) -> list[tuple[str, float]]:
        inputs, labels = model_inputs(prompts[rows], runtime.device), targets[rows].long().to(runtime.device)
        with runtime.autocast():
            read = {"encoder_outputs": module.get_encoder()(**inputs), "attention_mask": inputs["attention_mask"]}
            found = module.generate(**read, max_new_tokens=length, do_sample=False, num_beams=1)
            logits = module(**read, labels=labels).logits.float()
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        losses = each.sum(1) / (labels != IGNORED).sum(1)
        return list(zip(tokenizer.inner.batch_decode(found, skip_special_tokens=True), losses.tolist(), strict=True))

    answers, losses = zip(*in_batches(prompts, AT_ONCE, answer), strict=True)
    return list(answers), sum(losses) / len(losses)


def answer_length(task: TextTask, tokenizer: Tokenizer) -> int:
    """Tokens that the longest answer to a task takes, its end included."""
    targets = tokenizer.inner(list(task.words) or ["0.0", "5.0"]).input_ids
    return max(map(len, targets))

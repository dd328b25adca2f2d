"""What adaptation minimises on texts, and what the experts answer to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.adaptation.objectives import PredictionObjective
from lib.language.generation import AT_ONCE, first_token_logits, in_batches
from lib.language.tokens import IGNORED, PADDING, model_inputs
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel

PADDED = 0.5


class TokenObjective(PredictionObjective[dict[str, Tensor]]):
    """Entropy of the first decoded token (paper, section 4.1), by default; see `PredictionObjective`.

    All objectives look at the first token, over the whole vocabulary. With `answers` they look at every token of the
    expert's own answer, which the decoder is given as it goes on (teacher forcing): so the queries of the decoder, of
    which the first token tells nothing, have a gradient. A task's logits then have a row per token.

    On a CPU, where both padding and every call cost time, tasks with prompts of like lengths go through it together.

    Args:
        model: a T5 bound to flat vectors.
        prompts: unlabelled token numbers, one int32 [N_t, L_t] per task, padded with 0.
        classes: how many answers each task knows: the size of the mixture that information maximisation evens out.
        runtime: device and precision.
        answers: what each task's expert answers, int32 [N_t, A], -100 after the end (see `lib.language.generation`);
            `experts` are then its logits [N_t, A, V].
        options: `batch`, `seed`, `objective`, `rows_at_once` and so on of `PredictionObjective`.

    Raises:
        ValueError: if a task has no prompts, or prompts are not int32 [N, L].
    """

    def __init__(
        self,
        model: FlatModel,
        prompts: Sequence[Tensor],
        classes: Sequence[int],
        runtime: Runtime,
        *,
        answers: Sequence[Tensor] | None = None,
        **options: object,
    ) -> None:
        for number, rows in enumerate(prompts):
            if rows.dtype != torch.int32 or rows.dim() != 2 or len(rows) == 0:
                raise ValueError(f"prompts of task {number} are {rows.dtype} {list(rows.shape)}, expected int32 [N, L]")
        self.prompts, self.answers = list(prompts), None if answers is None else list(answers)
        super().__init__(model, runtime, [len(rows) for rows in prompts], classes, **options)

    def groups(self, tasks: Sequence[int]) -> list[list[int]]:
        """By length on a CPU, so that no prompt is padded by more than `PADDED` of its own; else as they come."""
        if self.rows_at_once or self.runtime.device != "cpu":
            return super().groups(tasks)
        lengths, found = [rows.shape[1] for rows in self.prompts], []
        for task in sorted(tasks, key=lengths.__getitem__, reverse=True):
            if found and lengths[found[-1][0]] <= (1 + PADDED) * lengths[task]:
                found[-1].append(task)
            else:
                found.append([task])
        return found

    def inputs(self, rows: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Token numbers and mask of the rows of all tasks; with `answers` those of the decoder, too."""
        inputs = model_inputs(_padded(self.prompts, rows, PADDING), self.runtime.device)
        if self.answers is not None:
            inputs["labels"] = _padded(self.answers, rows, IGNORED).long().to(self.runtime.device)
        return inputs

    def logits(self, module: nn.Module, inputs: dict[str, Tensor], rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """One [B_t, V] per task; with `answers` one [tokens of B_t answers, V]."""
        sizes = [len(own) for own in rows.values()]
        if self.answers is None:
            return first_token_logits(module, inputs, self.runtime).split(sizes)
        with self.runtime.autocast():
            logits = module(**inputs).logits.float()
        parts = zip(logits.split(sizes), inputs["labels"].split(sizes), strict=True)
        return [own[labels != IGNORED] for own, labels in parts]

    def expert_logits(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What the experts say of some rows, in the order of `logits`."""
        found = super().expert_logits(rows)
        if self.answers is None:
            return found
        return {task: own[(self.answers[task][rows[task]] != IGNORED).to(own.device)] for task, own in found.items()}


def _padded(sets: Sequence[Tensor], rows: Mapping[int, Tensor], filling: int) -> Tensor:
    """Some rows of some sets [N_t, L_t] under each other, as wide as the widest: [sum of B_t, L]."""
    width = max(sets[task].shape[1] for task in rows)
    parts = (sets[task][own] for task, own in rows.items())
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=filling) for part in parts])


@torch.no_grad()
def expert_answers(
    model: FlatModel, theta: Tensor, prompts: Tensor, runtime: Runtime, length: int = 1
) -> tuple[Tensor, Tensor]:
    """The answers of the model at a point of R^D by greedy decoding, with what it says at each token.

    Args:
        model: a T5 bound to flat vectors; it is moved.
        theta: an expert's parameters, for example [D].
        prompts: int32 [N, L].
        runtime: device and precision.
        length: tokens of an answer at most; 1 is the first token alone.

    Returns:
        Answers, int32 [N, length], -100 after the end; logits over the vocabulary [N, length, V]. Both on the CPU.
    """
    module = model.move_to(theta).eval()

    def answer(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        inputs = model_inputs(prompts[rows], runtime.device)
        with runtime.autocast():
            found = module.generate(**inputs, max_new_tokens=length, do_sample=False, num_beams=1)[:, 1:]
            found = nn.functional.pad(found, (0, length - found.shape[1]), value=PADDING)
            labels = found.masked_fill(found == PADDING, IGNORED)
            logits = module(**inputs, labels=labels).logits.float()
        return list(zip(labels.int().cpu(), logits.cpu(), strict=True))

    answers, logits = zip(*in_batches(prompts, AT_ONCE, answer), strict=True)
    return torch.stack(answers), torch.stack(logits)

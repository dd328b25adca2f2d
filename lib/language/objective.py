"""What is minimised on texts: cross-entropy while an expert is trained; of the first token, while adapting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.adaptation.objectives import PredictionObjective
from lib.language.tokens import IGNORED, PADDING, Tokens
from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices, seed_of
from lib.vectors.flat_model import FlatModel


def model_inputs(rows: Tensor, device: str) -> dict[str, Tensor]:
    """Keyword arguments for a T5: token numbers and their mask, without columns that hold padding alone.

    Args:
        rows: int32 [N, L], padded with 0.
        device: where to.
    """
    mask = rows != PADDING
    longest = int(mask.sum(1).max())
    return {
        "input_ids": rows[:, :longest].long().to(device),
        "attention_mask": mask[:, :longest].long().to(device),
    }


def first_token_logits(model: nn.Module, inputs: Mapping[str, Tensor], runtime: Runtime) -> Tensor:
    """Logits of the first token of the answer, over the whole vocabulary: [N, V]."""
    start = torch.zeros_like(inputs["input_ids"][:, :1])  # T5 starts to decode with the padding token
    with runtime.autocast():
        return model(**inputs, decoder_input_ids=start).logits[:, 0].float()


class TokenObjective(PredictionObjective[dict[str, Tensor]]):
    """Entropy of the first decoded token (paper, section 4.1), by default; see `PredictionObjective`.

    All objectives look at the first token, over the whole vocabulary. With `answers` they look at every token of the
    expert's own answer, which the decoder is given as it goes on (teacher forcing): so the queries of the decoder, of
    which the first token tells nothing, have a gradient. A task's logits then have a row per token.

    On a CPU, where padding costs time, each task's prompts go through the model by themselves.

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
        if runtime.device == "cpu":
            options["rows_at_once"] = options.get("rows_at_once") or 1
        super().__init__(model, runtime, [len(rows) for rows in prompts], classes, **options)
        self.prompts, self.answers = list(prompts), None if answers is None else list(answers)

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

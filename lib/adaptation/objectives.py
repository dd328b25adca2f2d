r"""What test-time adaptation minimises on unlabelled inputs: entropy, information maximisation, or what experts say.

An objective maps a point of R^D to a loss and its gradient, `objective(theta) -> (loss, G)`. That is all an adaptation
loop knows of a model; another model family plugs in by another objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.adaptation.losses import entropy, entropy_of_mean, expert_kl, expert_labels, filtered_labels
from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices
from lib.vectors.flat_model import FlatModel

Inputs = TypeVar("Inputs")
FROM_EXPERTS = ("expert-kl", "expert-labels", "filtered-labels")  # these look at the experts' predictions
OBJECTIVES = ("entropy", "information-maximisation", *FROM_EXPERTS)


class PredictionObjective(ABC, Generic[Inputs]):
    r"""A loss of the predictions per task, summed over tasks.

    - "entropy" (AdaMerging, https://arxiv.org/abs/2310.02575, Eq. 4; the paper's): mean_i H(p_i). It can be lowered by
      predicting one class for everything.
    - "information-maximisation" (Krause et al. 2010; SHOT, https://arxiv.org/abs/2002.08546, Eq. 3-4):
      mean_i H(p_i) - diversity * H(mean_i p_i). Sure about each example, undecided about the mixture: it assumes
      classes of roughly equal frequency.
    - "expert-kl": mean_i KL(expert's p_i || p_i). Whoever merges experts has them, and without labels their
      predictions are teachers: see `lib.adaptation.losses.expert_kl`.
    - "expert-labels": cross-entropy on the experts' most probable classes, see `expert_labels` there.
    - "filtered-labels" (SyMerge, https://arxiv.org/abs/2412.19098): the same without labels that contradict a surer
      merged model, see `filtered_labels` there.

    All tasks share theta, so the rows of all tasks go through the model as ONE batch: one forward and one backward
    pass, whatever T. There is no argument for labels.

    Where a task has more classes C than its batch has rows B, the mean over the batch cannot be even. The mean
    prediction is then a running average over about C rows: B / C of this batch, the rest as it was before. Its value
    says which classes are too frequent, but only this batch can move: the gradient is that of the batch's own mean, in
    full. (Through the running average it would be B / C of that, and hardly any with many classes.)

    A task's loss depends on no other task's rows, so where memory or cache is short some tasks at a time go through the
    model, forward and backward, and their gradients add up to the same G.

    What a row is and how the model reads it is said by a subclass.

    Args:
        model: the model bound to flat vectors.
        runtime: device and precision.
        counts: how many unlabelled rows each task has.
        classes: how many classes each task has.
        batch: rows per task and step.
        seed: names the order of the batches.
        objective: one of `OBJECTIVES`.
        diversity: weight of the mean prediction's entropy in information maximisation.
        experts: each task's expert's logits on all its rows, [N_t, C_t] each; for the objectives `FROM_EXPERTS`.
        expert_temperature: softens both predictions in "expert-kl".
        confidence: in "expert-labels", the expert's least probability for a row to count.
        rows_at_once: at most so many rows per pass through the model, but at least one task's; 0 for all.
        frozen_bytes: what the frozen parts of the model take on the device, for the memory plan.

    Attributes:
        mine: which tasks go through the model in this process; the others are for other ones (see `together`).
        shares: of the last evaluation, per task of `mine`: mean entropy, and entropy of the mean prediction, as a share
            of their largest possible value.
        running: the running mean prediction of each task [C]; None before its first batch.

    Raises:
        ValueError: if the objective is unknown, the experts' predictions are missing or do not fit, the temperature is
            not positive, or the confidence is no share.
    """

    NOT_IN_KEYS = ("mine", "shares", "running", "rows_at_once", "frozen_bytes")

    def __init__(
        self,
        model: FlatModel,
        runtime: Runtime,
        counts: Sequence[int],
        classes: Sequence[int],
        *,
        batch: int,
        seed: int,
        objective: str = "entropy",
        diversity: float = 1.0,
        experts: Sequence[Tensor] | None = None,
        expert_temperature: float = 1.0,
        confidence: float = 0.0,
        rows_at_once: int = 0,
        frozen_bytes: int = 0,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective '{objective}'; known: {', '.join(OBJECTIVES)}")
        self.model, self.runtime = model, runtime
        self.counts, self.classes = list(counts), list(classes)
        self.batch, self.seed, self.rows_at_once, self.frozen_bytes = batch, seed, rows_at_once, frozen_bytes
        self.name, self.diversity = objective, diversity if objective == "information-maximisation" else 0.0
        self.experts = list(experts) if objective in FROM_EXPERTS and experts is not None else None
        self.expert_temperature, self.confidence = expert_temperature, confidence
        self._check_experts()
        self.mine: Collection[int] = range(len(self.counts))
        self.reset()

    def _check_experts(self) -> None:
        if not (self.expert_temperature > 0 and 0 <= self.confidence <= 1):
            given = f"expert_temperature={self.expert_temperature}, confidence={self.confidence}"
            raise ValueError(f"{given}: expected a positive temperature, and a confidence from 0 to 1")
        if self.name in FROM_EXPERTS:
            found = None if self.experts is None else [len(own) for own in self.experts]
            if found != self.counts:
                wanted = f"their logits on {self.counts} rows, one tensor per task"
                raise ValueError(f"objective '{self.name}' needs the experts' predictions: {wanted}, not {found}")

    @abstractmethod
    def inputs(self, rows: Mapping[int, Tensor]) -> Inputs:
        """What the model reads for some rows of some tasks, task -> int64 [B_t], on the device."""

    @abstractmethod
    def logits(self, module: nn.Module, inputs: Inputs, rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """The predictions on those rows: one [B_t, C_t] per task."""

    def expert_logits(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What the experts say of some rows of some tasks, task -> [B_t, C_t] on the device; {} if nobody asks."""
        if self.experts is None:
            return {}
        return {task: self.experts[task][own].to(self.runtime.device) for task, own in rows.items()}

    def rows(self, step: int) -> dict[int, Tensor]:
        """Which rows of each task a step sees: task -> int64 [B_t]."""
        return {
            task: batch_indices(count, self.batch, step, "adaptation", task, self.seed)
            for task, count in enumerate(self.counts)
        }

    def tasks_together(self) -> int:
        """How many tasks go through the model at a time."""
        most = max(min(self.batch, count) for count in self.counts)
        return min(len(self.counts), max(1, self.rows_at_once // most)) if self.rows_at_once else len(self.counts)

    def rows_together(self) -> int:
        """How many rows go through the model at a time, at most."""
        groups = self.groups(range(len(self.counts)))
        return max(sum(min(self.batch, self.counts[task]) for task in group) for group in groups)

    def groups(self, tasks: Sequence[int]) -> list[list[int]]:
        """Tasks divided into those whose rows go through the model together."""
        at_once = self.tasks_together()
        return [list(tasks[first : first + at_once]) for first in range(0, len(tasks), at_once)]

    def __call__(self, step: int) -> BatchObjective:
        """The objective on the batch of a step."""
        rows = {task: own for task, own in self.rows(step).items() if task in self.mine}
        return BatchObjective(self, rows)

    def report(self, shares: Mapping[int, Tensor] | None = None) -> dict[str, Tensor]:
        """Of the last evaluation: `entropy`, mean over tasks, and `marginal_entropy`, the lowest of a mean prediction.

        Args:
            shares: those of all tasks, where other processes know some of them; by default this one's.
        """
        shares = self.shares if shares is None else shares
        if not shares:
            return {}
        single, marginal = torch.stack([shares[task] for task in sorted(shares)]).T
        return {"entropy": single.mean(), "marginal_entropy": marginal.min()}

    def loss(
        self, task: int, logits: Tensor, before: Tensor | None, expert: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A task's loss, its mean prediction [C], and what `report` says of it [2].

        Args:
            task: its number.
            logits: of its rows [B, C].
            before: its running mean prediction before this batch [C], or None at the start.
            expert: logits of its expert on the same rows [B, C], where the objective asks for them.
        """
        distance = None if expert is None else self._distance(logits, expert)
        if distance is not None:
            logits = logits.detach()  # the rest is for the report
        single, mean = entropy(logits).mean(), logits.softmax(-1).mean(0)
        new = min(1.0, len(logits) / self.classes[task])
        if before is not None and new < 1:
            running = new * mean.detach() + (1 - new) * before
            mean = running + (mean - mean.detach())  # the running average in value, this batch's mean in gradient
        marginal = entropy_of_mean(mean)
        loss = single if distance is None else distance
        if self.diversity:
            loss = loss - self.diversity * marginal
        share = torch.stack([single, marginal]).detach() / math.log(max(self.classes[task], 2))
        return loss, mean.detach(), share

    def _distance(self, logits: Tensor, expert: Tensor) -> Tensor:
        """The loss of the objectives that look at the experts' predictions, []."""
        if self.name == "expert-kl":
            return expert_kl(logits, expert, self.expert_temperature)
        if self.name == "filtered-labels":
            return filtered_labels(logits, expert)
        return expert_labels(logits, expert, self.confidence)

    def reset(self) -> None:
        """Forget what earlier batches have told: the running mean predictions."""
        self.shares: dict[int, Tensor] = {}
        self.running: list[Tensor | None] = [None] * len(self.counts)

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: the running mean predictions."""
        return list(self.running)

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.running = [None if mean is None else mean.to(self.runtime.device) for mean in state]


class BatchObjective:
    """The objective on some rows of every task: theta [D] -> (loss, G [D]), and products with its Hessian.

    Args:
        whole: what the rows belong to.
        rows: task -> int64 [B_t].
    """

    def __init__(self, whole: PredictionObjective, rows: Mapping[int, Tensor]) -> None:
        self.whole, self.before, self.seen = whole, list(whole.running), False
        self.groups = [{task: rows[task] for task in group} for group in whole.groups(list(rows))]
        self.inputs = [whole.inputs(group) for group in self.groups]
        self.experts = [whole.expert_logits(group) for group in self.groups]

    def _groups(self, module: nn.Module) -> Iterator[dict[int, tuple[Tensor, Tensor, Tensor]]]:
        """What `PredictionObjective.loss` gives of each task, some tasks at a time."""
        for group, own, experts in zip(self.groups, self.inputs, self.experts, strict=True):
            logits = self.whole.logits(module, own, group)
            parts = zip(group, logits, strict=True)
            yield {task: self.whole.loss(task, part, self.before[task], experts.get(task)) for task, part in parts}

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [] and gradient; the gradient's vector is used again by the next call."""
        whole, losses = self.whole, []
        module = whole.model.move_to(theta).eval()  # without dropout, whatever ran before
        for parts in self._groups(module):
            torch.stack([loss for loss, *_ in parts.values()]).sum().backward()
            for task, (loss, mean, share) in parts.items():
                losses.append(loss.detach())
                whole.shares[task] = share
                if not self.seen:  # a second look at the same batch is no new evidence
                    whole.running[task] = mean
        self.seen = True
        gradient = whole.model.gradient
        return torch.stack(losses).sum() if losses else gradient.new_zeros(()), gradient

    @torch.no_grad()
    def value(self, theta: Tensor) -> float:
        """The loss alone; the rows count as evidence for nothing."""
        module = self.whole.model.move_to(theta).eval()
        return float(sum(loss for parts in self._groups(module) for loss, *_ in parts.values()))

    def hessian_product(self, theta: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at theta times a direction [D], by a second backward pass; in the gradient's vector, too."""
        model = self.whole.model
        module = model.move_to(theta).eval()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            for parts in self._groups(module):
                model.slope(torch.stack([loss for loss, *_ in parts.values()]).sum(), direction).backward()
        return model.gradient

r"""SyMerge: merging coefficients and each task's classification head, learned together from what the experts say.

Jung et al., "SyMerge: From Non-Interference to Synergistic Merging via Single-Layer Adaptation",
https://arxiv.org/abs/2412.19098.

    theta_l = theta0_l + sum_t lambda_{t,l} tau_{t,l}                   one encoder, merged as by AdaMerging
    p_{t,i} = softmax(W_t z_i / |z_i|)                                  each task's own head W_t on its features z_i
    minimise  sum_t mean_i -log p_{t,i}[y_{t,i}]  over lambda and W     y: the class that the task's expert predicts

The code takes the mean over the rows i whose y is what the merged model predicts, or of which the expert is at least
as sure: the objective "filtered-labels". "expert-labels" takes all rows.

One ordinary backward pass gives both gradients: G = dLoss/dtheta, from which those of the coefficients are written
down, and those of the heads, which are leaves of the same graph. No graph goes through the merge. The experts keep
the heads that they had: their predictions are made before, and are part of the objective.

After this the heads are no longer frozen. One is kept of each task, and a merged model that has it is no longer
compared on equal terms with one that has the heads of the start.

Defaults are those of the authors' code (https://github.com/AIM-SKKU/SyMerge). Three things differ. There every step
takes one task, here all tasks take each step together, as in `adapt`: as many steps move each head as often, and the
coefficients T times less often. There heads have biases, which start at 0; here a head is a matrix. And there steps run
in mixed precision, here as the objective's runtime says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from lib.adaptation.coefficients import Coefficients, Variable
from lib.adaptation.loop import Row, descend
from lib.adaptation.objectives import PredictionObjective
from lib.adaptation.protocol import Protocol
from lib.concrete.mask import coefficient_gradient, merge
from lib.runtime.checkpoint import Checkpoint
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import check_task_vectors


@dataclass(frozen=True)
class SyMerged:
    """Outcome of SyMerge: one encoder, and a head of each task.

    Attributes:
        theta: merged parameters [D].
        heads: the heads found, [C_t, width] each, in the objective's order.
        coefficients: merging coefficients [T] or [T, L], as they are merged with.
        curve: one row per step: step, loss (nats, summed over tasks), and what the objective and `evaluate` said.
    """

    theta: Tensor
    heads: tuple[Tensor, ...]
    coefficients: Tensor
    curve: pd.DataFrame


def symerge(
    objective_at: PredictionObjective,
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    steps: int,
    coefficients: str | None = "layer",
    initial_coefficient: float = 0.3,
    learning_rate: float = 1e-2,
    head_learning_rate: float = 1e-2,
    clamp: bool = True,
    evaluate: Callable[[Tensor, Sequence[Tensor]], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    label: str = "SyMerge",
    checkpoint: Checkpoint | None = None,
) -> SyMerged:
    """Minimise the objective over merging coefficients and classification heads.

    Nothing is random but the objective's batches. The objective given, and its heads, stay as they are.

    Args:
        objective_at: number of a step -> objective on that unlabelled batch, with `heads` [C_t, width] of all tasks to
            start from, such as `lib.vision.objective.ImageObjective`. The authors' is "filtered-labels".
        theta0: pre-trained parameters [D].
        task_vectors: [T, D], in theta0's type or in half precision.
        layout: where the layers lie.
        steps: number of steps (code: 500 of each task).
        coefficients: "layer", as in the code, "task", or None to leave them at their initial value.
        initial_coefficient: lambda at the start (code: 0.3).
        learning_rate: Adam's for the coefficients (code: 1e-2).
        head_learning_rate: Adam's for the heads (code: 1e-2, for rows of length 100); 0 leaves them as they are.
        clamp: merge at coefficients clamped to [0, 1], as the code does; outside, their gradient is 0.
        evaluate: called every `evaluate_every` steps and after the last with the theta [D] and the heads that the run
            would end with now; the numbers it returns become columns of the curve, and reach nothing else.
        evaluate_every: 0 for never.
        label: shown with the progress.
        checkpoint: where to save and from where to continue.

    Returns:
        The merged parameters, the heads, what else was learned, and the curve.

    Raises:
        ValueError: for task vectors that do not fit theta0 and the layout, an objective without a head for each of
            them, a negative learning rate of the heads, unknown coefficients, or a loss that is not finite (naming the
            step).
    """
    check_task_vectors(theta0, task_vectors, layout, half=True)
    found = getattr(objective_at, "heads", None)
    if found is None or len(found) != len(task_vectors):
        has = "no heads" if found is None else f"{len(found)} heads"
        raise ValueError(f"the objective has {has}, expected one to learn for each of {len(task_vectors)} task vectors")
    if not head_learning_rate >= 0:
        raise ValueError(f"head_learning_rate is {head_learning_rate}, expected 0 or a positive rate")
    lambdas = Coefficients(
        len(task_vectors), layout, coefficients,
        initial=initial_coefficient, learning_rate=learning_rate, protocol=Protocol(clamp=clamp), like=theta0,
    )  # fmt: skip
    synergy = Synergy(objective_at, theta0, task_vectors, layout, lambdas, head_learning_rate=head_learning_rate)
    score = (lambda: evaluate(synergy.theta(), synergy.found_heads())) if evaluate else None
    options = {"label": label, "checkpoint": checkpoint, "score": score, "score_every": evaluate_every}
    curve = descend(synergy, synergy.one_step, steps, **options)
    return SyMerged(synergy.theta(), synergy.found_heads(), lambdas.merged(lambdas.values).clone(), curve)


class Synergy:
    """What SyMerge learns, and one step of learning it.

    Args:
        objective_at: as of `symerge`, like the next three. A copy of it has heads of its own.
        theta0: [D].
        task_vectors: [T, D].
        layout: where the layers lie.
        lambdas: the merging coefficients.
        head_learning_rate: Adam's for the heads.

    Attributes:
        heads: of every task.
    """

    def __init__(
        self,
        objective_at: PredictionObjective,
        theta0: Tensor,
        task_vectors: Tensor,
        layout: Layout,
        lambdas: Coefficients,
        *,
        head_learning_rate: float,
    ) -> None:
        self.theta0, self.task_vectors, self.layout = theta0, task_vectors, layout
        self.lambdas = lambdas
        self.heads = [Variable(head, head_learning_rate) for head in objective_at.heads]
        self.objective_at = copy.copy(objective_at)
        self.objective_at.reset()  # nothing of an earlier run, and nothing that the caller's objective would see

    def theta(self) -> Tensor:
        """The merged parameters [D]."""
        return merge(self.theta0, self.task_vectors, self.lambdas.merged(self.lambdas.values), self.layout)

    def found_heads(self) -> tuple[Tensor, ...]:
        """The heads as plain tensors [C_t, width]; a step makes new ones."""
        return tuple(head.values.detach() for head in self.heads)

    def gradients(self, step: int) -> tuple[float | Tensor, Tensor, list[Tensor]]:
        """The loss on a step's batch, and its gradients by the coefficients [T, L] and by every head [C_t, width]."""
        leaves = [head.values.detach().requires_grad_() for head in self.heads]
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        self.objective_at.heads = leaves
        loss, gradient = self.objective_at(step)(self.theta())
        by_layer = coefficient_gradient(gradient, self.task_vectors, self.layout, None, layer_wise=True)
        return loss, by_layer, [leaf.grad for leaf in leaves]

    def one_step(self, step: int) -> Row:
        """Merge, and move coefficients and heads one step down the loss; the row is of what was before it."""
        loss, by_layer, by_head = self.gradients(step)
        self.lambdas.update(by_layer, restart=False)
        for head, gradient in zip(self.heads, by_head, strict=True):
            head.step(gradient)
        return {"step": step, "loss": loss} | self.objective_at.report()

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        heads = [head.state() for head in self.heads]
        return {"coefficients": self.lambdas.state(), "heads": heads, "objective": self.objective_at.state()}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.lambdas.load_state(state["coefficients"])
        for head, saved in zip(self.heads, state["heads"], strict=True):
            head.load_state(saved)
        self.objective_at.load_state(state["objective"])

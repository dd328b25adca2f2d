r"""AdaRank: which singular components of each task vector are merged, learned on unlabelled inputs.

Lee et al., "AdaRank: Adaptive Rank Pruning for Enhanced Model Merging", https://arxiv.org/abs/2503.22178.

    tau_{t,l} = U_t diag(s_t) V_t^T                                       every matrix l of every task vector, once
    m = 1 where x > 0, else 0                                             a bit per component, from its logit x
    theta_l = theta0_l + sum_t lambda_{t,l} U_t diag(m_t * s_t) V_t^T

With G = dLoss/dtheta from one ordinary backward pass, the rest is short enough to write down:

    dLoss/dm_{t,l,k}    = lambda_{t,l} s_{t,k} u_{t,k}^T G_l v_{t,k}
    dLoss/dlambda_{t,l} = sum_k m_{t,k} s_{t,k} u_{t,k}^T G_l v_{t,k}

A bit has no derivative. The straight-through estimator takes that of sigmoid(x / temperature) in its place, which
exceeds 1/2 where the bit is on. So components that are off have a gradient too, and may come back.

Defaults and details are those of the authors' code (https://github.com/david3684/AdaRank): one Adam moves bits and
coefficients together, and layers that are no matrices have a coefficient and no bits. Two things differ. The code has
bits for the matrices of attention and MLP only, known by their names; here, as in `lib.fusion.spectral`, a matrix is
what has two dimensions. And the code scores on labelled test inputs every 500 steps and keeps the best score; here a
run ends with what its last step left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lib.adaptation.coefficients import Coefficients, Variable
from lib.adaptation.loop import Row, descend
from lib.adaptation.protocol import Protocol
from lib.concrete.mask import coefficient_gradient, weighted_sum
from lib.fusion.spectral import thin_svd
from lib.runtime.checkpoint import Checkpoint
from lib.vectors.flat_model import Objective
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import check_task_vectors


@dataclass(frozen=True)
class RankPruned:
    """Outcome of AdaRank.

    Attributes:
        theta: merged parameters [D].
        masks: name of a matrix -> its bits, bool [T, R], the component of the largest singular value first; R is the
            highest rank of a task's matrix, and what lies beyond a task's own rank is False.
        coefficients: merging coefficients [T] or [T, L].
        curve: one row per step: step, loss (nats, summed over tasks), kept (share of the components that are on), and
            what the objective and `evaluate` said.
    """

    theta: Tensor
    masks: dict[str, Tensor]
    coefficients: Tensor
    curve: pd.DataFrame


def adarank(
    objective_at: Callable[[int], Objective],
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    steps: int,
    coefficients: str | None = "layer",
    initial_coefficient: float = 0.3,
    initial_share: float = 1.0,
    learning_rate: float = 1e-3,
    mask_learning_rate: float = 1e-3,
    initial_logit: float = 0.1,
    temperature: float = 10.0,
    evaluate: Callable[[Tensor], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    label: str = "AdaRank",
    checkpoint: Checkpoint | None = None,
) -> RankPruned:
    """Minimise the objective over the bits of singular components, and over merging coefficients.

    With its defaults this is the paper's AdaRank on Task Arithmetic. On CART (https://arxiv.org/abs/2412.12153) task
    vectors start at the mean of the experts: with `mean = task_vectors.mean(0)` give `theta0 + mean` and
    `task_vectors - mean`, `initial_share=0.16` and `initial_coefficient=2.3`. Nothing is random but the objective's
    batches. U and V take up to twice the memory of the task vectors.

    Args:
        objective_at: number of a step -> objective on that unlabelled batch, theta [D] -> (loss, G [D]); as of `adapt`.
        theta0: pre-trained parameters [D].
        task_vectors: [T, D], in theta0's type or in half precision.
        layout: where the layers lie, and which are matrices.
        steps: number of steps (code: 10,000).
        coefficients: "layer", as in the code, "task", or None to leave them at their initial value.
        initial_coefficient: lambda at the start (code: 0.3 for eight tasks).
        initial_share: share of min(m, n), the largest possible rank, that is on at the start: the first components.
        learning_rate: Adam's for the coefficients (code: 1e-3 for images, 5e-5 or 1e-4 for text).
        mask_learning_rate: Adam's for the logits (code: the same).
        initial_logit: of a component that is on; one that is off has its negative. Over the learning rate it says how
            many steps a bit needs at least to change: 100 here.
        temperature: of the sigmoid. It scales gradients, which Adam hardly notices.
        evaluate: called every `evaluate_every` steps and after the last with the theta [D] that the run would end with
            now; the numbers it returns become columns of the curve, and reach nothing else.
        evaluate_every: 0 for never.
        label: shown with the progress.
        checkpoint: where to save and from where to continue.

    Returns:
        The merged parameters, what was learned, and the curve.

    Raises:
        ValueError: for task vectors that do not fit theta0 and the layout, a layout without matrices, a share outside
            [0, 1], a temperature or an initial logit that is not positive, unknown coefficients, or a loss that is not
            finite (naming the step).
    """
    check_task_vectors(theta0, task_vectors, layout, half=True)
    if not 0 <= initial_share <= 1:
        raise ValueError(f"initial_share is {initial_share}, expected a share in [0, 1]")
    if not temperature > 0 or not initial_logit > 0:
        raise ValueError(f"temperature is {temperature} and initial_logit {initial_logit}: expected more than 0")
    lambdas = Coefficients(
        len(task_vectors), layout, coefficients,
        initial=initial_coefficient, learning_rate=learning_rate, protocol=Protocol(), like=theta0,
    )  # fmt: skip
    components = Components(task_vectors, layout, theta0)
    logits = torch.where(components.leading(initial_share), initial_logit, -initial_logit).to(theta0)
    learned = Variable(logits, mask_learning_rate)
    pruning = Pruning(objective_at, theta0, task_vectors, components, lambdas, learned, temperature=temperature)
    score = (lambda: evaluate(pruning.theta())) if evaluate else None
    options = {"label": label, "checkpoint": checkpoint, "score": score, "score_every": evaluate_every}
    curve = descend(pruning, pruning.one_step, steps, **options)
    masks = {name: bits > 0 for name, bits in components.by_name(pruning.mask()).items()}
    return RankPruned(pruning.theta(), masks, lambdas.merged(lambdas.values).clone(), curve)


class Components:
    """The singular components of all task vectors' matrices: decomposed once, merged under weights, and the way back.

    What is said of components is a vector [C], C = sum_l T R_l: matrix by matrix, in it task by task, the largest
    singular value first. R_l is the highest rank of a task's matrix; the other tasks are filled up with zeros.

    Args:
        task_vectors: [T, D].
        layout: tells which layers are matrices.
        like: a tensor whose type and device are used.

    Attributes:
        values: the singular values s [C]; 0 where a component is none.
        place: where each component's coefficient lies in [T, L], counted row by row: int64 [C].

    Raises:
        ValueError: if no layer is a matrix.
    """

    def __init__(self, task_vectors: Tensor, layout: Layout, like: Tensor) -> None:
        self.layout, self.tasks = layout, len(task_vectors)
        self.numbers = [number for number, shape in enumerate(layout.shapes) if len(shape) == 2]
        if not self.numbers:
            raise ValueError("no layer is a matrix: there are no singular components to choose from")
        self.bases: list[tuple[Tensor, Tensor]] = []  # U^T [T R_l, m] and V^T [T R_l, n] of each matrix
        values, places = [], []
        for number in self.numbers:
            shape, start, size = layout.shapes[number], layout.offsets[number], layout.sizes[number]
            matrices = task_vectors[:, start : start + size].unflatten(1, shape)
            u, s, vh = zip(*(thin_svd(matrix.to(like)) for matrix in matrices), strict=True)
            left, right = pad_sequence([part.mT for part in u], batch_first=True), pad_sequence(vh, batch_first=True)
            self.bases.append((left.flatten(0, 1), right.flatten(0, 1)))
            values.append(pad_sequence(s, batch_first=True))
            places.append((torch.arange(self.tasks) * layout.layers + number).repeat_interleave(left.shape[1]))
        self.widths = [own.shape[1] for own in values]
        self.values = torch.cat([own.flatten() for own in values])
        self.place = torch.cat(places).to(like.device)

    def leading(self, share: float) -> Tensor:
        """Whether a component is among the first int(share * min(m, n)) of its task's matrix: bool [C]."""
        most = [int(share * min(self.layout.shapes[number])) for number in self.numbers]
        own = [(torch.arange(width) < first).repeat(self.tasks) for width, first in zip(self.widths, most, strict=True)]
        return torch.cat(own).to(self.place.device)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """What is said of all components, matrix by matrix: [C] -> views [T, R_l]."""
        pieces = flat.split([self.tasks * width for width in self.widths])
        return [piece.view(self.tasks, width) for piece, width in zip(pieces, self.widths, strict=True)]

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """The same under the matrices' names."""
        return {self.layout.names[number]: own for number, own in zip(self.numbers, self.parts(flat), strict=True)}

    def write_sum(self, weights: Tensor, out: Tensor) -> None:
        """Write each matrix's sum_k w_k u_k v_k^T into its place in a flat vector, weights [C] -> [D]."""
        views = list(self.layout.views(out).values())
        for number, (left, right), own in zip(self.numbers, self.bases, self.parts(weights), strict=True):
            torch.mm((left * own.reshape(-1, 1)).mT, right, out=views[number])

    def pull(self, gradient: Tensor) -> Tensor:
        """s_k u_k^T G v_k of every component: G [D] -> [C]."""
        views = list(self.layout.views(gradient).values())
        pairs = zip(self.numbers, self.bases, strict=True)
        return self.values * torch.cat([((right @ views[number].mT) * left).sum(1) for number, (left, right) in pairs])


class Pruning:
    """What AdaRank learns, and one step of learning it.

    Args:
        objective_at: as of `adarank`, like the next two.
        theta0: [D].
        task_vectors: [T, D].
        components: of these task vectors.
        lambdas: the merging coefficients.
        logits: x of every component [C].
        temperature: of the sigmoid.
    """

    def __init__(
        self,
        objective_at: Callable[[int], Objective],
        theta0: Tensor,
        task_vectors: Tensor,
        components: Components,
        lambdas: Coefficients,
        logits: Variable,
        *,
        temperature: float,
    ) -> None:
        self.objective_at, self.theta0, self.task_vectors = objective_at, theta0, task_vectors
        self.components, self.lambdas, self.logits = components, lambdas, logits
        self.temperature, self.layout, self.exists = temperature, components.layout, components.values > 0
        getattr(objective_at, "reset", lambda: None)()  # nothing of an earlier run

    def mask(self) -> Tensor:
        """The bits m [C]; 0 where a component is none."""
        return ((self.logits.values > 0) & self.exists).to(self.logits.values)

    def weights(self) -> Tensor:
        """The coefficients of all layers, [T, L]."""
        lambdas = self.lambdas.merged(self.lambdas.values)
        return lambdas if lambdas.dim() == 2 else lambdas[:, None].expand(-1, self.layout.layers)

    def theta(self) -> Tensor:
        """The merged parameters [D]; layers that are no matrices are those of AdaMerging."""
        lambdas = self.weights()
        summed = weighted_sum(self.task_vectors, lambdas, self.layout)
        own = lambdas.flatten()[self.components.place]  # [C]
        self.components.write_sum(own * self.mask() * self.components.values, summed)
        return self.theta0 + summed

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Of the loss by the logits [C], straight through the bits, and by the coefficients [T, L]; from G [D]."""
        pulled, own = self.components.pull(gradient), self.weights().flatten()[self.components.place]
        soft = torch.sigmoid(self.logits.values / self.temperature)
        by_logit = pulled * own * soft * (1 - soft) / self.temperature
        by_layer = coefficient_gradient(gradient, self.task_vectors, self.layout, None, layer_wise=True)
        for number, own in zip(self.components.numbers, self.components.parts(pulled * self.mask()), strict=True):
            by_layer[:, number] = own.sum(1)
        return by_logit, by_layer

    def one_step(self, step: int) -> Row:
        """Merge, and move logits and coefficients one step down the loss; the row is of the merge before it."""
        kept = self.mask().sum() / self.exists.sum()
        loss, gradient = self.objective_at(step)(self.theta())
        by_logit, by_layer = self.gradients(gradient)
        self.logits.step(by_logit)
        self.lambdas.update(by_layer, restart=False)
        return {"step": step, "loss": loss, "kept": kept} | getattr(self.objective_at, "report", dict)()

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        batches = getattr(self.objective_at, "state", dict)()
        return {"coefficients": self.lambdas.state(), "mask": self.logits.state(), "objective": batches}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.lambdas.load_state(state["coefficients"])
        self.logits.load_state(state["mask"])
        getattr(self.objective_at, "load_state", lambda _: None)(state["objective"])

r"""Merging coefficients while they are learned: what they are merged as, their gradient, one step of an optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.adaptation.protocol import Protocol
from lib.concrete.kernels import BETA_1, BETA_2, EPSILON
from lib.vectors.layout import Layout

GRANULARITIES = ("task", "layer", None)
Moments = tuple[Tensor, Tensor, int]  # Adam's mean of gradients, its mean of squares, the number of updates


def adam(values: Tensor, gradient: Tensor, moments: Moments, learning_rate: float) -> tuple[Tensor, Moments]:
    """One step of Adam (https://arxiv.org/abs/1412.6980, Algorithm 1) as a function, so that it can be differentiated.

    Args:
        values: what is learned.
        gradient: of the loss, like `values`.
        moments: before the step.
        learning_rate: Adam's.

    Returns:
        The new values and moments.
    """
    first, second, updates = moments
    first = BETA_1 * first + (1 - BETA_1) * gradient
    second = BETA_2 * second + (1 - BETA_2) * gradient.square()
    updates += 1
    root = (second / (1 - BETA_2**updates) + 1e-30).sqrt()  # 1e-30: a derivative at zero too
    return values - learning_rate / (1 - BETA_1**updates) * first / (root + EPSILON), (first, second, updates)


class Variable:
    """A tensor that Adam moves, with its moments, and what a checkpoint must hold of it.

    Args:
        values: at the start; a copy is moved.
        learning_rate: Adam's.

    Attributes:
        values: the present ones.
    """

    def __init__(self, values: Tensor, learning_rate: float) -> None:
        self.values, self.learning_rate = values.detach().clone(), learning_rate
        self.moments: Moments = self._no_moments()

    def _no_moments(self) -> Moments:
        return torch.zeros_like(self.values), torch.zeros_like(self.values), 0

    def step(self, gradient: Tensor) -> None:
        """One step down the loss."""
        self.values, self.moments = adam(self.values, gradient, self.moments, self.learning_rate)

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        return {"values": self.values, "first": self.moments[0], "second": self.moments[1], "updates": self.moments[2]}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        first, second = state["first"].to(self.values), state["second"].to(self.values)
        self.values, self.moments = state["values"].to(self.values), (first, second, state["updates"])


class Coefficients(Variable):
    """The lambdas of AdaMerging (https://arxiv.org/abs/2310.02575), task-wise or layer-wise.

    Args:
        tasks: T.
        layout: where the layers lie.
        granularity: "task", "layer", or None for coefficients that stay at their initial value.
        initial: that value.
        learning_rate: of the optimiser.
        protocol: clamp, tie, l2, inner optimiser, moments.
        like: a tensor whose device is used.

    Attributes:
        start: initial values, [T] or [T, L]; with `tie` [1] or [1, L].
        values: the present ones.
    """

    def __init__(
        self,
        tasks: int,
        layout: Layout,
        granularity: str | None,
        *,
        initial: float,
        learning_rate: float,
        protocol: Protocol,
        like: Tensor,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(f"coefficients={granularity!r}, expected one of {GRANULARITIES}")
        self.tasks, self.granularity, self.protocol = tasks, granularity, protocol
        rows = 1 if protocol.tie else tasks
        shape = (rows, layout.layers) if granularity == "layer" else (rows,)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.start = torch.full(shape, initial, dtype=dtype, device=like.device)
        super().__init__(self.start, learning_rate)

    def merged(self, values: Tensor) -> Tensor:
        """What to merge with at some values: [T] or [T, L]."""
        used = values.clamp(0, 1) if self.protocol.clamp else values
        return used.expand(self.tasks, *used.shape[1:])

    def pull(self, by_layer: Tensor, at: Tensor) -> Tensor:
        """dLoss/dvalues at `at` from dLoss/dlambda_{t,l} [T, L]."""
        gradient = by_layer if self.granularity == "layer" else by_layer.sum(1)
        if self.protocol.tie:
            gradient = gradient.sum(0, keepdim=True)
        return gradient * ((at >= 0) & (at <= 1)) if self.protocol.clamp else gradient

    def push(self, direction: Tensor, at: Tensor) -> Tensor:
        """How `merged` moves when the values move: the transpose of `pull`, [T] or [T, L]."""
        inside = direction * ((at >= 0) & (at <= 1)) if self.protocol.clamp else direction
        return inside.expand(self.tasks, *inside.shape[1:])

    def update(self, by_layer: Tensor, *, restart: bool) -> None:
        """One step down the loss; coefficients without a granularity stay where they are.

        Args:
            by_layer: dLoss/dlambda [T, L], wherever it was taken.
            restart: the step starts from the initial values (the inner level), not from the present ones. Where it
                starts says what a clamp lets through, as in the published codes.
        """
        if self.granularity is None:
            return
        base = self.start if restart else self.values
        gradient = self.pull(by_layer, base) + 2 * self.protocol.l2 * (base - self.start)
        if restart and self.protocol.moments == "reset":
            self.moments = self._no_moments()
        self._last = (base, gradient, self.moments, restart)
        self.values, self.moments = self._step(*self._last)

    def _step(self, base: Tensor, gradient: Tensor, moments: Moments, inner: bool) -> tuple[Tensor, Moments]:
        if inner and self.protocol.inner_optimiser == "sgd":
            return base - self.learning_rate * gradient, moments
        return adam(base, gradient, moments, self.learning_rate)

    def through_the_step(self, pulled: Tensor) -> Tensor:
        """dLoss/dgradient of the last update, from dLoss/dvalues after it: the transpose of the step's Jacobian."""
        base, gradient, *rest = self._last
        gradient = gradient.detach().requires_grad_()
        values, _ = self._step(base, gradient, *rest)
        return torch.autograd.grad(values, gradient, pulled)[0]

r"""Merging inside a subspace, and the way back: theta from coefficients and a mask, their gradients from G.

The fast form of `lib.concrete`, for vectors that are large beside the cache. Beside theta0, the task vectors and G it
holds theta, the logits and Adam's two moments, and nothing else of length D. A step with T task vectors moves

    4 B (mask sums) + (12 + 4 T) B (merge) + (12 + 4 T) B (pull) + 32 B (logits and Adam) per parameter,

and 4 less, 64 bytes, when T = 1, because S need not be written then. T = 1 is Concrete Task Arithmetic whatever the
number of tasks: its coefficients never change, so its only "task vector" is their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lib.concrete import kernels
from lib.concrete.kernels import TASKS_AT_ONCE, Draw
from lib.concrete.mask import SMALLEST_MEAN, check_temperature
from lib.concrete.noise import block_keys
from lib.concrete.sharding import Shard
from lib.vectors.layout import Layout


class MergeStep:
    """theta = theta0 + m_hat * sum_t lambda_t tau_t, with all that is needed to learn lambda and the logits of m.

    Args:
        theta0: pre-trained parameters [D], or a function that writes them into such a vector whenever they are needed:
            `lib.vectors.streaming.reader` leaves them in their file and so saves one vector of memory.
        task_vectors: float32, bfloat16 or float16 [T, D]; each is read in its type and everything is computed in
            theta0's. If they lie elsewhere than theta0, in memory or mapped from a file, every pass moves one at a time
            to its device.
        layout: where the layers lie.
        rescaled_mask: a fixed mask m_hat [D]; None for the whole space, or for a mask to be learned.
        backend: "compiled", "eager", or "auto": compiled where that pays and a compiler is found.
        shard: this process's part; theta0, task_vectors and rescaled_mask are then that part of the vectors.
    """

    def __init__(
        self,
        theta0: Tensor | Callable[[Tensor], None],
        task_vectors: Tensor,
        layout: Layout,
        *,
        rescaled_mask: Tensor | None = None,
        backend: str = "auto",
        shard: Shard | None = None,
    ) -> None:
        self.layout, self.shard = layout, shard or Shard(layout)
        self.theta0 = self._blocks(theta0) if isinstance(theta0, Tensor) else theta0
        self.task_vectors = self._blocks(task_vectors)
        self.mask: kernels.Mask = None if rescaled_mask is None else self._blocks(rescaled_mask)
        whole = isinstance(theta0, Tensor)
        dtype, device = (theta0.dtype, theta0.device) if whole else (torch.float32, task_vectors.device)
        self.compiled = kernels.uses_compiler(backend, task_vectors.shape[1], device)
        self.theta = torch.zeros(layout.length, dtype=dtype, device=device)
        self._own_theta = self._blocks(self.theta[self.shard.elements])
        self._counts = layout.counts(self.theta)
        self._mean = torch.ones_like(self._counts)

    def _blocks(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.layout.block))

    def learn_mask(
        self,
        *,
        temperature: float,
        learning_rate: float,
        seed: int,
        initial_logits: float = 0.0,
        rescale: bool = True,
    ) -> None:
        """Begin to learn a mask.

        Args:
            temperature: of the samples.
            learning_rate: Adam's.
            seed: names the noise; a number below 2^63.
            initial_logits: x at the start.
            rescale: divide each layer of the mask by its mean.

        Raises:
            ValueError: if the temperature is not positive.
        """
        check_temperature(temperature)
        device = self.theta.device
        self.logits, self.first_moment, self.second_moment = (
            torch.zeros_like(self._own_theta.flatten()) for _ in range(3)
        )
        self.logits += initial_logits
        self.rescale = rescale
        self.updates, self.learning_rate, self.seed, self.temperature = 0, learning_rate, seed, temperature
        keep = not self.compiled and self.logits.numel() < kernels.SMALL
        self._constants = (  # the parts of a draw that no step changes
            self.layout.valid_in_block(device)[self.shard.first : self.shard.first + self.shard.blocks],
            torch.arange(self.layout.block, dtype=torch.int32, device=device),
            None if temperature == 0.5 else torch.tensor(1 / temperature, dtype=torch.float64).to(self.theta),
            torch.zeros_like(self._own_theta) if keep else None,
        )

    def draw(self, step: int) -> Tensor:
        """Sample the mask of a step, which is a function of (seed, step, element index) and the logits.

        Returns:
            Mean of the mask over each layer [L].
        """
        keys = block_keys(self.shard.blocks, self.seed, step, first=self.shard.first, device=self.theta.device)
        self.mask = Draw(self._blocks(self.logits), keys, *self._constants)
        sums = self._run(kernels.mask_sums, self.mask)
        mean = self.shard.layer_sums(sums[0]) / self._counts
        self._mean = mean.clamp(min=SMALLEST_MEAN) if self.rescale else torch.ones_like(mean)
        return mean

    def rescaled_mask(self) -> Tensor:
        """The mask that `merge` uses now, written out: m_hat [n, block], this rank's part."""
        return kernels.masked(self.shard.per_block(1 / self._mean).expand_as(self._own_theta), self.mask)

    def merge(self, coefficients: Tensor) -> Tensor:
        """Merged parameters at some coefficients, task-wise [T] or layer-wise [T, L].

        Returns:
            theta [D], whole on every rank. The next call overwrites it, and so does `update_mask`.
        """
        self._coefficients = self._layer_wise(coefficients)
        weights = self.shard.per_block(self._coefficients / self._mean)  # [T, n, 1]
        base = self.theta0
        if not isinstance(base, Tensor):
            base(self._own_theta.flatten())  # a view: written in place
            base = self._own_theta
        for tasks, vectors in self._groups():
            self._run(kernels.merge, self._own_theta, base, vectors, weights[tasks], self.mask)
            base = self._own_theta
        return self.shard.gather(self._own_theta.flatten(), out=self.theta)

    def merge_inside(self, coefficients: Tensor, rescaled_mask: Tensor | None) -> Tensor:
        """`merge` inside a given mask m_hat, this rank's part of it; until the next `draw` that is the mask."""
        self.mask = None if rescaled_mask is None else self._blocks(rescaled_mask)
        self._mean = torch.ones_like(self._mean)
        return self.merge(coefficients)

    def coefficient_gradient(self, gradient: Tensor) -> Tensor:
        """dLoss/dlambda_{t,l} = sum_{i in l} G_i m_hat_i tau_{t,i}: G [D] -> [T, L]; sum over L if task-wise."""
        gradient = self.shard.reduce(gradient)
        dots = [self._run(kernels.pull, gradient, vectors, self.mask) for _, vectors in self._groups()]
        return self.shard.layer_sums(torch.cat(dots)) / self._mean

    def update_mask(self, gradient: Tensor, second_order: Tensor | None = None) -> Tensor:
        """One step of Adam on the logits, by G = dLoss/dtheta [D] at the theta that `merge` gave last.

        Args:
            gradient: G [D].
            second_order: what to add to G S, from `lib.concrete.hypergradient` [D]; None for the first-order gradient.

        Returns:
            The coefficients' gradient [T, L] at the same point, which costs nothing more.
        """
        gradient = self.shard.reduce(gradient)
        if len(self.task_vectors) == 1:  # S is the only task vector times its coefficient
            only = next(self._groups())[1]
            dots = [self._run(kernels.pull, gradient, only, self.mask)]
            summed, factor = only[0], self._coefficients[0]
        else:
            summed, factor = self._own_theta, torch.ones_like(self._mean)  # S fits in the place of theta
            weights, dots = self.shard.per_block(self._coefficients), []
            for tasks, vectors in self._groups():
                given = summed, gradient, vectors, weights[tasks], self.mask, bool(dots)
                dots.append(self._run(kernels.pull_and_sum, *given))
        layer_dots = self.shard.layer_sums(torch.cat(dots))  # [T, L]: sum_l G m tau_t
        by_layer = layer_dots / self._mean
        pulled = (layer_dots * self._coefficients).sum(0)  # [L]: sum_l G S m
        if second_order is not None:
            gradient = gradient * summed * self.shard.per_block(factor) + self._blocks(second_order)
            summed, factor = torch.ones_like(gradient), torch.ones_like(self._mean)
            products = (gradient * self.rescaled_mask()).sum(-1, keepdim=True)
            pulled = self.shard.layer_sums(products) * self._mean
        common = pulled / (self._mean.square() * self._counts) * self.rescale
        self.updates += 1
        scalars = (
            self.learning_rate / (1 - kernels.BETA_1**self.updates),
            (1 - kernels.BETA_2**self.updates) ** -0.5,
            1 / self.temperature,
        )
        self._run(
            kernels.update_logits,
            self.mask,
            self._blocks(self.first_moment),
            self._blocks(self.second_moment),
            gradient,
            summed,
            self.shard.per_block(factor / self._mean),
            self.shard.per_block(common),
            torch.stack([self._mean.new_full((), value) for value in scalars]),  # filled, not copied from the host
        )
        return by_layer

    def state(self) -> dict[str, object]:
        """What a checkpoint of the mask must hold: of several ranks, the whole."""
        tensors = {"logits": self.logits, "first": self.first_moment, "second": self.second_moment}
        if self.shard.ranks > 1:  # one after the other: the device need not hold three whole vectors
            tensors = {name: self.shard.gather(own).cpu() for name, own in tensors.items()}
        return {**tensors, "updates": self.updates}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint, whatever number of ranks wrote it."""
        names = {"logits": self.logits, "first": self.first_moment, "second": self.second_moment}
        for name, own in names.items():
            saved = state[name][self.shard.elements]
            own[: len(saved)].copy_(saved)  # the empty blocks at the end differ with the number of ranks
        self.updates = state["updates"]

    def _run(self, kernel: kernels.Kernel, *arguments: object) -> Tensor | None:
        return kernels.run(kernel, *arguments, compiled=self.compiled)

    def _layer_wise(self, coefficients: Tensor) -> Tensor:
        return coefficients if coefficients.dim() == 2 else coefficients[:, None].expand(-1, self.layout.layers)

    def _groups(self) -> Iterator[tuple[slice, Tensor]]:
        """The tasks, some at a time, and their task vectors on theta's device."""
        at_once = TASKS_AT_ONCE if self.task_vectors.device == self.theta.device else 1
        for start in range(0, len(self.task_vectors), at_once):
            tasks = slice(start, start + at_once)
            yield tasks, self.task_vectors[tasks].to(self.theta.device)

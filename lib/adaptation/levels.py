r"""The two levels of Algorithm 1 of https://arxiv.org/abs/2312.06173: one step of each, and the state they share.

The inner level moves merging coefficients, the upper level the logits of a Concrete mask. `lib.adaptation.loop` goes
through them line by line; a method that learns only one of the two has only that level. Each choice that the paper
leaves open (`lib.adaptation.protocol`) is made in one place here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lib.adaptation.coefficients import Coefficients
from lib.adaptation.protocol import Protocol
from lib.concrete.hypergradient import second_order
from lib.concrete.mask import final_mask, merge, weighted_sum
from lib.concrete.merge_step import MergeStep
from lib.concrete.sharding import Shard
from lib.runtime.rng import seed_of
from lib.vectors.flat_model import Objective
from lib.vectors.task_vectors import check_task_vectors, sum_of


class Levels:
    """What is learned, and one step of learning it. The arguments are those of `lib.adaptation.loop.adapt`.

    Attributes:
        lambdas: the merging coefficients.
        merging: theta from coefficients and mask, and the way back.
        loss: of the last step, at the upper level where there is one (nats, summed over this process's tasks); a
            number, or a tensor that is still on the device, like all that `report` and `draw_mask` say.
        report: what the objective said of that evaluation.
    """

    def __init__(
        self,
        objective_at: Callable[[int], Objective],
        theta0: Tensor | Callable[[Tensor], None],
        task_vectors: Tensor,
        shard: Shard,
        *,
        coefficients: str | None,
        learn_mask: bool,
        rescaled_mask: Tensor | None,
        initial_coefficient: float,
        learning_rate: float,
        mask_learning_rate: float,
        temperature: float,
        seed: int,
        protocol: Protocol,
        backend: str,
    ) -> None:
        self.objective_at, self.theta0, self.shard, self.protocol = objective_at, theta0, shard, protocol
        self.learn_mask, self.learn_coefficients = learn_mask, coefficients is not None
        self.bi_level = self.learn_mask and self.learn_coefficients
        self.exact = self.bi_level and protocol.hypergradient == "exact"
        self.fixed_mask, self.temperature, self.seed = rescaled_mask, temperature, seed
        self._check(task_vectors)
        like = theta0 if isinstance(theta0, Tensor) else task_vectors
        if not self.learn_coefficients:
            task_vectors = self._sum(task_vectors, like)
        self.task_vectors, self.loss, self.report = task_vectors, 0.0, {}
        self.lambdas = Coefficients(
            len(task_vectors), shard.layout, coefficients,
            initial=initial_coefficient, learning_rate=learning_rate, protocol=protocol, like=like,
        )  # fmt: skip
        point = theta0, task_vectors, shard.layout
        self.merging = MergeStep(*point, rescaled_mask=rescaled_mask, backend=backend, shard=shard)
        if learn_mask:
            self.merging.learn_mask(
                temperature=temperature, learning_rate=mask_learning_rate, seed=seed_of("mask", seed),
                initial_logits=protocol.initial_logits, rescale=protocol.rescale,
            )  # fmt: skip
        getattr(objective_at, "reset", lambda: None)()  # nothing of an earlier run

    def _check(self, task_vectors: Tensor) -> None:
        whole = self.shard.ranks == 1 and isinstance(self.theta0, Tensor)
        if whole:
            check_task_vectors(self.theta0, task_vectors, self.shard.layout, half=True)
        if self.learn_mask and self.fixed_mask is not None:
            raise ValueError("give either learn_mask=True or a fixed rescaled_mask, not both")
        if not self.learn_mask and not self.learn_coefficients:
            raise ValueError("nothing to learn: set coefficients to 'task' or 'layer', or learn_mask=True")
        if self.exact and not whole:
            raise ValueError("hypergradient='exact' needs all of theta0 as a tensor, in one process")

    def _sum(self, task_vectors: Tensor, like: Tensor) -> Tensor:
        """With coefficients left alone only the sum of the task vectors matters, whatever T: [T, D] -> [1, D]."""
        return task_vectors if len(task_vectors) == 1 else sum_of(task_vectors, like)[None]

    def draw_mask(self, step: int) -> dict[str, Tensor]:
        """Line 3: sample the mask. A "fresh" sample of the upper level has a number of its own.

        Returns:
            Its mean, and its lowest mean over a layer.
        """
        means = self.merging.draw(2 * step if self.protocol.outer_sample == "fresh" else step)
        layout = self.shard.layout
        total = (means * layout.counts(means)).sum()
        wide = total if total.device.type == "mps" else total.double()  # an Apple GPU has no float64
        return {"mask_mean": wide / layout.parameters, "lowest_density": means.min()}

    def inner_step(self, step: int) -> None:
        """Lines 4 and 5: merge, and move the coefficients one step down the loss with the mask held fixed.

        With a mask to learn, the step starts from the initial coefficients; alone (AdaMerging), from the present ones.
        """
        from_start = self.learn_mask and self.protocol.inner_gradient_at == "initial"
        at = self.lambdas.start if from_start else self.lambdas.values
        objective = self.objective_at(2 * step if self.learn_mask else step)  # two levels, two batches
        theta = self.merging.merge(self.lambdas.merged(at))
        gradient = self._evaluate(objective, theta, last=not self.learn_mask)
        self.lambdas.update(self.merging.coefficient_gradient(gradient), restart=self.learn_mask)
        if self.exact:
            self._inner = objective, at, theta.clone(), gradient.clone()

    def upper_step(self, step: int) -> None:
        """Lines 6 and 7: merge at the coefficients found, and move the logits one step down the loss."""
        if self.protocol.outer_sample == "fresh":
            self.merging.draw(2 * step + 1)
        objective = self.objective_at(2 * step + 1 if self.bi_level else step)
        gradient = self._evaluate(objective, self.merging.merge(self.lambdas.merged(self.lambdas.values)), last=True)
        if self.exact:
            gradient = gradient.clone()  # the same buffer serves the product with the Hessian
            self.merging.update_mask(gradient, self._through_the_inner_step(gradient))
        else:
            self.merging.update_mask(gradient)

    def _evaluate(self, objective: Objective, theta: Tensor, *, last: bool) -> Tensor:
        self.loss, gradient = objective(theta)
        if last:
            self.report = getattr(self.objective_at, "report", dict)()
        return gradient

    def _through_the_inner_step(self, gradient: Tensor) -> Tensor:
        """What the first-order gradient leaves out, because the coefficients depend on the mask, too."""
        objective, at, theta, inner_gradient = self._inner
        layout, lambdas = self.shard.layout, self.lambdas
        pulled = lambdas.pull(self.merging.coefficient_gradient(gradient), lambdas.values)
        pushed = lambdas.push(lambdas.through_the_step(pulled), at)
        weighted = weighted_sum(self.task_vectors, pushed, layout)
        summed = weighted_sum(self.task_vectors, lambdas.merged(at), layout)
        return second_order(objective, theta, inner_gradient, self.merging.rescaled_mask().flatten(), weighted, summed)

    @property
    def final_coefficients(self) -> Tensor:
        """What a run leaves: after learning a mask they start anew inside it; [T] or [T, L]."""
        return self.lambdas.merged(self.lambdas.start if self.learn_mask else self.lambdas.values)

    @property
    def logits(self) -> Tensor | None:
        """The mask's logits, whole on every rank [D]; None if no mask is learned."""
        return self.shard.gather(self.merging.logits) if self.learn_mask else None

    def outcome(self) -> Tensor:
        """The parameters that the run would end with now [D]."""
        mask, layout = self.fixed_mask, self.shard.layout
        if self.learn_mask:
            options = {"temperature": self.temperature, "seed": self.seed, "rescaled": self.protocol.rescale}
            mask = self.shard.part(final_mask(self.logits, layout, self.protocol.final_mask, **options))
        if self.shard.ranks > 1:
            return self.merging.merge_inside(self.final_coefficients, mask)
        return merge(self.theta0, self.task_vectors, self.final_coefficients, layout, mask)

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        mask = self.merging.state() if self.learn_mask else None
        batches = getattr(self.objective_at, "state", dict)()
        return {"coefficients": self.lambdas.state(), "mask": mask, "objective": batches}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.lambdas.load_state(state["coefficients"])
        if self.learn_mask:
            self.merging.load_state(state["mask"])
        getattr(self.objective_at, "load_state", lambda _: None)(state["objective"])

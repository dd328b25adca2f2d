"""What is merged and what adaptation may look at; and what scores a curve, at which it may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What is merged, and what adaptation may look at.

    Attributes:
        tasks: names of the tasks.
        task_vectors: theirs [T, D], as the profile's `task_vector_dtype` says.
        inputs: the unlabelled inputs of each: images, uint8 [N, 3, H, W], or tokens, int32 [N, length].
        objective: what adaptation minimises, one of `lib.adaptation.OBJECTIVES`.
        diversity: of information maximisation.
        batch: inputs per task and step.
        corruption: what was done to images, "" for nothing.
        expert_temperature: of "expert-kl".
        confidence: of "expert-labels".
        whole_answers: of texts: objectives from experts look at all tokens of the experts' answers.
    """

    tasks: tuple[str, ...]
    task_vectors: Tensor
    inputs: Mapping[str, Tensor]
    objective: str
    diversity: float
    batch: int
    corruption: str = ""
    expert_temperature: float = 1.0
    confidence: float = 0.0
    whole_answers: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Scores the points of a curve on held-out examples, for the eye only: `adapt(..., evaluate=workspace.held_out())`.

    Attributes:
        accuracy: mean accuracy of a point, theta [D] -> 0 to 1.
        average: the point of plain weight averaging, which adaptation should not fall below.
        scored: what the scores depend on beside the point, for keys.
    """

    accuracy: Callable[[Tensor], float]
    average: Callable[[], Tensor]
    scored: Mapping[str, object]

    def determines(self) -> Mapping[str, object]:
        """What is scored, for keys."""
        return self.scored

    @cached_property
    def averaging(self) -> float:
        """The accuracy of weight averaging."""
        return self.accuracy(self.average())

    def __call__(self, theta: Tensor) -> dict[str, float]:
        """Two columns of the curve."""
        return {"accuracy": self.accuracy(theta), "averaging": self.averaging}

"""What an open study has, whatever the model reads: tasks, experts, their task vectors, scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib.adaptation.objectives import FROM_EXPERTS, PredictionObjective
from lib.files.experts import described
from lib.files.lineages import OWN
from lib.files.weights import say
from lib.fusion import weight_averaging
from lib.runtime.keys import code_of, digest
from lib.runtime.rng import batch_indices
from lib.study.evaluation import accuracies
from lib.study.setting import HeldOut, Setting
from lib.study.study import Study
from lib.vectors.fine_tuning import Expert, fine_tune
from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout
from lib.vectors.mapped import chosen_rows, mapped_rows
from lib.vectors.task_vectors import one_by_one, task_vectors

Table = pd.DataFrame


@dataclass
class Workspace(ABC):
    """The parts of an open study, each made when first asked for and kept; what vision and language have in common.

    Attributes:
        study: profile, seed, folders, device.
        after: take experts as they were after so many steps of fine-tuning, one of the profile's `kept_steps`; 0 takes
            the finished ones. `dataclasses.replace(workspace, after=300)` gives the same study of such experts.
    """

    study: Study
    after: int = field(default=0, kw_only=True)

    def __reduce__(self) -> tuple[Callable[[Study], Workspace], tuple[Study]]:
        """A worker process makes the parts for itself."""
        return partial(type(self), after=self.after), (self.study,)

    @property
    @abstractmethod
    def model(self) -> FlatModel:
        """The parameters that are merged as a point in R^D."""

    @property
    @abstractmethod
    def tasks(self) -> dict[str, object]:
        """The profile's tasks by name, in its order."""

    @property
    @abstractmethod
    def experts(self) -> Mapping[str, dict[str, Tensor]]:
        """Every task's expert as a state dict of what is merged."""

    @abstractmethod
    def inputs(self, split: str, task: str, corruption: str = "") -> Tensor:
        """What the model reads of a split of a task, without labels."""

    @abstractmethod
    def objective(self, setting: Setting | None = None) -> PredictionObjective:
        """What adaptation minimises in a setting, by default that of all tasks."""

    @abstractmethod
    def teachers(self, setting: Setting) -> dict[str, list[Tensor]]:
        """What each task's expert says of the inputs of a setting, as options of the objective: `experts` and the like.

        Predictions are made once and kept in the store.
        """

    @abstractmethod
    def grams(self) -> dict[str, Tensor]:
        """What `regmean` needs of all tasks: Gram matrices of what the layers read, layer name -> [T, in, in]."""

    @abstractmethod
    def calibration(self, tasks: Sequence[str] = ()) -> dict[str, object]:
        """What `featcal` needs of some tasks, by default of all: `groups` of layers, and `moments_at`."""

    @abstractmethod
    def evaluate(self, theta: Tensor, method: str, *splits: str, **where: object) -> Table:
        """Score a point of R^D: rows (method, task, split, seed, accuracy, ...)."""

    @abstractmethod
    def scored(self, tasks: Sequence[str], corruption: str, limit: int) -> dict[str, object]:
        """What held-out scores of a point depend on beside the point, for keys."""

    @abstractmethod
    def training_loss(self, task: str) -> Callable[[nn.Module, int], Tensor]:
        """The loss on training examples of a task, by step."""

    @abstractmethod
    def validation_accuracy(self, task: str) -> Callable[[nn.Module], float]:
        """The score on validation examples of a task, for learning curves."""

    def sample(self, task: str, rows: int) -> Tensor:
        """Some training inputs of a task, on which statistics are taken, the same for all methods; at most all."""
        inputs = self.inputs("train", task)
        return inputs[batch_indices(len(inputs), rows, 0, "statistics", task, self.study.seed)]

    @property
    def trained(self) -> tuple[FlatModel, Tensor]:
        """What is fine-tuned, and from where: here what is merged."""
        return self.model, self.theta0

    def fine_tune(self, task: str) -> Expert:
        """Train the expert of a task in this process, or read what that gave: see `lib.vectors.fine_tune`."""
        budget = self.study.profile
        return self.study.remember(fine_tune)(
            *self.trained, self.training_loss(task), self.validation_accuracy(task),
            task=task, steps=budget.fine_tuning_steps, learning_rate=budget.fine_tuning_rate, keep=budget.kept,
        )  # fmt: skip

    def ready(self) -> None:  # noqa: B027 - nothing to make, unless a subclass says so
        """Make what all experts start from, before processes that train them start."""

    @property
    def layout(self) -> Layout:
        """Where each layer lies in the flat vector."""
        return self.model.layout

    @cached_property
    def theta0(self) -> Tensor:
        """Pre-trained parameters of what is merged [D]."""
        return self.model.initial()

    @cached_property
    def task_vectors(self) -> Tensor:
        """tau_t = theta_t - theta0 of all tasks, in the profile's order [T, D], as its `task_vector_dtype` says.

        In float32 or rounded to bfloat16 on the study's device, or mapped: float32 in a file, on the CPU. They are made
        one by one, so nothing else of their size is. Compute with one of them as `vector.to(theta0)`.

        Of experts that were not trained here, it is said how they compare.
        """
        vectors = self._stacked()
        for line in described(self.theta0, vectors, list(self.tasks)) if self.study.profile.lineage != OWN else ():
            say(line)
        return vectors

    def _stacked(self) -> Tensor:
        kind, start, experts = self.study.profile.task_vector_dtype, self.theta0.cpu(), self.experts
        if kind == "mapped":
            states = [digest(start), *(digest(*state.values()) for state in experts.values())]
            shape = len(experts), self.layout.length
            return mapped_rows(self._vector_files, one_by_one(start, experts.values(), self.layout), shape, states)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
        return task_vectors(start, experts.values(), self.layout, dtype, self.study.runtime.device)

    @property
    def _vector_files(self) -> Path:
        return self.study.cache / "task_vectors"

    def points(self, tasks: Sequence[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Each task's name and its expert theta0 + tau_t [D], one at a time; by default of all tasks."""
        known = list(self.tasks)
        for name in tasks or known:
            yield name, self.theta0 + self.task_vectors[known.index(name)].to(self.theta0)

    def own_buffers(self, task: str) -> dict[str, Mapping[str, Tensor]]:
        """What an expert has beside its parameters, as arguments of `evaluate`: here nothing."""
        return {}

    @property
    def frozen_bytes(self) -> int:
        """What the parts of the model that are not merged take on the device."""
        return 0

    @cached_property
    def _experts_are_there(self) -> bool:
        """True, once all experts have been trained or found in the store."""
        budget = self.study.profile
        self.ready()
        self.study.prepare(self.fine_tune, list(self.tasks), label="fine-tuning", steps=budget.fine_tuning_steps)
        return True

    def expert(self, task: str) -> Expert:
        """The expert of a task, finished or as it was `after` some steps.

        If one is missing, the experts of all tasks that are missing are trained now: see `Study.prepare`.

        Raises:
            ValueError: if it is to be one of an earlier step, which the profile does not keep.
        """
        if self.after and self.after not in self.study.profile.kept:
            raise ValueError(f"no experts of step {self.after} are kept: name it in parameter kept_steps")
        assert self._experts_are_there
        expert = self.fine_tune(task)
        return expert.kept[self.after] if self.after else expert

    def setting(
        self,
        tasks: Sequence[str] = (),
        *,
        corruption: str = "",
        inputs: Mapping[str, Tensor] | None = None,
        scale: float = 1.0,
        objective: str = "entropy",
        diversity: float = 1.0,
        expert_temperature: float = 1.0,
        confidence: float = 0.0,
        whole_answers: bool = False,
        batch: int = 0,
    ) -> Setting:
        """Describe what is merged, and on what adaptation runs.

        Args:
            tasks: names, in any order; () for all.
            corruption: of adaptation images, see `lib.vision.corrupt`.
            inputs: other unlabelled inputs, by task; by default the adaptation split.
            scale: factor on the task vectors.
            objective: one of `lib.adaptation.OBJECTIVES`; "entropy" is the paper's.
            diversity: weight in information maximisation.
            expert_temperature: of "expert-kl".
            confidence: of "expert-labels".
            whole_answers: of texts: objectives from experts look at all tokens of the experts' answers.
            batch: inputs per task and step; 0 for the profile's.

        Raises:
            ValueError: for an unknown task.
        """
        known = list(self.tasks)
        if unknown := [name for name in tasks if name not in known]:
            raise ValueError(f"unknown task '{unknown[0]}'; known: {', '.join(known)}")
        chosen = tuple(tasks) or tuple(known)
        rows = [known.index(name) for name in chosen]
        if inputs is None:
            inputs = {name: self.inputs("adaptation", name, corruption) for name in chosen}
        return Setting(
            chosen,
            chosen_rows(self.task_vectors, rows, self._vector_files, scale),
            {name: inputs[name] for name in chosen},
            objective=objective,
            diversity=diversity,
            batch=batch or self.study.profile.adaptation_batch,
            corruption=corruption,
            expert_temperature=expert_temperature,
            confidence=confidence,
            whole_answers=whole_answers,
        )

    def held_out(self, setting: Setting | None = None) -> HeldOut:
        """What scores the points of a run's curve, on the profile's `curve_size` held-out examples of each task."""
        setting, limit = setting or self.setting(), self.study.profile.curve_size
        where = {"tasks": setting.tasks, "corruption": setting.corruption, "limit": limit}

        def accuracy(theta: Tensor) -> float:
            return accuracies(self.evaluate(theta, "", "test", **where))["accuracy"].mean()

        def average() -> Tensor:
            return weight_averaging(self.theta0, setting.task_vectors, self.layout)

        code = [code_of(kind.__module__) for kind in type(self).__mro__]  # of `evaluate`, and of what it calls
        return HeldOut(accuracy, average, {"code": code, **self.scored(**where)})

    def _objective_options(self, setting: Setting) -> dict[str, object]:
        return {
            "rows_at_once": self.study.profile.micro_batch,
            "batch": setting.batch,
            "seed": self.study.seed,
            "objective": setting.objective,
            "diversity": setting.diversity,
            **(self.teachers(setting) if setting.objective in FROM_EXPERTS else {}),
            "expert_temperature": setting.expert_temperature,
            "confidence": setting.confidence,
            "frozen_bytes": self.frozen_bytes,
        }

"""What an open study has, whatever the model reads: the experts, their task vectors, merging by a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor

from lib import batch_norm, fine_tuning, methods, ranks
from lib.flat_model import FlatModel
from lib.layout import Layout
from lib.mapped import mapped_rows
from lib.methods import Merged, Setting
from lib.objectives import PredictionObjective
from lib.parallel import train_experts
from lib.store import Artifact, Checkpoint, digest
from lib.study import Study
from lib.task_vectors import task_vectors

Table = pd.DataFrame


@dataclass
class BaseWorkspace(ABC):
    """The parts of an open study, each made when first asked for and kept; what vision and language have in common.

    Attributes:
        study: profile, seed, folders, device.
        after: take experts as they were after so many steps of fine-tuning, one of the profile's `kept_steps`; 0 takes
            the finished ones. `dataclasses.replace(workspace, after=300)` gives the same study of such experts.
    """

    study: Study
    after: int = field(default=0, kw_only=True)
    _expert_keys: dict[str, dict[str, object]] = field(default_factory=dict, repr=False, kw_only=True)

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
    def objective(self, setting: Setting, **options: object) -> PredictionObjective:
        """What adaptation minimises in a setting."""

    @abstractmethod
    def evaluate(
        self,
        theta: Tensor,
        method: str,
        *splits: str,
        tasks: Sequence[str] = (),
        corruption: str = "",
        limit: int | None = None,
    ) -> Table:
        """Score a point of R^D: rows (method, task, split, seed, accuracy, ...)."""

    @abstractmethod
    def _expert_key(self, task: str) -> dict[str, object]:
        """Everything that determines the expert of a task."""

    @abstractmethod
    def _fine_tune(self, task: str, **options: object) -> tuple[Tensor, Table]:
        """Train the expert of a task: its parameters and learning curve; see `fine_tuning.fine_tune`."""

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
        """tau_t = theta_t - theta0 of all tasks, in the profile's order [T, D]."""
        device = self.study.runtime.device
        return task_vectors(self.theta0.cpu(), self.experts.values(), self.layout).to(device)

    @cached_property
    def stored_vectors(self) -> Tensor:
        """What adaptation reads of the task vectors [T, D], as the profile's `task_vector_dtype` says.

        Rounded or mapped ones are made one by one: the stack in float32 is then not made unless `task_vectors` is read.
        """
        kind, device = self.study.profile.task_vector_dtype, self.study.runtime.device
        if kind == "fp32":
            return self.task_vectors
        start = self.theta0.cpu()
        each = (task_vectors(start, [self.experts[name]], self.layout)[0] for name in self.tasks)
        shape = (len(self.tasks), self.layout.length)
        if kind == "mapped":
            states = (digest(*self.experts[name].values()) for name in self.tasks)
            return mapped_rows(self.study.cache.parent / "task_vectors", each, shape, [digest(start), *states])
        rounded = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        for row, vector in zip(rounded, each, strict=True):
            row.copy_(vector)
        return rounded

    @property
    def frozen_bytes(self) -> int:
        """What the parts of the model that are not merged take on the device."""
        return 0

    def expert(self, task: str) -> Artifact:
        """The expert of a task: tensor "theta", BatchNorm's running statistics by name, and its learning curve.

        If it is not in the store, the experts of all tasks that are missing are trained now: on a CPU side by side, one
        core each, on an accelerator one after the other, or as many at once as processes run the notebook together.

        Raises:
            ValueError: if it is to be one of an earlier step, which the profile does not keep.
        """
        missing = [name for name in self.tasks if not self.study.store.has("expert", self._key(name))]
        if task in missing and self.study.runtime.device == "cpu":
            if ranks.number() == 0:
                train_experts(type(self), self.study, missing)
        elif task in missing and ranks.count() > 1:
            for name in missing:
                if self._maker(name) == ranks.number():
                    self.make_expert(name)
        if not self.after:
            return self.make_expert(task)
        if self.after not in self.study.profile.kept:
            raise ValueError(f"no experts of step {self.after} are kept: name it in parameter kept_steps")
        if task in missing:
            self.make_expert(task)  # which keeps the unfinished ones on its way
        return self.study.store.get("expert", self._key(task, self.after), _lost, maker=self._maker(task))

    def _maker(self, task: str) -> int:
        """Which of the processes that run the notebook together trains an expert: see `lib.ranks`."""
        return 0 if self.study.runtime.device == "cpu" else list(self.tasks).index(task) % ranks.count()

    def make_expert(self, task: str, on_step: Callable[[], None] = lambda: None) -> Artifact:
        """Fine-tune the expert of a task in this process, or load it if the store has it."""
        maker = self._maker(task)

        def keep(step: int, expert: dict[str, Tensor]) -> None:
            self.study.store.get("expert", self._key(task, step), lambda _: (expert, None), maker=maker)

        def make(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Table]:
            profile = self.study.profile
            options = {"steps": profile.fine_tuning_steps, "learning_rate": profile.fine_tuning_rate}
            options |= {"keep": profile.kept, "on_kept": keep}
            theta, curve = self._fine_tune(task, checkpoint=checkpoint, on_step=on_step, **options)
            return {"theta": theta, **batch_norm.statistics(self.model.module)}, curve

        return self.study.store.get("expert", self._key(task), make, maker=maker)

    def _key(self, task: str, after: int = 0) -> dict[str, object]:
        if after:
            return self._key(task) | {"after": after}
        if task not in self._expert_keys:  # hashing all training examples takes long enough to do it once
            profile = self.study.profile
            self._expert_keys[task] = {
                "version": fine_tuning.VERSION,
                "task": task,
                "seed": self.study.seed,
                "precision": self.study.runtime.precision,
                "steps": profile.fine_tuning_steps,
                "batch": profile.fine_tuning_batch,
                "learning_rate": profile.fine_tuning_rate,
                **({"kept": profile.kept} if profile.kept else {}),
                **self._expert_key(task),
            }
        return self._expert_keys[task]

    def setting(self, tasks: Sequence[str] = (), **options: object) -> Setting:
        """Which tasks are merged and on which unlabelled inputs: see `methods.setting`."""
        return methods.setting(self, tasks, **options)

    def merge(self, method: str, setting: Setting | None = None, **options: object) -> Merged:
        """Merge by a method of this study, adapting where it adapts, or load what that gave: see `methods.merge`."""
        return methods.merge(self, method, setting or self.setting(), **options)


def _lost(checkpoint: Checkpoint) -> NoReturn:
    """What the store calls for an unfinished expert that it does not have."""
    folder = checkpoint.path.parent
    raise FileNotFoundError(f"the expert that was kept at {folder} is gone: delete the finished ones beside it, too")


class OnDemand(Mapping[str, dict[str, Tensor]]):
    """Experts by task, each read anew when asked for: kept, they would take as much memory as the task vectors."""

    def __init__(self, tasks: Sequence[str], read: Callable[[str], dict[str, Tensor]]) -> None:
        self.tasks, self.read = tuple(tasks), read

    def __getitem__(self, task: str) -> dict[str, Tensor]:
        """Read the expert of a task."""
        if task not in self.tasks:
            raise KeyError(task)
        return self.read(task)

    def __iter__(self) -> Iterator[str]:
        """The tasks' names."""
        return iter(self.tasks)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.tasks)

"""What the notebooks share once a study is open: the model, its tasks, the experts, scoring, adaptation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor, nn

from lib import batch_norm, expert_statistics, fine_tuning, methods, published
from lib.backbones import load_backbone
from lib.corruptions import corrupt
from lib.evaluation import evaluate, score
from lib.flat_model import FlatModel
from lib.layout import Layout
from lib.mapped import mapped_rows
from lib.methods import Merged, Setting
from lib.models import (
    Backbone,
    Clip,
    class_mean_head,
    image_features,
    linear_probe_head,
    on_device,
    text_head,
)
from lib.objectives import ImageObjective, PredictionObjective
from lib.parallel import train_experts
from lib.rng import batch_indices, seed_of
from lib.store import Artifact, Checkpoint, digest
from lib.study import Study
from lib.task_vectors import task_vectors
from lib.tasks import Split, Task, load_splits, load_task

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
        core each, on an accelerator one after the other.
        """
        missing = [name for name in self.tasks if not self.study.store.has("expert", self._key(name))]
        if task in missing and self.study.runtime.device == "cpu":
            train_experts(type(self), self.study, missing)
        finished = self.make_expert(task)
        if not self.after:
            return finished
        if self.after not in self.study.profile.kept:
            raise ValueError(f"no experts of step {self.after} are kept: name it in parameter kept_steps")
        return self.study.store.get("expert", self._key(task, self.after), _lost)

    def make_expert(self, task: str, on_step: Callable[[], None] = lambda: None) -> Artifact:
        """Fine-tune the expert of a task in this process, or load it if the store has it."""

        def keep(step: int, expert: dict[str, Tensor]) -> None:
            self.study.store.get("expert", self._key(task, step), lambda _: (expert, None))

        def make(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Table]:
            profile = self.study.profile
            options = {"steps": profile.fine_tuning_steps, "learning_rate": profile.fine_tuning_rate}
            options |= {"keep": profile.kept, "on_kept": keep}
            theta, curve = self._fine_tune(task, checkpoint=checkpoint, on_step=on_step, **options)
            return {"theta": theta, **batch_norm.statistics(self.model.module)}, curve

        return self.study.store.get("expert", self._key(task), make)

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


@dataclass
class Workspace(BaseWorkspace):
    """The parts of a study of image classification, by CLIP or by any other backbone with heads of class means."""

    _splits: dict[str, dict[str, Split]] = field(default_factory=dict, repr=False)
    _corrupted: dict[tuple[str, str, str], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def backbone(self) -> Backbone:
        """The pre-trained model, on the study's device.

        Raises:
            ValueError: if the profile wants heads from text and the model reads none.
        """
        profile = self.study.profile
        backbone = load_backbone(profile.model, profile.pretrained, profile.image_size)
        if profile.head == "text" and not isinstance(backbone, Clip):
            raise ValueError(f"model '{profile.model}' reads no text, so no head comes from it: set head='class-mean'")
        return on_device(backbone, self.study.runtime)

    @property
    def clip(self) -> Clip:
        """The backbone, where it has a text side.

        Raises:
            ValueError: if it has none.
        """
        if not isinstance(self.backbone, Clip):
            raise ValueError(f"model '{self.study.profile.model}' is no CLIP, which is needed here: choose one")
        return self.backbone

    @property
    def frozen_bytes(self) -> int:
        """What a text tower, or a head that is not used, takes on the device."""
        merged = {id(parameter) for parameter in self.backbone.encoder.parameters()}
        return sum(own.nbytes for own in self.backbone.model.parameters() if id(own) not in merged)

    @cached_property
    def model(self) -> FlatModel:
        """The image encoder as a point in R^D."""
        return FlatModel(self.backbone.encoder, self.study.runtime.device)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks by name, in its order."""
        return {name: load_task(name, data_root=self.study.data_root) for name in self.study.profile.task_names}

    def split(self, name: str) -> dict[str, Split]:
        """One split ("train", "validation", "adaptation" or "test") of every task."""
        if name not in self._splits:
            options = {
                "sizes": self.study.profile.sizes,
                "image_size": self.backbone.image_size,
                "data_root": self.study.data_root,
                "cache": self.study.cache,
            }
            self._splits[name] = load_splits(list(self.tasks.values()), name, **options)
        return self._splits[name]

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        """The frozen classification head of every task [C, width], as the profile says: from text or from features.

        They are kept in the store: training processes must start from the same bits, whatever their number of threads.
        """
        self.place(self.theta0, self.model.initial_statistics)
        model = digest(*self.backbone.model.state_dict().values())
        return {name: self._head(task, model) for name, task in self.tasks.items()}

    def _head(self, task: Task, model: str) -> Tensor:
        profile = self.study.profile
        train = self.split("train")[task.name] if profile.head != "text" else None
        determines = {
            "model": model,
            "kind": profile.head,
            "scale": profile.head_scale,
            "classes": list(task.class_names),
            "templates": list(task.templates),
            "images": digest(train.images, train.labels) if train else None,
        }

        def make(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], None]:
            if train is None:
                return {"head": text_head(self.clip, task.class_names, task.templates, profile.head_scale)}, None
            encoder = self.place(self.theta0, self.model.initial_statistics)
            features = image_features(encoder, train.images, self.backbone.preprocess, self.study.runtime)
            of_features = class_mean_head if profile.head == "class-mean" else linear_probe_head
            return {"head": of_features(features, train.labels, len(task.class_names), profile.head_scale)}, None

        return self.study.store.get("head", determines, make).tensors["head"]

    def _expert_key(self, task: str) -> dict[str, object]:
        train, validation = self.split("train")[task], self.split("validation")[task]
        return {
            "start": digest(self.theta0, self.heads[task], *self.model.initial_statistics.values()),
            "images": digest(train.images, train.labels, validation.images, validation.labels),
        }

    def _fine_tune(self, task: str, **options: object) -> tuple[Tensor, Table]:
        train, validation = self.split("train")[task], self.split("validation")[task]
        given = self.backbone.preprocess, self.study.runtime
        batch = {"task": task, "batch": self.study.profile.fine_tuning_batch, "seed": self.study.seed}
        loss_at = fine_tuning.image_loss(self.heads[task], (train.images, train.labels), *given, **batch)

        def accuracy(encoder: nn.Module) -> float:
            features = image_features(encoder, validation.images, *given)
            return score(features, self.heads[task], validation.labels)["accuracy"]

        return fine_tuning.fine_tune(self.model, self.theta0, loss_at, accuracy, task=task, **options)

    def expert(self, task: str) -> Artifact:
        """The expert of a task: tensor "theta" and its learning curve.

        It is trained, or read from where the profile's `experts` says; then its learning curve is empty.
        """
        profile = self.study.profile
        if not profile.experts:
            return super().expert(task)
        published.check_activation(self.clip.visual)
        given = {"lineage": profile.lineage, "model": profile.model}
        state, path = published.load_published(profile.experts, task, self.layout, self.theta0, **given)
        no_curve = pd.DataFrame(columns=list(fine_tuning.CURVE))
        return Artifact({"theta": self.layout.flatten(state)}, no_curve, {"file": str(path)})

    @property
    def experts(self) -> Mapping[str, dict[str, Tensor]]:
        """Every task's expert as a state dict of the image encoder, read when asked for."""
        return OnDemand(tuple(self.tasks), lambda name: self.layout.views(self.expert(name).tensors["theta"]))

    def own_statistics(self, task: str) -> dict[str, Tensor]:
        """BatchNorm's running statistics of the expert of a task; {} without BatchNorm."""
        return {name: tensor for name, tensor in self.expert(task).tensors.items() if name != "theta"}

    def place(
        self,
        theta: Tensor,
        statistics: batch_norm.Statistics | None = None,
        *,
        tasks: Sequence[str] = (),
        corruption: str = "",
    ) -> nn.Module:
        """The encoder at a point of R^D, ready for evaluation (see `lib.batch_norm`; without BatchNorm only moved).

        Args:
            theta: parameters of the image encoder [D].
            statistics: BatchNorm's running statistics; by default they are re-estimated.
            tasks: on unlabelled adaptation images of these tasks; by default all.
            corruption: of those images.
        """
        encoder = self.model.move_to(theta.to(self.study.runtime.device))
        if statistics is None:
            batches = self._mixed_batches(tasks or list(self.tasks), corruption)
            batch_norm.reestimate_batch_norm(encoder, batches)
        else:
            batch_norm.load_statistics(encoder, statistics)
        return encoder.eval()

    def _mixed_batches(self, tasks: Sequence[str], corruption: str) -> Iterator[Tensor]:
        """Inputs with equally many unlabelled images of every task, the same ones whatever is normalised with them."""
        images = {name: self.inputs("adaptation", name, corruption) for name in tasks}
        each, names = max(2, batch_norm.ROWS // len(images)), ("batch norm", self.study.seed)
        for step in range(batch_norm.BATCHES):
            rows = [own[batch_indices(len(own), each, step, *names, name)] for name, own in images.items()]
            yield self.backbone.preprocess(torch.cat(rows).to(self.study.runtime.device))

    def images(self, split: str, task: str, corruption: str = "") -> Tensor:
        """The images of a split of a task, uint8 [N, 3, H, W], as they are or corrupted (see `lib.corruptions`)."""
        clean = self.split(split)[task].images
        if not corruption:
            return clean
        if (split, task, corruption) not in self._corrupted:
            seed = seed_of(task, split, self.study.seed)
            self._corrupted[split, task, corruption] = corrupt(clean, corruption, seed=seed)
        return self._corrupted[split, task, corruption]

    def inputs(self, split: str, task: str, corruption: str = "") -> Tensor:
        """The images of a split of a task."""
        return self.images(split, task, corruption)

    def objective(self, setting: Setting, **options: object) -> ImageObjective:
        """What adaptation minimises in a setting."""
        heads = [self.heads[name] for name in setting.tasks]
        images = list(setting.inputs.values())
        return ImageObjective(self.model, heads, images, self.backbone.preprocess, self.study.runtime, **options)

    def evaluate(
        self,
        theta: Tensor,
        method: str,
        *splits: str,
        tasks: Sequence[str] = (),
        corruption: str = "",
        limit: int | None = None,
        statistics: batch_norm.Statistics | None = None,
    ) -> Table:
        """Score a point of R^D: rows (method, task, split, seed, accuracy, loss, n).

        Args:
            theta: parameters of the image encoder [D].
            method: value of that column.
            splits: which splits; by default the held-out "test".
            tasks: which tasks; by default all.
            corruption: of the images, see `lib.corruptions`; "" for none.
            limit: at most so many images per task.
            statistics: BatchNorm's running statistics, such as `own_statistics` of an expert; by default they are
                re-estimated at theta on the adaptation images of the tasks scored, which is the rule for merged models.
        """
        heads, tables = self.heads, []  # heads first: making them moves the model
        self.place(theta, statistics, tasks=tasks, corruption=corruption)
        for split in splits or ("test",):
            parts = {
                name: (self.images(split, name, corruption)[:limit], self.split(split)[name].labels[:limit])
                for name in tasks or self.tasks
            }
            tables.append(
                evaluate(
                    theta.to(self.study.runtime.device),
                    self.model,
                    heads,
                    parts,
                    self.backbone.preprocess,
                    self.study.runtime,
                    method=method,
                    split=split,
                    seed=self.study.seed,
                )
            )
        return pd.concat(tables, ignore_index=True)

    def fisher(self, *, images: int = 128, signs: int = 1, labelled: bool = False) -> Tensor:
        """What `fusion.fisher_merging` needs [T, D]: see `expert_statistics.fisher`."""
        return expert_statistics.fisher(self, images=images, signs=signs, labelled=labelled)

    def grams(self, *, images: int = 256) -> dict[str, Tensor]:
        """What `fusion.regmean` needs, layer name -> [T, in, in]: see `expert_statistics.grams`."""
        return expert_statistics.grams(self, images=images)

    def merged_inputs(self, *, images: int = 128) -> dict[str, object]:
        """The keyword arguments that `fusion.regmean_plus_plus` needs: see `expert_statistics.merged_inputs`."""
        return expert_statistics.merged_inputs(self, images=images)

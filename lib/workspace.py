"""What the notebooks on vision share once a study is open: the backbone, its tasks, heads, experts, scoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from lib import batch_norm, expert_statistics, fine_tuning, published
from lib.backbones import load_backbone
from lib.base_workspace import BaseWorkspace, OnDemand, Table
from lib.corruptions import corrupt
from lib.evaluation import evaluate, score
from lib.flat_model import FlatModel
from lib.methods import Setting
from lib.models import (
    Backbone,
    Clip,
    class_mean_head,
    image_features,
    linear_probe_head,
    on_device,
    text_head,
)
from lib.objectives import ImageObjective
from lib.rng import batch_indices, seed_of
from lib.store import Artifact, Checkpoint, digest
from lib.tasks import Split, Task, load_splits, load_task


@dataclass
class Workspace(BaseWorkspace):
    """The parts of a study of image classification, by CLIP or by any other backbone with heads of class means."""

    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)
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

    @property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks by name, in its order."""
        if not self._tasks:
            names = self.study.profile.task_names
            self._tasks.update((name, load_task(name, data_root=self.study.data_root)) for name in names)
        return self._tasks

    def with_head(self, kind: str) -> Workspace:
        """The same study on the same images with heads of another kind: see the profile's `head`."""
        study = replace(self.study, profile=replace(self.study.profile, head=kind))
        return replace(self, study=study, _expert_keys={})

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

        Raises:
            ValueError: if it is to be one of an earlier step, and is not kept or not trained here.
        """
        profile = self.study.profile
        if not profile.experts:
            return super().expert(task)
        if self.after:
            raise ValueError("published experts are finished ones: leave experts or kept_steps out")
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

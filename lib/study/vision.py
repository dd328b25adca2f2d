"""What the notebooks on vision share once a study is open: the backbone, its tasks, heads, experts, scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from lib.files.experts import activation_of, classifier_of, load_published, opened
from lib.files.weights import OnDemand
from lib.fusion.activations import layer_groups, read_moments
from lib.runtime.keys import Known, digest
from lib.runtime.rng import batch_indices, seed_of
from lib.study.evaluation import COLUMNS
from lib.study.setting import Setting
from lib.study.workspace import Table, Workspace
from lib.vectors import batch_norm
from lib.vectors.fine_tuning import Expert
from lib.vectors.flat_model import FlatModel
from lib.vision.activations import diagonal_fisher, image_calls, input_grams
from lib.vision.backbones import load_backbone
from lib.vision.heads import feature_head, text_head
from lib.vision.models import Backbone, Clip, on_device
from lib.vision.objective import ImageObjective, image_logits
from lib.vision.scoring import raw_features, score
from lib.vision.tasks import Split, Task, corrupt, load_splits, load_task
from lib.vision.training import image_accuracy, image_loss


@dataclass
class VisionWorkspace(Workspace):
    """The parts of a study of image classification, by CLIP or by any other backbone with heads of its own."""

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
        if isinstance(self.backbone, Clip):
            return self.backbone
        raise ValueError(f"model '{self.study.profile.model}' is no CLIP, which is needed here: choose one")

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
            profile, root = self.study.profile, self.study.data_root
            columns = profile.image_column, profile.label_column
            self._tasks |= {name: load_task(name, data_root=root, columns=columns) for name in profile.task_names}
        return self._tasks

    def with_head(self, kind: str) -> VisionWorkspace:
        """The same study on the same images with heads of another kind: see the profile's `head`."""
        if kind == self.study.profile.head:
            return self
        return replace(self, study=replace(self.study, profile=replace(self.study.profile, head=kind)))

    def split(self, name: str) -> dict[str, Split]:
        """One split ("train", "validation", "adaptation" or "test") of every task."""
        if name not in self._splits:
            options = {"sizes": self.study.profile.sizes, "image_size": self.backbone.image_size}
            options |= {"data_root": self.study.data_root, "cache": self.study.cache / "images"}
            self._splits[name] = load_splits(list(self.tasks.values()), name, **options)
        return self._splits[name]

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        """The frozen classification head of every task, as the profile says: see `lib.vision.scoring.logits_of`.

        They are kept in the store: training processes must start from the same bits, whatever their number of threads.
        """
        self.place(self.theta0, self.model.initial_statistics)
        return {name: self._head(task).cpu() for name, task in self.tasks.items()}

    def _head(self, task: Task) -> Tensor:
        profile = self.study.profile
        if profile.head == "text":
            return self.study.remember(text_head)(self.clip, task.class_names, task.templates, profile.head_scale)
        if profile.head == "expert":
            image = self.inputs("test", task.name)[:1], self.backbone.preprocess, self.study.runtime
            shape = len(task.class_names), raw_features(self.backbone.encoder, *image).shape[1]
            return classifier_of(opened(profile.experts, task.name, profile.lineage), self.layout.names, shape)
        train, classes = self.split("train")[task.name], len(task.class_names)
        given = profile.head, self.backbone, train.images, train.labels, classes, profile.head_scale
        return self.study.remember(feature_head)(*given, self.study.runtime)

    def ready(self) -> None:
        """Make the heads."""
        assert self.heads

    def training_loss(self, task: str) -> Callable[[nn.Module, int], Tensor]:
        """Cross-entropy on training images of a task, by step: see `lib.vision.training.image_loss`."""
        train, names = self.split("train")[task], {"task": task, "seed": self.study.seed}
        given = self.heads[task], (train.images, train.labels), self.backbone.preprocess, self.study.runtime
        return image_loss(*given, batch=self.study.profile.fine_tuning_batch, **names)

    def validation_accuracy(self, task: str) -> Callable[[nn.Module], float]:
        """Accuracy on validation images of a task."""
        held_out, same = self.split("validation")[task], (self.backbone.preprocess, self.study.runtime)
        return image_accuracy(self.heads[task], (held_out.images, held_out.labels), *same)

    def expert(self, task: str) -> Expert:
        """The expert of a task, trained, or read from where the profile's `experts` says, without curve."""
        profile = self.study.profile
        if not profile.experts:
            return super().expert(task)
        if self.after:
            raise ValueError("published experts are finished ones: leave experts or kept_steps out")
        about = {"lineage": profile.lineage, "model": profile.model, "activation": activation_of(self.backbone.encoder)}
        before = self.model.initial_statistics
        state, _ = load_published(profile.experts, task, self.layout, self.theta0, statistics=before, **about)
        return Expert(statistics={name: state.pop(name) for name in before}, theta=self.layout.flatten(state))

    @property
    def experts(self) -> Mapping[str, dict[str, Tensor]]:
        """Every task's expert as a state dict of the image encoder, read when asked for."""
        return OnDemand(tuple(self.tasks), lambda name: self.layout.views(self.expert(name).theta.cpu()))

    def place(
        self,
        theta: Tensor,
        statistics: batch_norm.Statistics | None = None,
        *,
        tasks: Sequence[str] = (),
        corruption: str = "",
    ) -> nn.Module:
        """The encoder at a point of R^D, ready for evaluation; without BatchNorm it is only moved.

        Args:
            theta: parameters of the image encoder [D].
            statistics: BatchNorm's running statistics; by default they are re-estimated.
            tasks: on unlabelled adaptation images of these tasks; by default all.
            corruption: of those images.
        """
        encoder = self.model.move_to(theta.to(self.study.runtime.device))
        if statistics is None:
            batch_norm.reestimate_batch_norm(encoder, self.mixed_batches(tasks, corruption))
        else:
            batch_norm.load_statistics(encoder, statistics)
        return encoder.eval()

    def mixed_batches(self, tasks: Sequence[str] = (), corruption: str = "") -> Iterator[Tensor]:
        """Inputs with equally many unlabelled images of every task, the same ones whatever is normalised with them."""
        images = {name: self.inputs("adaptation", name, corruption) for name in tasks or self.tasks}
        each, names = max(2, batch_norm.ROWS // len(images)), ("batch norm", self.study.seed)
        for step in range(batch_norm.BATCHES):
            rows = [own[batch_indices(len(own), each, step, *names, name)] for name, own in images.items()]
            yield self.backbone.preprocess(torch.cat(rows).to(self.study.runtime.device))

    def inputs(self, split: str, task: str, corruption: str = "") -> Tensor:
        """The images of a split of a task, uint8 [N, 3, H, W], as they are or corrupted by `lib.vision.corrupt`."""
        clean = self.split(split)[task].images
        if not corruption:
            return clean
        if (split, task, corruption) not in self._corrupted:
            for other in [place for place in self._corrupted if place[-1] != corruption]:
                del self._corrupted[other]  # those of one corruption at a time are kept: gigabytes at 224 pixels
            seed = seed_of(task, split, self.study.seed)
            self._corrupted[split, task, corruption] = corrupt(clean, corruption, seed=seed)
        return self._corrupted[split, task, corruption]

    def objective(self, setting: Setting | None = None) -> ImageObjective:
        """What adaptation minimises in a setting, by default that of all tasks."""
        setting, same = setting or self.setting(), (self.backbone.preprocess, self.study.runtime)
        heads, images = [self.heads[name] for name in setting.tasks], list(setting.inputs.values())
        return ImageObjective(self.model, heads, images, *same, **self._objective_options(setting))

    def teachers(self, setting: Setting) -> dict[str, list[Tensor]]:
        """`experts`: each task's expert's logits on the inputs of a setting [N_t, C_t], on the CPU."""
        call, same = self.study.remember(image_logits), (self.backbone.preprocess, self.study.runtime)
        found = []
        for task, theta in self.points(setting.tasks):
            given = self.model, theta, self.heads[task], setting.inputs[task], *same
            found.append(call(*given, self.statistics_of(task)).cpu())
        return {"experts": found}

    def scored(self, tasks: Sequence[str], corruption: str, limit: int) -> dict[str, object]:
        """What held-out scores of a point depend on beside the point, for keys."""
        images = {name: digest(self.inputs("test", name, corruption)) for name in tasks}
        labels = {name: digest(self.split("test")[name].labels) for name in tasks}
        heads = digest(*(self.heads[name] for name in tasks))
        found = {"limit": limit, "images": images, "labels": labels, "heads": heads}
        if batch_norm.batch_norms(self.model.module):  # statistics are re-estimated on these
            found["re-estimated on"] = {name: digest(self.inputs("adaptation", name, corruption)) for name in tasks}
        return found | {"model": self.model, "preprocess": self.backbone.preprocess, "runtime": self.study.runtime}

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
            corruption: of the images, see `lib.vision.corrupt`; "" for none.
            limit: at most so many images per task.
            statistics: BatchNorm's, such as an expert's own; by default re-estimated at theta on the adaptation images
                of the tasks scored, which is the rule for merged models.
        """
        heads, rows = self.heads, []  # heads first: making them moves the model
        encoder = self.place(theta, statistics, tasks=tasks, corruption=corruption)
        for split in splits or ("test",):
            for name in tasks or self.tasks:
                images, labels = self.inputs(split, name, corruption)[:limit], self.split(split)[name].labels[:limit]
                features = raw_features(encoder, images, self.backbone.preprocess, self.study.runtime)
                scores = score(features, heads[name], labels)
                rows.append({"method": method, "task": name, "split": split, "seed": self.study.seed, **scores})
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def statistics_of(self, task: str) -> batch_norm.Statistics:
        """An expert's running statistics; where there is no BatchNorm, it is not read for them."""
        return self.expert(task).statistics if batch_norm.batch_norms(self.model.module) else {}

    def own_buffers(self, task: str) -> dict[str, batch_norm.Statistics]:
        """An expert's own running statistics, as an argument of `evaluate`."""
        return {"statistics": self.statistics_of(task)}

    def fisher(self, *, images: int = 128, signs: int = 1) -> Tensor:
        """Diagonal Fisher information of every expert on training images of its task [T, D]: see `diagonal_fisher`."""
        found, call = [], self.study.remember(diagonal_fisher)
        for task, theta in self.points():
            given = self.model, theta, self.heads[task], self.sample(task, images), self.backbone.preprocess
            found.append(call(*given, signs=signs, seed=self.study.seed, statistics=self.statistics_of(task)))
        return torch.stack(found).to(self.theta0)

    def grams(self, *, images: int = 256) -> dict[str, Tensor]:
        """Gram matrices of what linear layers read under every expert, on training images: name -> [T, in, in]."""
        found, call, same = [], self.study.remember(input_grams), (self.backbone.preprocess, self.study.runtime)
        for task, theta in self.points():
            given = self.model, theta, self.sample(task, images), *same
            found.append(call(*given, statistics=self.statistics_of(task)))
        return {name: torch.stack([own[name].cpu() for own in found]) for name in found[0]}

    def merged_inputs(self, *, images: int = 128) -> dict[str, object]:
        """What `regmean_plus_plus` needs on as many images per task: `groups` of layers, and `grams_at`."""
        pixels = [self.sample(task, images) for task in self.tasks]

        def grams_at(task: int, theta: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
            if batch_norm.batch_norms(self.model.module):
                self.place(theta)
            given = self.model, theta, pixels[task], self.backbone.preprocess, self.study.runtime
            return input_grams(*given, layers=layers)

        return {"groups": layer_groups(self.model), "grams_at": grams_at}

    def calibration(self, tasks: Sequence[str] = (), *, images: int = 256) -> dict[str, object]:
        """What `featcal` needs on as many training images per task: `groups` of layers, and `moments_at`."""
        given = [(self.sample(task, images), self.statistics_of(task)) for task in tasks or self.tasks]

        def moments_at(task: int, merged: Tensor, expert: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
            pixels, own = given[task]
            buffers = batch_norm.statistics(self.place(merged)) if own else {}, own
            given_to = image_calls(pixels, self.backbone.preprocess, merged), self.study.runtime
            return read_moments(self.model, (merged, expert), *given_to, layers=layers, buffers=buffers)

        known = {"given": given, "read with": [self.model, self.backbone.preprocess, self.study.runtime]}
        return {"groups": layer_groups(self.model), "moments_at": Known(moments_at, known)}

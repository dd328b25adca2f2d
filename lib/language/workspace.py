"""The workspace of a study of text-to-text tasks by T5 with LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor, nn

from lib import fine_tuning
from lib.base_workspace import BaseWorkspace
from lib.device import Runtime
from lib.evaluation import COLUMNS
from lib.flat_model import FlatModel
from lib.language import statistics
from lib.language.examples import Examples, load_examples
from lib.language.lora import attach, load_adapter, save_adapter, sharing_copy, weight_change
from lib.language.objective import TokenObjective, model_inputs
from lib.language.registry import TextTask, text_task
from lib.language.scoring import score
from lib.language.t5 import T5, load_t5
from lib.language.tokens import IGNORED, Tokens, tokenise
from lib.methods import Setting
from lib.rng import batch_indices, seed_of
from lib.store import Artifact, digest

Table = pd.DataFrame
GRADES = 6  # a graded task's answers begin with one of the digits 0 to 5


@dataclass
class LanguageWorkspace(BaseWorkspace):
    """The parts of a study of text-to-text tasks.

    What is merged is, as the profile says, the adapted weights of T5 or the parameters of its adapters; see
    `lib.language.lora`.
    """

    _examples: dict[tuple[str, str], Examples] = field(default_factory=dict, repr=False)
    _tokens: dict[tuple[str, str], Tokens] = field(default_factory=dict, repr=False)

    @cached_property
    def t5(self) -> T5:
        """The pre-trained model and its tokenizer."""
        return load_t5(self.study.profile.model)

    @cached_property
    def adapted(self) -> PeftModel:
        """The model with a fresh adapter, which is what experts are trained from."""
        profile = self.study.profile
        return attach(
            self.t5.model,
            targets=profile.lora_targets.split(),
            dropout=profile.lora_dropout,
            seed=self.study.seed,
            **self.lora,
        )

    @property
    def lora(self) -> dict[str, int]:
        """Rank and alpha."""
        return {"rank": self.study.profile.lora_rank, "alpha": self.study.profile.lora_alpha}

    @cached_property
    def _adapter(self) -> tuple[FlatModel, Tensor]:
        names = [name for name, parameter in self.adapted.named_parameters() if parameter.requires_grad]
        model = FlatModel(self.adapted, self.study.runtime.device, names=names)
        return model, model.initial()  # read at once, before anything moves the model

    @cached_property
    def _weights(self) -> tuple[FlatModel, Tensor]:
        names = weight_change(self.adapter_model.layout.views(self.adapter0), **self.lora)
        module = sharing_copy(self.t5.model, names)
        for name in names:
            module.get_parameter(name).requires_grad_()
        model = FlatModel(module, self.study.runtime.device, names=list(names))
        return model, model.initial()

    @property
    def adapter_model(self) -> FlatModel:
        """The adapters' parameters as a point of a space of their own: where experts are trained."""
        return self._adapter[0]

    @property
    def adapter0(self) -> Tensor:
        """The fresh adapter that all experts start from."""
        return self._adapter[1]

    @property
    def theta0(self) -> Tensor:
        """Pre-trained parameters of what is merged [D]; of adapters, the fresh one."""
        return self.adapter0 if self.study.profile.task_vector == "adapter" else self._weights[1]

    @property
    def model(self) -> FlatModel:
        """What is merged, as the profile's `task_vector` says: adapted weights, or the adapters' parameters."""
        return self.adapter_model if self.study.profile.task_vector == "adapter" else self._weights[0]

    @cached_property
    def tasks(self) -> dict[str, TextTask]:
        """The profile's tasks by name, in its order."""
        return {name: text_task(name) for name in self.study.profile.task_names}

    def examples(self, split: str, task: str) -> Examples:
        """Prompts and targets of a split of a task."""
        if (split, task) not in self._examples:
            sizes, root = self.study.profile.sizes, self.study.data_root
            self._examples[split, task] = load_examples(self.tasks[task], split, sizes=sizes, data_root=root)
        return self._examples[split, task]

    def tokens(self, split: str, task: str) -> Tokens:
        """The same as token numbers."""
        if (split, task) not in self._tokens:
            length, cache = self.study.profile.max_length, self.study.cache.parent
            examples = self.examples(split, task)
            self._tokens[split, task] = tokenise(examples, self.t5.tokenizer, max_length=length, cache=cache)
        return self._tokens[split, task]

    def inputs(self, split: str, task: str, corruption: str = "") -> Tensor:
        """The prompts of a split of a task, int32 [N, L].

        Raises:
            ValueError: if a corruption is asked for: there are none of texts.
        """
        if corruption:
            raise ValueError(f"corruption '{corruption}' is one of images; texts have none")
        return self.tokens(split, task).inputs

    def objective(self, setting: Setting, **options: object) -> TokenObjective:
        """What adaptation minimises in a setting."""
        classes = [len(self.tasks[name].words) or GRADES for name in setting.tasks]
        return TokenObjective(self.model, list(setting.inputs.values()), classes, self.study.runtime, **options)

    def _expert_key(self, task: str) -> dict[str, object]:
        train, validation = self.tokens("train", task), self.tokens("validation", task)
        profile = self.study.profile
        return {
            "start": digest(self.adapter0, *self.t5.model.state_dict().values()),
            "texts": digest(train.inputs, train.targets, validation.inputs, validation.targets),
            "lora": [profile.lora_rank, profile.lora_alpha, profile.lora_targets, profile.lora_dropout],
        }

    def _fine_tune(self, task: str, **options: object) -> tuple[Tensor, Table]:
        profile, runtime = self.study.profile, self.study.runtime
        train, seed = self.tokens("train", task), self.study.seed

        def loss_at(module: nn.Module, step: int) -> Tensor:
            rows = batch_indices(len(train.inputs), profile.fine_tuning_batch, step, "fine-tuning", task, seed)
            inputs = model_inputs(train.inputs[rows], runtime.device)
            with torch.random.fork_rng(), runtime.autocast():
                torch.manual_seed(seed_of("dropout", task, seed, step))  # so that a continued run drops the same
                return module(**inputs, labels=train.targets[rows].long().to(runtime.device)).loss.float()

        def accuracy(module: nn.Module) -> float:
            prompts, examples = self.inputs("validation", task), self.examples("validation", task)
            answers = generate(module, self.t5, prompts, runtime, self._answer_length(task))
            return score(self.tasks[task], answers, examples.targets)["accuracy"]

        return fine_tuning.fine_tune(self.adapter_model, self.adapter0, loss_at, accuracy, task=task, **options)

    def expert(self, task: str) -> Artifact:
        """The expert of a task: tensor "theta", an adapter's parameters, and its learning curve.

        It is trained, or read from where the profile's `adapters` says.
        """
        if not self.study.profile.adapters:
            return super().expert(task)
        tensors = load_adapter(self.study.profile.adapters.format(task=task), self.adapted)
        return Artifact({"theta": self.adapter_model.layout.flatten(tensors)}, None, {})

    @cached_property
    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """Every task's expert as an adapter: peft's names -> tensors."""
        return {name: self.adapter_model.layout.views(self.expert(name).tensors["theta"]) for name in self.tasks}

    def save_adapter(self, task: str, folder: Path) -> Path:
        """Write a task's expert as an ordinary peft adapter."""
        return save_adapter(self.adapted, self.adapters[task], folder)

    @cached_property
    def experts(self) -> dict[str, dict[str, Tensor]]:
        """Every task's expert as a state dict of what is merged."""
        start = self.layout.views(self.theta0.cpu())
        if self.study.profile.task_vector == "adapter":
            return self.adapters
        changes = {name: weight_change(adapter, **self.lora) for name, adapter in self.adapters.items()}
        return {
            name: {layer: start[layer] + part for layer, part in change.items()} for name, change in changes.items()
        }

    def _answer_length(self, task: str) -> int:
        """Tokens that the longest answer takes, its end included."""
        targets = self.t5.tokenizer(list(self.tasks[task].words) or ["0.0", "5.0"]).input_ids
        return max(map(len, targets))

    def evaluate(
        self,
        theta: Tensor,
        method: str,
        *splits: str,
        tasks: Sequence[str] = (),
        corruption: str = "",
        limit: int | None = None,
    ) -> Table:
        """Let the model at a point of R^D answer, and score the answers.

        Args:
            theta: what is merged [D].
            method: value of that column.
            splits: which splits; by default the held-out "test".
            tasks: which tasks; by default all.
            corruption: must be "": there are none of texts.
            limit: at most so many examples per task.

        Returns:
            Rows (method, task, split, seed, accuracy, loss, n, invalid): accuracy of a graded task is Spearman's rho;
            loss is the mean cross-entropy of the target's tokens in nats; invalid the share of answers that are none
            of the task's label words (or no number).
        """
        module, rows = self.model.move_to(theta.to(self.study.runtime.device)).eval(), []
        for split in splits or ("test",):
            for name in tasks or self.tasks:
                prompts, targets = self.inputs(split, name, corruption)[:limit], self.examples(split, name).targets
                wanted, length = self.tokens(split, name).targets[:limit], self._answer_length(name)
                answers, loss = respond(module, self.t5, prompts, wanted, self.study.runtime, length)
                scores = score(self.tasks[name], answers, targets[: len(prompts)]) | {"loss": loss}
                rows.append({"method": method, "task": name, "split": split, "seed": self.study.seed, **scores})
        return pd.DataFrame(rows)[[*COLUMNS, "invalid"]]

    def fisher(self, *, texts: int = 64, signs: int = 1) -> Tensor:
        """What `fusion.fisher_merging` needs [T, D]: see `statistics.fisher`."""
        return statistics.fisher(self, texts=texts, signs=signs)

    def grams(self, *, texts: int = 256) -> dict[str, Tensor]:
        """What `fusion.regmean` needs, layer name -> [T, in, in]: see `statistics.grams`."""
        return statistics.grams(self, texts=texts)


def in_batches(rows: Tensor, size: int, read: Callable[[Tensor], list]) -> list:
    """`read(numbers of rows)` batch by batch, similar lengths together; results in the order of the rows.

    Args:
        rows: int32 [N, L], padded with 0.
        size: rows per batch.
        read: takes int64 [B], returns B results.
    """
    order = (rows != 0).sum(1).argsort(stable=True)
    results = [result for batch in order.split(size) for result in read(batch)]
    return [result for _, result in sorted(zip(order.tolist(), results, strict=True), key=lambda pair: pair[0])]


@torch.no_grad()
def generate(module: nn.Module, t5: T5, prompts: Tensor, runtime: Runtime, length: int, batch: int = 128) -> list[str]:
    """The model's answers by greedy decoding.

    Args:
        module: T5, with or without an adapter.
        t5: holds the tokenizer.
        prompts: int32 [N, L].
        runtime: device and precision.
        length: tokens of an answer at most; longer answers are cut.
        batch: prompts at a time.
    """

    def answer(rows: Tensor) -> list[str]:
        with runtime.autocast():
            found = module.generate(
                **model_inputs(prompts[rows], runtime.device), max_new_tokens=length, do_sample=False, num_beams=1
            )
        return t5.tokenizer.batch_decode(found, skip_special_tokens=True)

    return in_batches(prompts, batch, answer)


@torch.no_grad()
def respond(
    module: nn.Module, t5: T5, prompts: Tensor, targets: Tensor, runtime: Runtime, length: int, batch: int = 128
) -> tuple[list[str], float]:
    """The answers as in `generate`, and how far the model was from the targets; prompts are read once for both.

    Args:
        module: T5, with or without an adapter.
        t5: holds the tokenizer.
        prompts: int32 [N, L].
        targets: int32 [N, M], padded with -100.
        runtime: device and precision.
        length: tokens of an answer at most; longer answers are cut.
        batch: prompts at a time.

    Returns:
        N answers, and the mean cross-entropy (nats) of the targets' tokens: of each target the mean over its own,
        then over targets.
    """

    def answer(rows: Tensor) -> list[tuple[str, float]]:
        inputs, labels = model_inputs(prompts[rows], runtime.device), targets[rows].long().to(runtime.device)
        with runtime.autocast():
            read = {"encoder_outputs": module.get_encoder()(**inputs), "attention_mask": inputs["attention_mask"]}
            found = module.generate(**read, max_new_tokens=length, do_sample=False, num_beams=1)
            logits = module(**read, labels=labels).logits.float()
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        losses = each.sum(1) / (labels != IGNORED).sum(1)
        return list(zip(t5.tokenizer.batch_decode(found, skip_special_tokens=True), losses.tolist(), strict=True))

    answers, losses = zip(*in_batches(prompts, batch, answer), strict=True)
    return list(answers), sum(losses) / len(losses)

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

from lib.files.lineages import locate
from lib.files.weights import say
from lib.fusion.activations import layer_groups, read_moments
from lib.language.activations import diagonal_fisher, prompt_calls, prompt_grams
from lib.language.examples import Examples, load_examples
from lib.language.generation import answer_length, respond
from lib.language.lora import (
    attach,
    check_same_start,
    load_adapter,
    merged_weights,
    save_adapter,
    sharing_copy,
    weight_change,
)
from lib.language.objective import TokenObjective, expert_answers
from lib.language.registry import TextTask, text_task
from lib.language.scoring import score
from lib.language.t5 import T5, load_t5
from lib.language.tokens import Tokenizer, Tokens, tokenise
from lib.language.training import answer_accuracy, token_loss
from lib.runtime.keys import Known, digest
from lib.study.evaluation import COLUMNS
from lib.study.setting import Setting
from lib.study.workspace import Table, Workspace
from lib.vectors.fine_tuning import Expert
from lib.vectors.flat_model import FlatModel

GRADES = 6  # a graded task's answers begin with one of the digits 0 to 5


@dataclass
class LanguageWorkspace(Workspace):
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
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, for texts and their token numbers."""
        return Tokenizer(self.t5.tokenizer)

    @cached_property
    def adapted(self) -> PeftModel:
        """The model with a fresh adapter, which is what experts are trained from."""
        targets, dropout = self.study.profile.lora_targets.split(), self.study.profile.lora_dropout
        return attach(self.t5.model, targets=targets, dropout=dropout, seed=self.study.seed, **self.lora)

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
        if self.study.profile.adapters:
            changed = {name for weights in self._finished.values() for name in weights}
            names = [name for name, _ in self.t5.model.named_parameters() if name in changed]
        module = sharing_copy(self.t5.model, names)
        for name in names:
            module.get_parameter(name).requires_grad_()
        model = FlatModel(module, self.study.runtime.device, names=list(names))
        return model, model.initial()

    @cached_property
    def _finished(self) -> dict[str, dict[str, Tensor]]:
        """The weights that finished experts change, by task."""
        return {task: merged_weights(self._place(task), self.t5.model) for task in self.tasks}

    def _place(self, task: str) -> Path | str:
        return locate("adapters", self.study.profile.adapters, self.study.profile.lineage, task)

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
            where = {"sizes": self.study.profile.sizes, "data_root": self.study.data_root}
            self._examples[split, task] = load_examples(self.tasks[task], split, **where)
        return self._examples[split, task]

    def tokens(self, split: str, task: str) -> Tokens:
        """The same as token numbers."""
        if (split, task) not in self._tokens:
            given, length = (self.examples(split, task), self.tokenizer), self.study.profile.max_length
            self._tokens[split, task] = self.study.remember(tokenise)(*given, max_length=length)
        return self._tokens[split, task]

    def inputs(self, split: str, task: str, corruption: str = "") -> Tensor:
        """The prompts of a split of a task, int32 [N, L].

        Raises:
            ValueError: if a corruption is asked for: there are none of texts.
        """
        if corruption:
            raise ValueError(f"corruption '{corruption}' is one of images; texts have none")
        return self.tokens(split, task).inputs

    def objective(self, setting: Setting | None = None) -> TokenObjective:
        """What adaptation minimises in a setting, by default that of all tasks."""
        setting = setting or self.setting()
        classes = [len(self.tasks[name].words) or GRADES for name in setting.tasks]
        given = self.model, list(setting.inputs.values()), classes, self.study.runtime
        return TokenObjective(*given, **self._objective_options(setting))

    def teachers(self, setting: Setting) -> dict[str, list[Tensor]]:
        """`experts`: each task's expert's logits of the first token [N_t, V], on the CPU.

        Of whole answers, those of each token [N_t, A, V], and `answers`: see `lib.language.objective.expert_answers`.
        """
        found, call = [], self.study.remember(expert_answers)
        for task, theta in self.points(setting.tasks):
            length = answer_length(self.tasks[task], self.tokenizer) if setting.whole_answers else 1
            found.append(call(self.model, theta, setting.inputs[task], self.study.runtime, length))
        answers, logits = ([own.cpu() for own in every] for every in zip(*found, strict=True))
        whole = {"experts": logits, "answers": answers}
        return whole if setting.whole_answers else {"experts": [x[:, 0] for x in logits]}

    def scored(self, tasks: Sequence[str], corruption: str, limit: int) -> dict[str, object]:
        """What held-out scores of a point depend on beside the point, for keys."""
        tokens = {name: digest(self.inputs("test", name, corruption)) for name in tasks}
        targets = {name: self.examples("test", name).targets for name in tasks}
        found = {"prompts": tokens, "targets": targets, "tasks": [self.tasks[name] for name in tasks]}
        return found | {"limit": limit, "model": self.model, "runtime": self.study.runtime}

    def training_loss(self, task: str) -> Callable[[nn.Module, int], Tensor]:
        """Cross-entropy on training texts of a task, by step: see `lib.language.training.token_loss`."""
        batch, seed = self.study.profile.fine_tuning_batch, self.study.seed
        return token_loss(self.tokens("train", task), self.study.runtime, task=task, batch=batch, seed=seed)

    def validation_accuracy(self, task: str) -> Callable[[nn.Module], float]:
        """Score of the answers to validation texts of a task."""
        prompts, targets = self.inputs("validation", task), self.examples("validation", task).targets
        return answer_accuracy(self.tasks[task], self.tokenizer, prompts, targets, self.study.runtime)

    @property
    def trained(self) -> tuple[FlatModel, Tensor]:
        """What is fine-tuned, and from where: the adapters' parameters, whatever is merged."""
        return self._adapter

    def expert(self, task: str) -> Expert:
        """The expert of a task, an adapter: trained, or read from where the profile's `adapters` says.

        Of read ones the weights are, if these are merged: they need not be plain adapters.
        """
        if not self.study.profile.adapters:
            return super().expert(task)
        if self.study.profile.task_vector == "weights":
            return Expert(self.layout.flatten(self.experts[task]))
        return Expert(self.adapter_model.layout.flatten(self._own_kind(task)))

    def _own_kind(self, task: str) -> dict[str, Tensor]:
        tensors = load_adapter(str(self._place(task)), self.adapted)
        check_same_start(tensors, self.adapter_model.layout.views(self.adapter0.cpu()), str(self._place(task)))
        return tensors

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """Which `task_vector` the experts have: read ones may have weights alone, and then it is said why."""
        try:
            for task in self.tasks if self.study.profile.adapters else ():
                self._own_kind(task)
        except ValueError as error:
            say(f"what is about adapters' parameters is left out here: {error}")
            return ("weights",)
        return "weights", "adapter"

    @cached_property
    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """Every task's expert as an adapter: peft's names -> tensors."""
        if self.study.profile.adapters:
            return {name: load_adapter(str(self._place(name)), self.adapted) for name in self.tasks}
        return {name: self.adapter_model.layout.views(self.expert(name).theta.cpu()) for name in self.tasks}

    def save_adapter(self, task: str, folder: Path) -> Path:
        """Write a task's expert as an ordinary peft adapter."""
        return save_adapter(self.adapted, self.adapters[task], folder)

    @cached_property
    def experts(self) -> dict[str, dict[str, Tensor]]:
        """Every task's expert as a state dict of what is merged."""
        start = self.layout.views(self.theta0.cpu())
        if self.study.profile.task_vector == "adapter":
            return self.adapters
        if self.study.profile.adapters:
            return {name: start | changed for name, changed in self._finished.items()}
        changes = {name: weight_change(adapter, **self.lora) for name, adapter in self.adapters.items()}
        return {name: {layer: start[layer] + own for layer, own in change.items()} for name, change in changes.items()}

    def evaluate(
        self,
        theta: Tensor,
        method: str,
        *splits: str,
        tasks: Sequence[str] = (),
        corruption: str = "",
        limit: int | None = None,
    ) -> Table:
        """Let the model at a point of R^D answer, and score the answers; arguments as in `VisionWorkspace.evaluate`.

        Returns:
            Rows (method, task, split, seed, accuracy, loss, n, invalid): accuracy of a graded task is Spearman's rho;
            loss is the mean cross-entropy of the target's tokens in nats; invalid the share of answers that are none
            of the task's label words (or no number).
        """
        module, rows = self.model.move_to(theta.to(self.study.runtime.device)).eval(), []
        for split in splits or ("test",):
            for name in tasks or self.tasks:
                prompts, targets = self.inputs(split, name, corruption)[:limit], self.examples(split, name).targets
                wanted = self.tokens(split, name).targets[:limit]
                length = answer_length(self.tasks[name], self.tokenizer)
                answers, loss = respond(module, self.tokenizer, prompts, wanted, self.study.runtime, length)
                scores = score(self.tasks[name], answers, targets[: len(prompts)]) | {"loss": loss}
                rows.append({"method": method, "task": name, "split": split, "seed": self.study.seed, **scores})
        return pd.DataFrame(rows)[[*COLUMNS, "invalid"]]

    def fisher(self, *, texts: int = 64, signs: int = 1) -> Tensor:
        """Diagonal Fisher information of every expert on its training prompts [T, D]: see `diagonal_fisher`."""
        options, compute = {"signs": signs, "seed": self.study.seed}, self.study.remember(diagonal_fisher)
        found = [compute(self.model, theta, self.sample(name, texts), **options) for name, theta in self.points()]
        return torch.stack(found).to(self.theta0)

    def grams(self, *, texts: int = 256) -> dict[str, Tensor]:
        """Gram matrices of what every merged layer reads under every expert, layer name -> [T, in, in]."""
        found, options = [], {"layers": self.layout.names}
        for task, theta in self.points():
            given = self.model, theta, self.sample(task, texts), self.study.runtime
            found.append(self.study.remember(prompt_grams)(*given, **options))
        return {name: torch.stack([own[name].cpu() for own in found]) for name in found[0]}

    def calibration(self, tasks: Sequence[str] = (), *, texts: int = 256) -> dict[str, object]:
        """What `featcal` needs on as many training prompts per task: `groups` of layers, and `moments_at`."""
        prompts, runtime = [self.sample(task, texts) for task in tasks or self.tasks], self.study.runtime

        def moments_at(task: int, merged: Tensor, expert: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
            calls = prompt_calls(prompts[task], runtime.device)
            return read_moments(self.model, (merged, expert), calls, runtime, layers=layers)

        own = {"model": self.model, "prompts": prompts, "runtime": runtime}
        return {"groups": layer_groups(self.model), "moments_at": Known(moments_at, own)}

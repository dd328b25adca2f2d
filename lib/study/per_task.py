"""Methods that keep something of each task beside one merged model: made on a study's images, and scored.

Whoever runs their models must know which task an input belongs to. So they stand beside the merged models, never among
them: a table says what they keep, in the words of `KEEPS` or of `lib.fusion.PER_TASK`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from lib.adaptation.surgery import Surgery, surgery
from lib.runtime.rng import seed_of
from lib.study.evaluation import COLUMNS
from lib.study.setting import Setting
from lib.study.vision import VisionWorkspace
from lib.study.workspace import Table
from lib.vectors import batch_norm
from lib.vision.objective import features_at
from lib.vision.scoring import raw_features, score

KEEPS = {"Surgery": "a module on the features", "SyMerge": "a head"}  # of methods that learn on unlabelled inputs


def learn_surgeries(
    workspace: VisionWorkspace, theta: Tensor, setting: Setting | None = None, **options: object
) -> dict[str, Surgery]:
    """Learn the surgery of every task of a setting on its unlabelled inputs; features and surgeries are kept.

    With BatchNorm the merged model has the running statistics that it is scored with, and each expert has its own.

    Args:
        workspace: an open study.
        theta: merged parameters [D], of whatever method; they stay as they are.
        setting: the tasks and their inputs; by default all, on the adaptation split.
        options: `rank`, `steps`, `learning_rate`, `batch` of `lib.adaptation.surgery.surgery`.

    Returns:
        Task -> its module.
    """
    setting, study = setting or workspace.setting(), workspace.study
    given, features = (workspace.backbone.preprocess, study.runtime), study.remember(features_at)
    theta = theta.to(workspace.theta0)
    encoder = workspace.place(theta, tasks=setting.tasks, corruption=setting.corruption)
    merged, mixes = batch_norm.statistics(encoder), bool(batch_norm.batch_norms(encoder))
    found = {}
    for task, expert in workspace.points(setting.tasks):
        own = workspace.expert(task).statistics if mixes else {}
        pair = [
            features(workspace.model, point, setting.inputs[task], *given, statistics)
            for point, statistics in ((theta, merged), (expert, own))
        ]
        seed = seed_of("surgery", task, study.seed)
        found[task] = study.remember(surgery)(*pair, seed=seed, label=f"Surgery, {task}", **options)
    return found


def evaluate_per_task(
    workspace: VisionWorkspace,
    theta: Tensor,
    method: str,
    *splits: str,
    heads: Mapping[str, Tensor] | None = None,
    surgeries: Mapping[str, Surgery] | None = None,
    tasks: tuple[str, ...] = (),
    corruption: str = "",
    limit: int | None = None,
) -> Table:
    """Score each task with what was kept of it: rows (method, task, split, seed, accuracy, loss, n).

    With one point, and neither heads nor surgeries, this is `VisionWorkspace.evaluate`.

    Args:
        workspace: an open study.
        theta: one point for all tasks [D], or one for each of those scored, in their order [T, D].
        method: value of that column.
        splits: which splits; by default the held-out "test".
        heads: task -> head [C, width]; by default the frozen ones.
        surgeries: task -> what its features go through before they are brought to length 1; by default nothing.
        tasks: which tasks; by default all.
        corruption: of the images, see `lib.vision.corrupt`; "" for none.
        limit: at most so many images per task.

    Raises:
        ValueError: if there is not a point, a head or a surgery for each task scored, or a head does not fit a task.
    """
    frozen, names = workspace.heads, tuple(tasks or workspace.tasks)  # heads first: making them moves the model
    heads = frozen if heads is None else heads
    _check(frozen, names, theta, heads, surgeries)
    if theta.dim() == 2:  # a model for one task: its running statistics, too, are those of that task
        kept = {"heads": heads, "surgeries": surgeries, "corruption": corruption, "limit": limit}
        each = ((split, *pair) for split in splits or ("test",) for pair in zip(names, theta, strict=True))
        scored = (evaluate_per_task(workspace, own, method, at, tasks=(name,), **kept) for at, name, own in each)
        return pd.concat(scored, ignore_index=True)
    encoder = workspace.place(theta, tasks=names, corruption=corruption)
    given, rows = (workspace.backbone.preprocess, workspace.study.runtime), []
    for split in splits or ("test",):
        for name in names:
            images = workspace.inputs(split, name, corruption)[:limit]
            features = raw_features(encoder, images, *given)
            if surgeries is not None:
                features = surgeries[name](features)
            scores = score(features, heads[name], workspace.split(split)[name].labels[:limit])
            rows.append({"method": method, "task": name, "split": split, "seed": workspace.study.seed, **scores})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _check(
    frozen: Mapping[str, Tensor],
    names: tuple[str, ...],
    theta: Tensor,
    heads: Mapping[str, Tensor],
    surgeries: Mapping[str, Surgery] | None,
) -> None:
    """Raise ValueError unless there is for each task what `evaluate_per_task` needs."""
    if theta.dim() == 2 and len(theta) != len(names):
        raise ValueError(f"{len(theta)} points for {len(names)} tasks: give one [D], or one of each task [T, D]")
    for what, given in (("head", heads), ("surgery", surgeries)):
        if missing := [name for name in names if given is not None and name not in given]:
            raise ValueError(f"there is no {what} of task '{missing[0]}'; there are those of {', '.join(given)}")
    for name in names:
        if (found := list(heads[name].shape)) != (wanted := list(frozen[name].shape)):
            raise ValueError(f"the head of task '{name}' has shape {found}, expected {wanted}")

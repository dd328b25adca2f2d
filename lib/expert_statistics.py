"""Statistics of a study's experts on their own training images, made once and kept in the store.

They are what the data-dependent methods of `lib.fusion` take; `Workspace.fisher`, `.grams` and `.merged_inputs` call
what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.batch_norm import batch_norms, load_statistics
from lib.rng import batch_indices
from lib.statistics import VERSION, diagonal_fisher, input_grams, layer_groups
from lib.store import digest

if TYPE_CHECKING:
    from lib.workspace import Workspace


def sample(workspace: Workspace, task: str, images: int) -> tuple[Tensor, Tensor]:
    """The images of a task that statistics are taken on, and their labels: all methods see the same ones.

    Args:
        workspace: an open study.
        task: its name.
        images: how many of the training images, drawn without replacement; at most all.

    Returns:
        uint8 [N, 3, H, W] and int64 [N].
    """
    train = workspace.split("train")[task]
    rows = batch_indices(len(train.images), images, 0, "statistics", task, workspace.study.seed)
    return train.images[rows], train.labels[rows]


def fisher(workspace: Workspace, *, images: int, signs: int, labelled: bool) -> Tensor:
    """Diagonal Fisher information of every expert: [T, D].

    Args:
        workspace: an open study.
        images: training images per task.
        signs: random signs per image, 0 for the exact expectation over classes (see `statistics.diagonal_fisher`).
        labelled: use the images' labels instead ("empirical" Fisher information).
    """
    options = {"signs": signs, "seed": workspace.study.seed}

    def compute(theta: Tensor, pixels: Tensor, labels: Tensor, head: Tensor) -> dict[str, Tensor]:
        chosen = {"labels": labels} if labelled else options
        return {
            "fisher": diagonal_fisher(workspace.model, theta, head, pixels, workspace.backbone.preprocess, **chosen)
        }

    found = _per_expert(workspace, "fisher", images, compute, {"labelled": labelled} if labelled else options)
    return torch.stack([tensors["fisher"] for tensors in found]).to(workspace.theta0)


def grams(workspace: Workspace, *, images: int) -> dict[str, Tensor]:
    """Gram matrices of every linear layer's inputs under every expert, layer name -> [T, in, in]; uses no labels.

    Args:
        workspace: an open study.
        images: training images per task.
    """

    def compute(theta: Tensor, pixels: Tensor, *_: Tensor) -> dict[str, Tensor]:
        return input_grams(workspace.model, theta, pixels, *_parts(workspace))

    found = _per_expert(workspace, "grams", images, compute, {})
    return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}


def merged_inputs(workspace: Workspace, *, images: int) -> dict[str, object]:
    """`groups` and `grams_at` for `regmean_plus_plus`; nothing is kept, since each call depends on the merged model.

    Args:
        workspace: an open study.
        images: training images per task; no labels are used.
    """
    pixels = [sample(workspace, task, images)[0] for task in workspace.tasks]

    def grams_at(task: int, theta: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        if batch_norms(workspace.model.module):
            workspace.place(theta)
        return input_grams(workspace.model, theta, pixels[task], *_parts(workspace), layers=layers)

    return {"groups": layer_groups(workspace.model), "grams_at": grams_at}


def _parts(workspace: Workspace) -> tuple:
    return workspace.backbone.preprocess, workspace.study.runtime


def _per_expert(
    workspace: Workspace,
    kind: str,
    images: int,
    compute: Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]],
    options: dict[str, object],
) -> list[dict[str, Tensor]]:
    """`compute(theta_t, images, labels, head)` of every expert, from the store when it is there."""
    found, module = [], workspace.model.module
    for task, task_vector in zip(workspace.tasks, workspace.task_vectors, strict=True):
        given = (workspace.theta0 + task_vector, *sample(workspace, task, images), workspace.heads[task])
        own = workspace.own_statistics(task) if batch_norms(module) else {}
        load_statistics(module, own)
        precision = workspace.study.runtime.precision
        determines = {"version": VERSION, "inputs": digest(*given, *own.values()), "precision": precision, **options}
        made = workspace.study.store.get(kind, determines, lambda _, given=given: (compute(*given), None))
        found.append(made.tensors)
    return found

r"""Bases: what coefficients weigh and a mask covers, when it is not the task vectors themselves.

A shared mask factors out of the sum, so theta = theta0 + m_hat * sum_t lambda_t P_t works for any parts P [T, D]. A
base splits the merged task vector of a fusion method into one part per task:

    theta0 + lambda_0 * sum_t P_t   is what the method merges,

so adaptation on a base starts where the method ends. `adapt` is given P in place of the task vectors and lambda_0 as
the initial coefficient; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lib.fusion.arithmetic import TIES_RULES, ties_parts
from lib.fusion.spectral import iso_c_parts, tsv_m_parts, wudi_merging
from lib.fusion.statistical import regmean_parts
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import sum_of


@dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
        parts: `parts(task_vectors [T, D], layout) -> P [T, D]`; with `grams` as a third argument, if it needs them.
        coefficient: lambda_0.
        needs_grams: whether it needs Gram matrices of the tasks' unlabelled inputs.
    """

    parts: Callable[..., Tensor]
    coefficient: float = 1.0
    needs_grams: bool = False


def task_vectors_themselves(task_vectors: Tensor, layout: Layout) -> Tensor:
    """The parts of Task Arithmetic."""
    return task_vectors


def wudi_parts(task_vectors: Tensor, layout: Layout) -> Tensor:
    """The parts of WUDI-Merging: each task's own vector, and an equal share of what WUDI adds to their sum."""
    zero = task_vectors.new_zeros(layout.length)
    added = wudi_merging(zero, task_vectors, layout) - sum_of(task_vectors, zero)
    return task_vectors + added / len(task_vectors)


BASES: Mapping[str, Base] = {
    "Task Arithmetic": Base(task_vectors_themselves, 0.3),
    "Ties-Merging": Base(ties_parts, TIES_RULES["sum"]),
    "TSV-M": Base(tsv_m_parts),
    "Iso-C": Base(iso_c_parts),
    "WUDI-Merging": Base(wudi_parts),
    "RegMean": Base(regmean_parts, needs_grams=True),
}

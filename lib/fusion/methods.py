"""The tables of fusion methods: one decorator that registers a merging function with its paper and its needs.

`METHODS` holds those that merge all tasks into one model. `PER_TASK` holds those that keep something of each task, and
so give a model per task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from torch import Tensor

from lib.vectors.layout import Layout
from lib.vectors.task_vectors import check_task_vectors


@dataclass(frozen=True)
class FusionMethod:
    """A fusion method, where it comes from, what it needs beside the parameters, and what it keeps.

    Attributes:
        name: as printed in tables and figures.
        reference: authors and year.
        paper: link.
        needs_data: whether it needs images of the tasks.
        keeps: what must be kept of each task beside one merged model, in words; "" for nothing.
        merge: the function itself.
    """

    name: str
    reference: str
    paper: str
    needs_data: bool
    keeps: str
    merge: Callable[..., Tensor]


METHODS: dict[str, FusionMethod] = {}
PER_TASK: dict[str, FusionMethod] = {}


def fusion_method(
    name: str, reference: str, paper: str, *, needs_data: bool = False, sums_only: bool = False, keeps: str = ""
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register `merge(theta0: [D], task_vectors: [T, D], layout, *, ...) -> [D]`; what it is given is checked first.

    One that `keeps` something of each task gives a point for each, [T, D], and stands in `PER_TASK`.

    Task vectors in half precision, or that lie elsewhere than theta0, are converted while it runs; not for one that
    needs their sum only (`sums_only`), which `lib.vectors.task_vectors.sum_of` makes without a second stack.
    """

    def register(merge: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(merge)
        def checked(theta0: Tensor, task_vectors: Tensor, layout: Layout, **hyperparameters: object) -> Tensor:
            check_task_vectors(theta0, task_vectors, layout, half=True)
            own = task_vectors if sums_only else task_vectors.to(theta0)
            return merge(theta0, own, layout, **hyperparameters)

        table = PER_TASK if keeps else METHODS
        table[merge.__name__] = FusionMethod(name, reference, paper, needs_data, keeps, checked)
        return checked

    return register

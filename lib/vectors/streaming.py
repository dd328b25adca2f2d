"""Sums over experts that stream from files, in memory that does not grow with their number T.

Weight averaging, Task Arithmetic and Concrete Task Arithmetic need nothing of the task vectors but their weighted sum
S = sum_t lambda_t tau_t. It is added up here with one layer of one file in memory at a time, beside theta0 and S. S
then stands for the stack of all T task vectors, as if there were only one:

    experts = [fit(read_weights(file), layout.views(theta0)) for file in files]            # of lib.files.weights
    summed = stream_sum(theta0, experts, layout)                                           # [D]
    task_arithmetic(theta0, summed[None], layout, scaling_factor=0.3)
    weight_averaging(theta0, summed[None] / len(experts), layout)
    adapt(objective_at, theta0, summed[None], layout, coefficients=None, learn_mask=True)  # Concrete Task Arithmetic

From files to a folder, on the command line: `python -m lib merge --help`.

Rounding: a layer is added up in float64 and rounded once, to theta0's type. So a float32 S has the relative error of
one rounding, 6e-8, and the order of the files does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lib.runtime.progress import progress
from lib.vectors.layout import Layout

CHUNK = 1 << 18  # elements added at a time: the float64 copies this makes stay in the cache, which is twice as fast


def stream_sum(
    theta0: Tensor, experts: Sequence[Mapping[str, Tensor]], layout: Layout, *, coefficients: Tensor | None = None
) -> Tensor:
    """S = sum_t lambda_{t,l} tau_t with tau_t = theta_t - theta0, and theta_t a mapping that reads a layer when asked.

    Args:
        theta0: pre-trained parameters [D].
        experts: T mappings with the layout's names and shapes, of any floating-point type;
            `lib.files.weights.fit` makes them of files, and checks all of a file before anything is summed.
        layout: where each layer lies.
        coefficients: lambda, task-wise [T] or layer-wise [T, L]; None is 1 everywhere.

    Returns:
        S [D], of theta0's type and device; the padding is zero.

    Raises:
        ValueError: if there is no expert, the coefficients do not fit, or an expert does not fit the layout or holds
            NaN or Inf (named: which file, which layer).
    """
    weights = _weights(coefficients, len(experts), layout)
    base = layout.views(theta0.detach())
    names = [getattr(expert, "place", f"expert {number}") for number, expert in enumerate(experts)]
    for name, expert in zip(names, experts, strict=True):
        if absent := sorted(set(layout.names) - set(expert)):
            raise ValueError(f"{name}: layer '{absent[0]}' is missing")
    summed = torch.zeros_like(theta0, requires_grad=False)
    out = layout.views(summed)
    columns = list(zip(layout.names, weights.T.tolist(), strict=True))
    for layer, column in progress(columns, f"sum over {len(experts)} experts, layers"):
        total = torch.zeros(base[layer].shape, dtype=torch.float64)
        for name, expert, weight in zip(names, experts, column, strict=True):
            _add(total, expert[layer], weight, f"{name}: layer '{layer}'")
        _add(total, base[layer].cpu(), -sum(column), "theta0")
        if not torch.isfinite(total).all():  # never for finite float32 numbers: their sum cannot overflow in float64
            bad = [name for name, own in zip(names, experts, strict=True) if not torch.isfinite(own[layer]).all()]
            where = (bad or ["theta0"])[0]
            raise ValueError(f"{where}: layer '{layer}' holds NaN or Inf: its training diverged or the file is damaged")
        out[layer].copy_(total)
    return summed


def reader(theta0: Mapping[str, Tensor], layout: Layout) -> Callable[[Tensor], None]:
    """A function that reads theta0 into a vector [D] by layers: `lib.concrete.merge_step` then need not hold it."""

    def read(out: Tensor) -> None:
        for name, view in layout.views(out).items():
            view.copy_(theta0[name])

    return read


def _weights(coefficients: Tensor | None, tasks: int, layout: Layout) -> Tensor:
    """Coefficients [T], [T, L] or None as float64 [T, L]."""
    if tasks == 0:
        raise ValueError("no experts given (T = 0): merging needs at least one")
    weights = torch.ones(tasks) if coefficients is None else coefficients.detach().cpu()
    if weights.shape not in ((tasks,), (tasks, layout.layers)):
        raise ValueError(f"coefficients have shape {list(weights.shape)}, expected [{tasks}] or [{tasks}, L]")
    if not torch.isfinite(weights).all():
        raise ValueError("the coefficients hold NaN or Inf")
    return weights.double().view(tasks, -1).expand(tasks, layout.layers)


def _add(total: Tensor, layer: Tensor, weight: float, what: str) -> None:
    """Add weight * layer, of any floating-point type, to a float64 total of the same shape, in place."""
    if layer.shape != total.shape:
        raise ValueError(f"{what} has shape {list(layer.shape)}, expected {list(total.shape)}")
    for here, piece in zip(total.view(-1).split(CHUNK), layer.reshape(-1).split(CHUNK), strict=True):
        here.add_(piece, alpha=weight)

"""Sums over experts that stream from safetensors files, in memory that does not grow with their number T.

Weight averaging, Task Arithmetic and Concrete Task Arithmetic need nothing of the task vectors but their weighted sum
S = sum_t lambda_t tau_t. It is added up here with one layer of one file in memory at a time, beside theta0 and S. S
then stands for the stack of all T task vectors, as if there were only one:

    summed = stream_sum(theta0, files, layout)                                             # [D]
    task_arithmetic(theta0, summed[None], layout, scaling_factor=0.3)
    weight_averaging(theta0, summed[None] / len(files), layout)
    adapt(objective_at, theta0, summed[None], layout, coefficients=None, learn_mask=True)  # Concrete Task Arithmetic

From files to a file, on the command line: `python -m scripts.merge_files --help`.

Rounding: a layer is added up in float64 and rounded once, to theta0's type. So a float32 S has the relative error of
one rounding, 6e-8, and the order of the files does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib.runtime.progress import progress
from lib.vectors.layout import Layout

# What experts may be stored as, in the words of the safetensors format.
FLOATING = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
INTEGER = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
CHUNK = 1 << 18  # elements added at a time: the float64 copies this makes stay in the cache, which is twice as fast


def stream_sum(theta0: Tensor, files: Sequence[Path], layout: Layout, *, coefficients: Tensor | None = None) -> Tensor:
    """S = sum_t lambda_{t,l} tau_t with tau_t = theta_t - theta0, and theta_t read from file t.

    Every file is checked against the layout before anything is summed, from its header alone. Integer entries that the
    layout lacks (`num_batches_tracked`) are ignored, as they are never merged; any other unknown entry is an error.

    Args:
        theta0: pre-trained parameters [D].
        files: T safetensors files with the layout's names, shapes and types: float16, bfloat16, float32 or float64.
        layout: where each layer lies.
        coefficients: lambda, task-wise [T] or layer-wise [T, L]; None is 1 everywhere.

    Returns:
        S [D], of theta0's type and device; the padding is zero.

    Raises:
        FileNotFoundError: naming a file that is not there.
        ValueError: if there is no file, the coefficients do not fit, or a file is damaged, does not fit the layout, or
            holds NaN or Inf (named: which file, which layer).
    """
    files = [Path(file) for file in files]
    weights = _weights(coefficients, len(files), layout)
    base = layout.views(theta0.detach())
    for file in files:
        check_file(file, layout)
    summed = torch.zeros_like(theta0, requires_grad=False)
    out = layout.views(summed)
    columns = list(zip(layout.names, weights.T.tolist(), strict=True))
    for name, column in progress(columns, f"sum over {len(files)} files, layers"):
        total = torch.zeros(base[name].shape, dtype=torch.float64)
        for file, weight in zip(files, column, strict=True):
            _add(total, read_layer(file, name), weight)
        _add(total, base[name].cpu(), -sum(column))
        if not torch.isfinite(total).all():  # never for finite float32 numbers: their sum cannot overflow in float64
            bad = [file for file in files if not torch.isfinite(read_layer(file, name)).all()] or ["theta0"]
            raise ValueError(f"{bad[0]}: layer '{name}' holds NaN or Inf: its training diverged or the file is damaged")
        out[name].copy_(total)
    return summed


def reader(file: Path, layout: Layout) -> Callable[[Tensor], None]:
    """A function that reads theta0 from its file into a vector [D]: `lib.concrete.merge_step` then need not hold it.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it does not fit the layout.
    """
    check_file(Path(file), layout)

    def read(out: Tensor) -> None:
        for name, view in layout.views(out).items():
            view.copy_(read_layer(Path(file), name))

    return read


def check_file(file: Path, layout: Layout) -> None:
    """Compare the names, shapes and types in a file's header with the layout; raises like `stream_sum`."""
    stored = header(file)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in stored:
            first = f"; its first entry is '{next(iter(stored))}'" if stored else ""
            raise ValueError(f"{file}: layer '{name}' is missing{first}: another architecture, or other names?")
        dtype, here = stored[name]
        if here != shape:
            raise ValueError(f"{file}: layer '{name}' has shape {list(here)}, expected {list(shape)}")
        if dtype not in FLOATING:
            raise ValueError(f"{file}: layer '{name}' is stored as {dtype}, only {', '.join(FLOATING)} can be merged")
        try:
            layout.check_type(name, FLOATING[dtype])
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    for name in sorted(set(stored).difference(layout.names)):
        if stored[name][0] not in INTEGER:
            raise ValueError(f"{file}: layer '{name}' is not part of the pre-trained model's layout; remove it")


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    """Open a safetensors file; what goes wrong becomes one sentence that names it."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: check the path, or copy it there")
    try:
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}): copy or convert it again") from None


def header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a safetensors file says it holds: name -> (type as the format names it, shape)."""
    with _opened(file) as opened:
        entries = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 - not a dict
        return {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries}


def read_layer(file: Path, name: str) -> Tensor:
    """One layer, mapped into memory: the file's pages count as this process's only as long as the tensor lives."""
    with _opened(file) as opened:
        return opened.get_tensor(name)


def _weights(coefficients: Tensor | None, tasks: int, layout: Layout) -> Tensor:
    """Coefficients [T], [T, L] or None as float64 [T, L]."""
    if tasks == 0:
        raise ValueError("no files given (T = 0): merging needs at least one expert")
    weights = torch.ones(tasks) if coefficients is None else coefficients.detach().cpu()
    if weights.shape not in ((tasks,), (tasks, layout.layers)):
        raise ValueError(f"coefficients have shape {list(weights.shape)}, expected [{tasks}] or [{tasks}, L]")
    if not torch.isfinite(weights).all():
        raise ValueError("the coefficients hold NaN or Inf")
    return weights.double().view(tasks, -1).expand(tasks, layout.layers)


def _add(total: Tensor, layer: Tensor, weight: float) -> None:
    """Add weight * layer, of any floating-point type, to a float64 total of the same shape, in place."""
    for here, piece in zip(total.view(-1).split(CHUNK), layer.reshape(-1).split(CHUNK), strict=True):
        here.add_(piece, alpha=weight)

r"""The four passes of a mask step over blocks of a flat vector, each reading and writing every element once.

    mask_sums      x -> sum_b m                                                   before theta can be rescaled
    merge          theta0, tau_1..T, x -> theta = theta0 + m * sum_t w_t tau_t          w_t = lambda_t / mu
    pull           G, tau_1..T, x -> sum_b G m tau_t, and S = sum_t lambda_t tau_t
    update_logits  G, S, x, moments -> x, moments                                  closed-form gradient, then Adam

The mask is not stored: it is drawn again in each pass from the counters of `lib.concrete.noise`, which compiled is
cheaper than reading it. (Small vectors in eager code keep it.) `torch.compile` turns each function into one loop
(C++/OpenMP on a CPU, Triton on a GPU); without a compiler the same functions run eagerly, on a few blocks at a time so
that what lies between them stays in the cache.

Shapes: n blocks of B elements. Vectors are [n, B], task vectors [T, n, B], numbers per block [n, 1] or [T, n, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lib.concrete.noise import STEPS, odd_numbers

BACKENDS = ("auto", "compiled", "eager")
SMALL = 4_000_000  # elements: below this, on a CPU, compiling costs more time than it saves, and a mask is kept
# Blocks per eager piece. On a CPU 256 KiB per vector, so that what lies between operations stays in the cache;
# elsewhere 64 MiB, since every operation is a launch: 2,400 in a step of ViT-B/32, and with pieces of 256 KiB 400,000.
EAGER_BLOCKS, LAUNCHED_BLOCKS = 64, 16_384
TASKS_AT_ONCE = 8  # task vectors per pass; more are added in further passes
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, torch's defaults


class Draw(NamedTuple):
    """What a sample of the mask is computed from.

    Attributes:
        logits: x [n, B].
        keys: int32 [2, n, 1], from `lib.concrete.noise.block_keys`.
        valid: int32 [n, 1], elements of each block that are parameters; the rest is padding.
        lanes: int32 [B]: 0, 1, 2, ...
        inverse_temperature: 0-dimensional, or None for the paper's temperature 1/2, which needs no logarithm.
        kept: room for the sample itself [n, B], where it is cheaper to read it again than to draw it again; or None.
    """

    logits: Tensor
    keys: Tensor
    valid: Tensor
    lanes: Tensor
    inverse_temperature: Tensor | None
    kept: Tensor | None


Kernel = Callable[..., list[Tensor] | None]
Mask = Draw | Tensor | None  # drawn from logits; or given, rescaled [n, B]; or none


def exp(value: Tensor) -> Tensor:
    """e^value to two rounding errors, from operations that vectorise everywhere (float32; else torch's own).

    A call of the C library's exp inside a compiled loop costs more than all the rest of a mask. Range reduction by
    Cody and Waite, polynomial of Cephes' expf (Moshier, 1989); clamped where a mask is 0 or 1 anyway.
    """
    if value.dtype != torch.float32:
        return torch.exp(value)
    value = value.clamp(-87.0, 87.0)
    power = torch.round(value * 1.44269504088896341)
    rest = value - power * 0.693359375 + power * 2.12194440e-4  # ln 2 in two parts: the first one is exact
    series = torch.full_like(rest, 1.9875691500e-4)
    for constant in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        series = series * rest + constant
    return (1 + rest + rest * rest * series) * ((power.to(torch.int32) + 127) << 23).view(torch.float32)


def sample(draw: Draw) -> Tensor:
    """Draw m = sigmoid((log u - log(1 - u) + x) / temperature), 0 in the padding: [n, B].

    At temperature 1/2 that is 1 / (1 + ((1 - u) / u e^-x)^2): with u = n / N, n^2 / (n^2 + ((N - n) e^-x)^2).
    """
    numbers = odd_numbers(draw.keys, draw.lanes).to(draw.logits.dtype)
    if draw.inverse_temperature is None:
        against = (STEPS - numbers) * exp(-draw.logits)
        mask = numbers * numbers / (numbers * numbers + against * against)
    else:
        odds = torch.log(numbers) - torch.log(STEPS - numbers)
        mask = torch.sigmoid((odds + draw.logits) * draw.inverse_temperature)
    return torch.where(draw.lanes < draw.valid, mask, 0.0)


def mask_sums(draw: Draw) -> list[Tensor]:
    """Sum of the mask over each block: one [n, 1]; the mask itself is kept where there is room for it."""
    mask = sample(draw)
    if draw.kept is not None:
        draw.kept.copy_(mask)
    return [mask.sum(-1, keepdim=True)]


def mask_of(mask: Draw | Tensor) -> Tensor:
    """A mask written out [n, B]; of a draw, after `mask_sums`."""
    if isinstance(mask, Tensor):
        return mask
    return sample(mask) if mask.kept is None else mask.kept


def masked(vector: Tensor, mask: Mask) -> Tensor:
    """The mask times a vector [n, B]; the vector itself where there is no mask."""
    return vector if mask is None else vector * mask_of(mask)


def _weighted(task_vectors: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """sum_t w_t tau_t, unrolled so that it becomes part of the loop around it: [n, B]."""
    total = weights[0] * task_vectors[0].to(like.dtype)
    for weight, vector in zip(weights[1:], task_vectors[1:], strict=True):
        total = total + weight * vector.to(like.dtype)
    return total


def merge(theta: Tensor, theta0: Tensor, task_vectors: Tensor, weights: Tensor, mask: Mask) -> None:
    """Write theta0 + m * sum_t w_t tau_t into `theta` [n, B] (which may be theta0 itself)."""
    theta.copy_(theta0 + masked(_weighted(task_vectors, weights, theta0), mask))


def pull(gradient: Tensor, task_vectors: Tensor, mask: Mask) -> list[Tensor]:
    """Sum over each block of G m tau_t: T times [n, 1]."""
    gradient = masked(gradient, mask)
    return [(gradient * vector.to(gradient.dtype)).sum(-1, keepdim=True) for vector in task_vectors]


def pull_and_sum(
    summed: Tensor, gradient: Tensor, task_vectors: Tensor, weights: Tensor, mask: Mask, add: bool
) -> list[Tensor]:
    """`pull`, and in the same pass S = sum_t lambda_t tau_t into `summed` [n, B] (or onto it)."""
    total = _weighted(task_vectors, weights, gradient)
    summed.copy_(summed + total if add else total)
    return pull(gradient, task_vectors, mask)


def update_logits(
    draw: Draw,
    first_moment: Tensor,
    second_moment: Tensor,
    gradient: Tensor,
    summed: Tensor,
    inverse_mean: Tensor,
    common: Tensor,
    scalars: Tensor,
) -> None:
    """One step of Adam on the logits, in place.

    dLoss/dx = (G S / mu - common) m (1 - m) / temperature, where common = sum_l(G S m) / (mu^2 n_l).

    Args:
        draw: the sample that theta was merged with; its logits are updated.
        first_moment: Adam's mean of gradients [n, B].
        second_moment: Adam's mean of squared gradients [n, B].
        gradient: G [n, B].
        summed: S [n, B].
        inverse_mean: 1 / mu of each block's layer [n, 1].
        common: of each block's layer [n, 1].
        scalars: learning rate / (1 - beta_1^k), 1 / sqrt(1 - beta_2^k), 1 / temperature: [3].
    """
    mask = mask_of(draw)
    of_mask = gradient * summed * inverse_mean - common
    of_logits = of_mask * mask * (1 - mask) * scalars[2]
    first = first_moment * BETA_1 + of_logits * (1 - BETA_1)
    second = second_moment * BETA_2 + of_logits * of_logits * (1 - BETA_2)
    draw.logits.copy_(draw.logits - scalars[0] * first / (torch.sqrt(second) * scalars[1] + EPSILON))
    first_moment.copy_(first)
    second_moment.copy_(second)


# One loop per pass: without these options the compiler stores a value that is used twice, which costs another vector
# [D] and two passes over it. On a GPU eight warps sum a block of 1024, not one, which would hold so much of eight
# task vectors that its registers spill (`tests/concrete/test_triton.py`).
COMPILER = {
    "realize_opcount_threshold": 10_000,
    "realize_reads_threshold": 1_000,
    "triton.persistent_reductions": False,
}


@cache
def _compiled(kernel: Kernel) -> Kernel:
    return torch.compile(kernel, fullgraph=True, options=COMPILER)


_no_compiler: list[str] = []  # why compiling failed in this process; asked once


def uses_compiler(backend: str, elements: int, device: torch.device) -> bool:
    """Whether kernels are to be compiled.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}'; known: {', '.join(BACKENDS)}")
    large = elements >= SMALL or device.type == "cuda"
    return backend == "compiled" or (backend == "auto" and large and not _no_compiler)


def run(kernel: Kernel, *arguments: object, compiled: bool) -> Tensor | None:
    """Run a kernel, compiled or piece by piece; eagerly, with one warning, where no compiler is found.

    Returns:
        The sums over blocks that the kernel returns, stacked: [k, n, 1]; None for a kernel that only writes.
    """
    if compiled and not _no_compiler:
        sums = _run_compiled(kernel, arguments)
        if sums is not None:
            return torch.stack(sums) if sums else None
    first = next(tensor for tensor in (*arguments, arguments[0][0]) if isinstance(tensor, Tensor))
    blocks = first.shape[-2]
    total = None  # written into, not gathered: small tensors kept between large ones that come and go waste the heap
    for piece in _pieces(blocks, first.device):
        for row, part in enumerate(sums := kernel(*(_piece(argument, piece) for argument in arguments)) or []):
            total = part.new_empty(len(sums), blocks, 1) if total is None else total
            total[row, piece] = part
    return total


def _run_compiled(kernel: Kernel, arguments: tuple) -> list[Tensor] | None:
    """What the compiled kernel returns ([] for nothing), or None and a warning if it cannot be compiled."""
    from torch._dynamo import config  # the compiler takes seconds and 150 MiB to import
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=64):  # one form per number of tasks at once, kind of mask and of temperature
            return _compiled(kernel)(*arguments) or []
    except TorchDynamoException as error:
        _no_compiler.append(str(error))
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"no working compiler, merging runs eagerly (slower): {reason}", stacklevel=4)
        return None


def _pieces(blocks: int, device: torch.device) -> Iterator[slice]:
    at_once = EAGER_BLOCKS if device.type == "cpu" else LAUNCHED_BLOCKS
    return (slice(start, start + at_once) for start in range(0, blocks, at_once))


def _piece(argument: object, piece: slice) -> object:
    """Some blocks of whatever has blocks, namely all tensors of two dimensions and more."""
    if isinstance(argument, Draw):
        return Draw(*(_piece(part, piece) for part in argument))
    if isinstance(argument, Tensor) and argument.dim() >= 2:
        return argument[..., piece, :]
    return argument

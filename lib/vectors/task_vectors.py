"""Task vectors: what fine-tuning added to the pre-trained model, and how such additions compare.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from lib.vectors.layout import Layout


def task_vectors(
    theta0: Tensor,
    experts: Collection[Mapping[str, Tensor]],
    layout: Layout,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Subtract the pre-trained parameters from each expert's: tau_t = theta_t - theta0.

    They are made one by one, so rounded ones or ones for a device take one float32 vector beside themselves.

    Args:
        theta0: pre-trained parameters [D].
        experts: T state dicts with the layout's names and shapes; gone through once.
        layout: where each layer lies.
        dtype: in which to keep them.
        device: and where; by default theta0's.

    Returns:
        The task vectors, stacked: [T, D]; the padding is zero.

    Raises:
        ValueError: if there is no expert, or one does not fit the layout (named: which expert, which layer). An expert
            saved in another type than the pre-trained model is refused too: its rounding would pass for fine-tuning.
    """
    if not experts:
        raise ValueError("no experts given: merging needs at least one task vector")
    stacked = torch.empty(len(experts), layout.length, dtype=dtype, device=device or theta0.device)
    for row, vector in zip(stacked, one_by_one(theta0, experts, layout), strict=True):
        row.copy_(vector)
    return stacked


def one_by_one(theta0: Tensor, experts: Collection[Mapping[str, Tensor]], layout: Layout) -> Iterator[Tensor]:
    """The rows of `task_vectors` [D], each made when it is asked for; raises as that does."""
    for number, expert in enumerate(experts):
        try:
            vector = layout.flatten(expert, out=torch.zeros(layout.length, device=theta0.device))
            for name in layout.names:
                layout.check_type(name, expert[name].dtype)
        except ValueError as error:
            raise ValueError(f"expert {number} of {len(experts)}: {error}") from None
        yield vector.sub_(theta0)


def alike(vectors: Tensor, like: Tensor) -> bool:
    """Whether task vectors have the type and the place of what is computed with them; else one is converted at a time.

    They may be in half precision, or mapped from a file on the CPU beside a GPU.
    """
    return vectors.dtype == like.dtype and vectors.device == like.device


def sum_of(vectors: Tensor, like: Tensor) -> Tensor:
    """sum_t tau_t in the type and place of `like`: [T, D] -> [D]."""
    if alike(vectors, like):
        return vectors.sum(0)
    total = like.new_zeros(vectors.shape[1])
    for vector in vectors:
        total += vector.to(like)
    return total


HALF = (torch.bfloat16, torch.float16)


def check_task_vectors(theta0: Tensor, vectors: Tensor, layout: Layout, *, half: bool = False) -> None:
    """Make sure that theta0 [D] and task vectors [T, D] can be merged.

    Args:
        theta0: pre-trained parameters.
        vectors: task vectors.
        layout: where each layer lies.
        half: whether the task vectors may be in half precision beside a float32 theta0.

    Raises:
        ValueError: naming what is wrong: no task vectors, shapes or types that do not fit, half precision, NaN or Inf
            (with task and layer).
    """
    if theta0.shape != (layout.length,):
        raise ValueError(f"theta0 has shape {list(theta0.shape)}, the layout needs [{layout.length}]")
    if vectors.dim() != 2 or vectors.shape[1] != layout.length:
        raise ValueError(f"task vectors have shape {list(vectors.shape)}, expected [T, {layout.length}]")
    if len(vectors) == 0:
        raise ValueError("no task vectors given (T = 0): merging needs at least one")
    rounded = half and vectors.dtype in HALF and theta0.dtype == torch.float32
    if not rounded and (theta0.dtype != vectors.dtype or theta0.dtype not in (torch.float32, torch.float64)):
        found = f"theta0 is {theta0.dtype} and the task vectors are {vectors.dtype}"
        raise ValueError(f"{found}: expected both in float32 (or both in float64), for example theta0.float()")
    for what, row in (("theta0", theta0), *((f"task vector {task}", row) for task, row in enumerate(vectors))):
        finite = torch.isfinite(row)  # row by row: a mask of all task vectors would not fit beside large ones
        if not finite.all():
            layer = layout.layer_sums((~finite).float()).nonzero()[0]
            raise ValueError(f"{what} holds NaN or Inf in layer '{layout.names[int(layer)]}'")


def layer_norms(vectors: Tensor, layout: Layout) -> Tensor:
    """Euclidean length of every layer of every task vector: [T, D] -> [T, L]."""
    return torch.stack([layout.layer_sums(wide(vector).square()).sqrt() for vector in vectors])


PIECE = 2**16  # elements whose products are added up in their own type


def inner_products(vectors: Tensor) -> Tensor:
    """Inner products of every pair of vectors: [T, D] -> float64 [T, T], on the CPU.

    Added up in float64, piece by piece: one float32 sum of 10^8 terms is wrong by some percent.
    """
    parts = map(wide, vectors.split(PIECE, dim=1))
    return torch.stack([part @ part.T for part in parts]).to("cpu", torch.float64).sum(0)


def wide(vector: Tensor) -> Tensor:
    """A vector in half precision in float32, any other as it is."""
    return vector.float() if vector.dtype in HALF else vector


def length(vector: Tensor) -> Tensor:
    """Euclidean length |v|, added up like `inner_products`: [D] -> []."""
    return inner_products(vector[None]).sqrt().squeeze().to(vector)


def cosine_similarity(vectors: Tensor) -> Tensor:
    """Cosine of the angle between every pair of task vectors: [T, D] -> [T, T]; 0 for a vector of length zero."""
    products = inner_products(vectors)
    lengths = products.diagonal().sqrt()
    return (products / (lengths[:, None] * lengths).clamp(min=torch.finfo(products.dtype).tiny)).to(vectors)


def sign_agreement(vectors: Tensor, largest: float = 1.0) -> Tensor:
    """Share of parameters that two tasks push in the same direction: [T, D] -> [T, T].

    Counted where both task vectors are non-zero. With `largest` < 1 only each task's largest entries count (by
    magnitude), which is where interference hurts. Unrelated tasks agree on one half.

    Args:
        vectors: task vectors [T, D].
        largest: share of each task's entries kept, in (0, 1].
    """
    signs = torch.sign(vectors)
    if largest < 1.0:
        keep = max(1, int(largest * vectors.shape[1]))
        threshold = vectors.abs().kthvalue(vectors.shape[1] - keep + 1, dim=1, keepdim=True).values
        signs = torch.where(vectors.abs() >= threshold, signs, 0)
    agree = inner_products(signs)  # agreements minus disagreements
    both = inner_products(signs.abs())
    return ((agree / both.clamp(min=1) + 1) / 2).to(vectors)


def layer_kind(name: str) -> str:
    """What a parameter of an image encoder is for, read off its name: "convolution", "attention", "MLP", ..."""
    if name.endswith("bias"):
        return "bias"
    kinds = {
        "norm": "norm or scale", "ln_": "norm or scale", "gamma": "norm or scale", "temperature": "norm or scale",
        "attn": "attention", "xca": "attention", "mlp": "MLP", "embedding": "embedding", "pos_embd": "embedding",
        "conv": "convolution", "stem": "convolution", "downsample": "convolution",
    }  # fmt: skip
    return next((kind for part, kind in kinds.items() if part in name), "projection")

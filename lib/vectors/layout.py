"""A model is a point in R^D: where each layer lies in one flat vector.

All parameters that merging touches lie in ONE contiguous vector of length D. Each layer (one parameter tensor, which is
what "layer-wise" means in AdaMerging and in Concrete) starts at a multiple of `BLOCK` elements and the gap before
the next one is zero. So a layer is a run of whole blocks, and every per-layer sum, mean or coefficient becomes an
operation on the `[D / BLOCK, BLOCK]` view. Fusion methods then read like their papers: `task_vectors.sum(0)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

BLOCK = 1024  # elements: 4 KiB of float32, a memory page and a convenient unit of work on CPU and GPU


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the L layers of a flat vector of length D.

    Attributes:
        names: the layers' parameter names.
        shapes: their shapes.
        block: elements per block; each layer starts at a multiple of it.
        dtypes: the types the layers came in, against which experts are checked; the flat vector itself is float32.
        parts: the number of blocks is a multiple of this, so that as many processes can share the vector equally.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    block: int = BLOCK
    dtypes: tuple[torch.dtype, ...] = field(default=(), compare=False)
    parts: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], block: int = BLOCK, parts: int = 1) -> Layout:
        """The layout of named parameters, in the order given.

        Raises:
            ValueError: if there are none, or one of them is not floating point (integer buffers are never merged).
        """
        if not parameters:
            raise ValueError("a layout needs at least one parameter; was the model's state empty?")
        for name, tensor in parameters.items():
            if not tensor.is_floating_point():
                raise ValueError(f"layer '{name}' is {tensor.dtype}: only floating-point tensors can be merged")
        tensors = parameters.values()
        shapes, dtypes = tuple(tuple(t.shape) for t in tensors), tuple(t.dtype for t in tensors)
        return cls(tuple(parameters), shapes, block, dtypes, parts)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each layer, without padding."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First element of each layer in the flat vector, and D at the end: L + 1 numbers."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + -(-size // self.block) * self.block)
        whole = self.block * self.parts
        ends[-1] = -(-ends[-1] // whole) * whole  # empty blocks at the end count as padding of the last layer
        return tuple(ends)

    @property
    def length(self) -> int:
        """D, padding included."""
        return self.offsets[-1]

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return len(self.names)

    @property
    def parameters(self) -> int:
        """Number of parameters, padding not counted."""
        return sum(self.sizes)

    @lru_cache(maxsize=8)  # noqa: B019 - layouts are few and small, and every step of every loop asks
    def layer_of_block(self, device: torch.device | str = "cpu") -> Tensor:
        """Which layer each block belongs to: int64 [D / BLOCK], shared by all callers."""
        return torch.repeat_interleave(torch.arange(self.layers), self._blocks_per_layer()).to(device)

    @lru_cache(maxsize=8)  # noqa: B019
    def _blocks_per_layer(self, device: torch.device | str = "cpu") -> Tensor:
        return (torch.tensor(self.offsets).diff() // self.block).to(device)

    def inside(self, device: torch.device | str = "cpu") -> Tensor:
        """1 where the flat vector holds a parameter, 0 in the padding: float32 [D]."""
        mark = torch.zeros(self.length, device=device)
        for start, size in zip(self.offsets, self.sizes, strict=False):
            mark[start : start + size] = 1
        return mark

    @lru_cache(maxsize=8)  # noqa: B019
    def valid_in_block(self, device: torch.device | str = "cpu") -> Tensor:
        """How many elements of each block are parameters: int32 [D / BLOCK, 1], shared by all callers."""
        starts = torch.arange(0, self.length, self.block)
        ends = (torch.tensor(self.offsets[:-1]) + torch.tensor(self.sizes))[self.layer_of_block()]
        return (ends - starts).clamp(0, self.block).to(torch.int32).to(device).unsqueeze(-1)

    def counts(self, like: Tensor) -> Tensor:
        """Elements per layer n_l as a tensor of `like`'s dtype and device: [L], shared by all callers."""
        return self._counts(like.dtype, like.device)

    @lru_cache(maxsize=8)  # noqa: B019
    def _counts(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor(self.sizes, dtype=dtype, device=device)

    def layer_sums(self, flat: Tensor) -> Tensor:
        """Sum over each layer: [..., D] -> [..., L]."""
        return self.add_blocks(flat.unflatten(-1, (-1, self.block)).sum(-1))

    def add_blocks(self, per_block: Tensor) -> Tensor:
        """Add up the sums over each layer's blocks: [..., D / BLOCK] -> [..., L].

        In the blocks' order, on CUDA too (`index_add_` is unordered there): the same bits each time.
        """
        if per_block.device.type == "mps":  # has no segment_reduce
            sums = per_block.new_zeros(*per_block.shape[:-1], self.layers)
            return sums.index_add_(-1, self.layer_of_block(per_block.device), per_block)
        counts = self._blocks_per_layer(per_block.device).expand(*per_block.shape[:-1], -1).contiguous()
        axis = per_block.dim() - 1
        return torch.segment_reduce(per_block, "sum", lengths=counts, axis=axis, unsafe=True)  # unsafe: they do add up

    def spread(self, per_layer: Tensor) -> Tensor:
        """Give every element the value of its layer: [..., L] -> [..., D]."""
        return per_layer[..., self.layer_of_block(per_layer.device)].repeat_interleave(self.block, -1)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The layers as named views into the flat vector [D]; nothing is copied.

        Raises:
            ValueError: if the vector does not have the layout's length.
        """
        if flat.shape != (self.length,):
            raise ValueError(f"expected a flat vector of shape [{self.length}], got {list(flat.shape)}")
        return {
            name: flat[start : start + size].view(shape)
            for name, shape, start, size in zip(self.names, self.shapes, self.offsets, self.sizes, strict=False)
        }

    def flatten(self, parameters: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Copy named parameters into one flat float32 vector [D] (into `out` when given).

        Args:
            parameters: name -> tensor; the names and shapes of this layout, in any order.
            out: vector [D] to write into; its padding must already be zero.

        Returns:
            The flat vector [D].

        Raises:
            ValueError: naming the first layer that is missing, unknown, of another shape, of an integer type,
                or that holds NaN or Inf.
        """
        self.check(parameters)
        flat = torch.zeros(self.length) if out is None else out
        for name, view in self.views(flat).items():
            view.copy_(parameters[name].detach())
        return flat

    @cached_property
    def _types(self) -> dict[str, torch.dtype]:
        return dict(zip(self.names, self.dtypes, strict=False))

    def check_type(self, name: str, dtype: torch.dtype) -> None:
        """A layer of an expert must come in the type of the pre-trained one.

        Raises:
            ValueError: if it does not: its rounding would pass for fine-tuning.
        """
        expected = self._types.get(name, dtype)
        if dtype != expected:
            mend = "save both in one type, or convert it and accept that its rounding is merged too"
            raise ValueError(f"layer '{name}' is {dtype}, the pre-trained one {expected}: {mend}")

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Compare names, shapes, types and finiteness with this layout; raises like `flatten`.

        Integer buffers that the layout lacks (`num_batches_tracked`) are ignored, as they are never merged.
        """
        for name in self.names:
            if name not in parameters:
                raise ValueError(f"layer '{name}' is missing: is this a checkpoint of another architecture?")
        for name, tensor in parameters.items():
            if name not in self.names and tensor.is_floating_point():
                raise ValueError(f"layer '{name}' is not part of the pre-trained model's layout")
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = parameters[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"layer '{name}' has shape {list(tensor.shape)}, expected {list(shape)}")
            if not tensor.is_floating_point():
                raise ValueError(f"layer '{name}' is {tensor.dtype}: only floating-point tensors can be merged")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"layer '{name}' holds NaN or Inf: its training diverged or the file is damaged")

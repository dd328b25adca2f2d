"""One merged model over several processes: who owns which blocks, and the four messages a step needs.

Each rank owns an equal, block-aligned run of theta0, of the task vectors, of the mask's logits and of their optimiser
state. A step sends (1) the sums over blocks, a thousandth of a vector, so that every rank adds them up to layer sums
in the same order and gets the same bits as one process does; (2) theta, gathered, because the model needs all of it;
(3) the gradient, reduced over the ranks' batches and scattered; (4) the loss. In a program started by torchrun:

    torch.distributed.init_process_group()
    shard = Shard.mine(layout)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from lib.vectors.layout import Layout


@dataclass(frozen=True)
class Shard:
    """The blocks that one process owns.

    Attributes:
        layout: of the whole vector [D].
        rank: number of this process.
        ranks: number of processes; with 1 nothing is sent.
    """

    layout: Layout
    rank: int = 0
    ranks: int = 1

    @classmethod
    def mine(cls, layout: Layout) -> Shard:
        """This process's part: all of it, unless torch.distributed has been started.

        Raises:
            ValueError: if the blocks cannot be shared equally.
        """
        if not distributed.is_initialized():
            return cls(layout)
        ranks, blocks = distributed.get_world_size(), layout.length // layout.block
        if blocks % ranks:
            raise ValueError(
                f"{blocks} blocks cannot be shared equally by {ranks} processes: "
                f"make the layout with Layout.of(parameters, parts={ranks})"
            )
        return cls(layout, distributed.get_rank(), ranks)

    @property
    def blocks(self) -> int:
        """How many blocks this process owns."""
        return self.layout.length // self.layout.block // self.ranks

    @property
    def first(self) -> int:
        """Its first block."""
        return self.rank * self.blocks

    @property
    def elements(self) -> slice:
        """Its part of a flat vector: `theta0[shard.elements]`, `task_vectors[:, shard.elements]`."""
        return slice(self.first * self.layout.block, (self.first + self.blocks) * self.layout.block)

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of a vector that it has whole: [..., D'] -> [..., D / ranks], a view where that is possible.

        D' may lack the empty blocks that a layout in parts has at its end; they are zero.
        """
        if self.ranks == 1:
            return whole
        own = whole[..., self.elements]
        lacking = self.blocks * self.layout.block - own.shape[-1]
        return torch.nn.functional.pad(own, (0, lacking)) if lacking else own

    def gather(self, own: Tensor, out: Tensor | None = None) -> Tensor:
        """The whole of what each rank holds a part of: [D / ranks, ...] -> [D, ...].

        With one rank its part is the whole and nothing is copied; else it is gathered (into `out` when given).
        """
        if self.ranks == 1:
            return own
        if out is None:
            out = own.new_empty(len(own) * self.ranks, *own.shape[1:])
        distributed.all_gather_into_tensor(out, own.contiguous())
        return out

    def layer_sums(self, per_block: Tensor) -> Tensor:
        """Add up sums over this rank's blocks to sums over whole layers: [..., n, 1] -> [..., L]."""
        return self.layout.add_blocks(self.gather(per_block.squeeze(-1).movedim(-1, 0)).movedim(0, -1))

    def per_block(self, per_layer: Tensor) -> Tensor:
        """Give each of this rank's blocks the value of its layer: [..., L] -> [..., n, 1]."""
        own = self.layout.layer_of_block(per_layer.device)[self.first : self.first + self.blocks]
        return per_layer[..., own].unsqueeze(-1)

    def reduce(self, gradient: Tensor) -> Tensor:
        """This rank's part of the sum of all ranks' gradients: [D] -> [n, block]."""
        if self.ranks > 1:
            own = gradient.new_empty(self.blocks * self.layout.block)
            distributed.reduce_scatter_tensor(own, gradient)
            gradient = own
        return gradient.unflatten(0, (-1, self.layout.block))

    def total(self, loss: float | Tensor) -> float | Tensor:
        """The sum of all ranks' losses; on the device, where they are there."""
        if self.ranks == 1:
            return loss
        every = torch.as_tensor(loss).to(torch.float64, copy=True)
        distributed.all_reduce(every)
        return every

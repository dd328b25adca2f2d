"""What adaptation minimises on images, and what the experts say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.adaptation.objectives import PredictionObjective
from lib.runtime.device import Runtime
from lib.vectors.batch_norm import Statistics, batch_norms, batch_statistics, load_statistics
from lib.vectors.flat_model import FlatModel
from lib.vision.batches import gather
from lib.vision.models import Preprocess
from lib.vision.scoring import features_of, logits_of, raw_features

CPU_PIXELS = 1_000_000  # pixels per pass on a CPU: 20 images of 224 x 224; what lies between layers then stays small


class ImageObjective(PredictionObjective[Tensor]):
    """The objective on images: one encoder for all tasks, each task's frozen head on its own rows.

    One batch is best on an accelerator and for small images; on a CPU many large ones are slower together than apart
    (`make benchmark`). With BatchNorm it is always one batch, whose own mean and variance normalise it: see
    `lib.vectors.batch_norm`.

    Args:
        model: image encoder bound to flat vectors.
        heads: frozen classification heads, one per task: see `logits_of`.
        images: unlabelled images, one uint8 [N_t, 3, H, W] per task.
        preprocess: pixels to the encoder's input.
        runtime: device and precision.
        rows_at_once: at most so many images per pass through the encoder, but at least one task's; 0 chooses.
        options: `batch`, `seed`, `objective`, `diversity` of `PredictionObjective`.

    Raises:
        ValueError: if heads and image sets differ in number, a set is empty, the objective is unknown, or a model with
            BatchNorm is to see the tasks apart.
    """

    def __init__(
        self,
        model: FlatModel,
        heads: Sequence[Tensor],
        images: Sequence[Tensor],
        preprocess: Preprocess,
        runtime: Runtime,
        *,
        rows_at_once: int = 0,
        **options: object,
    ) -> None:
        if len(heads) != len(images) or not heads:
            raise ValueError(f"{len(heads)} heads and {len(images)} image sets: every task needs one of each")
        for number, (head, pixels) in enumerate(zip(heads, images, strict=True)):
            if pixels.dtype != torch.uint8 or pixels.dim() != 4 or len(pixels) == 0:
                raise ValueError(f"image set {number} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,3,H,W]")
            if head.dim() != 2:
                raise ValueError(f"head {number} has shape {list(head.shape)}, expected [classes, width]")
        mixes = bool(batch_norms(model.module))  # then a row's prediction depends on the other rows
        if mixes and rows_at_once:
            raise ValueError(f"rows_at_once is {rows_at_once}, but BatchNorm needs all tasks in one batch: omit it")
        if not mixes and not rows_at_once and runtime.device == "cpu":
            rows_at_once = max(1, CPU_PIXELS // images[0][0, 0].numel())
        counts, classes = [len(pixels) for pixels in images], [len(head) for head in heads]
        super().__init__(model, runtime, counts, classes, rows_at_once=rows_at_once, **options)
        self.heads, self.images, self.preprocess = [head.to(runtime.device) for head in heads], list(images), preprocess

    def inputs(self, rows: Mapping[int, Tensor]) -> Tensor:
        """Pixels of the rows of all tasks, float32 [B, 3, H, W]."""
        return self.preprocess(gather([self.images[task] for task in rows], list(rows.values()), self.runtime.device))

    def logits(self, module: nn.Module, inputs: Tensor, rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """One [B_t, C_t] per task."""
        with batch_statistics(module):
            features = features_of(module, inputs, self.runtime)
        parts = features.split([len(own) for own in rows.values()])
        return [logits_of(own, self.heads[task]) for own, task in zip(parts, rows, strict=True)]


def features_at(
    model: FlatModel,
    theta: Tensor,
    pixels: Tensor,
    preprocess: Preprocess,
    runtime: Runtime,
    statistics: Statistics | None = None,
) -> Tensor:
    """Features of uint8 images [N, 3, H, W] at a point of R^D, as the encoder gives them: [N, width] on the CPU.

    The model is moved there; without `statistics` its BatchNorm has the running ones that it has now.
    """
    encoder = model.move_to(theta)
    if statistics:
        load_statistics(encoder, statistics)
    return raw_features(encoder, pixels, preprocess, runtime)


def image_logits(model: FlatModel, theta: Tensor, head: Tensor, *images: object) -> Tensor:
    """Predictions of a frozen head on these features: logits [N, C]; `images` as for `features_at`."""
    return logits_of(features_at(model, theta, *images), head.cpu())

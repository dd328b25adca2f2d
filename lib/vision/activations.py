"""Statistics of images that data-dependent fusion needs: diagonal Fisher information and Gram matrices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from lib.fusion.activations import Call, read_grams
from lib.runtime.device import Runtime
from lib.runtime.rng import generator
from lib.vectors.batch_norm import Statistics, load_statistics
from lib.vectors.flat_model import FlatModel
from lib.vision.models import Preprocess
from lib.vision.scoring import logits_of

GRADIENT_BYTES = {"cpu": 2**27, "cuda": 2**31, "mps": 2**30}  # gradients held at once; a CPU is fastest with few


def diagonal_fisher(
    model: FlatModel,
    theta: Tensor,
    head: Tensor,
    images: Tensor,
    preprocess: Preprocess,
    *,
    labels: Tensor | None = None,
    signs: int = 0,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> Tensor:
    """Diagonal Fisher information of a classifier: the mean over images of squared per-example gradients.

    Without labels the expectation over the model's own predictions (Matena and Raffel,
    https://arxiv.org/abs/2111.09832, section 3), by one backward pass per image and class:

        F_i = mean_x sum_c p(c|x) g_ci(x)^2,   g_c = d log p(c|x) / d theta

    With `signs` = n > 0, n backward passes per image instead, whatever the number of classes: random signs s_c have
    E (sum_c s_c sqrt(p_c) g_c)^2 = sum_c p_c g_c^2, so the estimate is unbiased. (FusionBench takes all signs +1 and
    sums over a batch before squaring, which is not.)

    With labels y the "empirical" Fisher information mean_x g_y^2, one backward pass per image. It is no estimate of the
    above: an expert that has fitted its training images leaves hardly any gradient there.

    Everything is computed in theta's own type, never in bf16, whose rounding would be squared with the gradients.

    Args:
        model: the image encoder; it is not moved.
        theta: where to take the gradients, an expert's parameters [D]; it also says on which device.
        head: frozen classification head [C, width].
        images: uint8 [N, 3, H, W].
        preprocess: pixels to input.
        labels: int64 [N], or None.
        signs: random signs per image; 0 takes the expectation exactly.
        seed: names the random signs.
        statistics: BatchNorm's running statistics to use; None for the model's present ones.

    Returns:
        [D], in theta's dtype; the padding is zero.

    Raises:
        ValueError: if there are no images, they are not uint8 [N, 3, H, W], or the labels do not fit images and head,
            or `signs` is negative.
    """
    _check_images(images)
    chosen = _combinations(len(images), len(head), labels, signs, seed)
    if statistics is not None:
        load_statistics(model.module, statistics)
    module, head = model.module.eval(), head.to(theta)
    parameters, fisher = model.layout.views(theta), torch.zeros_like(theta)

    def log_probabilities(parameters: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # vmap would take fused attention apart into a loop
            features = functional_call(module, parameters, (pixels[None],))
        return torch.log_softmax(logits_of(features[0].to(head), head), dim=-1)  # [C]

    def squares(parameters: Mapping[str, Tensor], pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
        outcome, pull_back = vjp(lambda point: log_probabilities(point, pixels), parameters)
        weights = outcome.exp().sqrt() if labels is None else torch.ones_like(outcome)  # a root, as it will be squared
        (gradients,) = vmap(pull_back)(rows * weights)  # name -> [rows, *shape]
        return {name: gradient.square().sum(0) for name, gradient in gradients.items()}

    sums = model.layout.views(fisher)
    at_once = max(1, GRADIENT_BYTES[theta.device.type] // (theta.element_size() * len(theta)))  # gradients
    batch = max(1, at_once // chosen.shape[1])  # images
    for pixels, rows in zip(images.split(batch), chosen.split(batch), strict=True):
        pixels = preprocess(pixels.to(theta.device)).to(theta.dtype)
        for some in rows.to(theta).split(at_once, dim=1):
            for name, values in vmap(squares, in_dims=(None, 0, 0))(parameters, pixels, some).items():
                sums[name] += values.sum(0)
    return fisher / len(images)


def _combinations(images: int, classes: int, labels: Tensor | None, signs: int, seed: int) -> Tensor:
    """Which combinations of an image's C log-probabilities are differentiated and squared: [N, rows, C]."""
    if labels is not None:
        if labels.shape != (images,) or not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels have shape {list(labels.shape)}, expected [{images}] numbers from 0 to "
                             f"{classes - 1}: one per image, within the head's classes")  # fmt: skip
        return one_hot(labels, classes)[:, None]
    if signs < 0:
        raise ValueError(f"signs is {signs}, expected a number of random signs per image, or 0 for all classes")
    if signs == 0:
        return torch.eye(classes).expand(images, -1, -1)
    return (torch.randint(0, 2, (images, signs, classes), generator=generator("signs", seed)) * 2 - 1) / signs**0.5


def input_grams(
    model: FlatModel,
    theta: Tensor,
    images: Tensor,
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    layers: Collection[str] = (),
    batch: int = 64,
    statistics: Statistics | None = None,
) -> dict[str, Tensor]:
    """Gram matrices of what every linear layer reads: G = X^T X / rows (RegMean, https://arxiv.org/abs/2212.09849).

    X has one row per image and token; dividing by their number makes tasks with fewer images count the same, as in
    published codes. Read are `nn.Linear` modules and both projections of an `nn.MultiheadAttention` (see `readers`).
    Convolutions, also of kernel 1 x 1, have no Gram matrix here; RegMean averages them.

    Args:
        model: the image encoder; it is not moved.
        theta: parameters to run it with [D].
        images: unlabelled, uint8 [N, 3, H, W].
        preprocess: pixels to input.
        runtime: device and precision.
        layers: parameter names to read; by default all that can be read. Others are left out, and a pass ends
            when each of these has been read once.
        batch: images per pass.
        statistics: BatchNorm's running statistics to use; None for the model's present ones.

    Returns:
        Parameter name -> [in, in] on the CPU, added up in float64 and returned in theta's dtype. A layer that the
        forward pass did not call is absent.

    Raises:
        ValueError: if there are no images or they are not uint8 [N, 3, H, W].
    """
    calls = image_calls(images, preprocess, theta, batch)
    if statistics is not None:
        load_statistics(model.module, statistics)
    return read_grams(model, theta, calls, runtime, layers=layers)


def image_calls(images: Tensor, preprocess: Preprocess, like: Tensor, batch: int = 64) -> Iterator[Call]:
    """Forward passes over images, in the type and on the device of `like`: see `lib.fusion.activations`.

    Raises:
        ValueError: if there are no images or they are not uint8 [N, 3, H, W].
    """
    _check_images(images)
    return (((preprocess(part.to(like.device)).to(like.dtype),), {}) for part in images.split(batch))


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, 3, H, W] with N >= 1")

"""Statistics of a task's images that data-dependent fusion needs: diagonal Fisher information and Gram matrices.

All of it is computed at a point theta of R^D without moving the model there: `torch.func.functional_call` lends the
module its parameters for one pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, normalize, one_hot, scaled_dot_product_attention
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.layout import Layout
from lib.models import Preprocess
from lib.rng import generator

VERSION = 1  # part of every artifact key; raise it when the arithmetic changes
GRADIENT_BYTES = {"cpu": 2**27, "cuda": 2**31, "mps": 2**30}  # gradients held at once; a CPU is fastest with few
BLOCK = re.compile(r"(.*\b(?:blocks|resblocks|layers)\.\d+)\.")  # timm, open_clip and Hugging Face blocks

Call = tuple[tuple, Mapping[str, object]]  # positional and keyword arguments
Reader = Callable[[nn.Module, Mapping[str, Tensor]], Tensor | None]


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

    Returns:
        [D], in theta's dtype; the padding is zero.

    Raises:
        ValueError: if there are no images, they are not uint8 [N, 3, H, W], or the labels do not fit images and head,
            or `signs` is negative.
    """
    _check_images(images)
    chosen = _combinations(len(images), len(head), labels, signs, seed)
    module, head = model.module.eval(), head.to(theta)
    parameters, fisher = model.layout.views(theta), torch.zeros_like(theta)

    def log_probabilities(parameters: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # vmap would take fused attention apart into a loop
            features = functional_call(module, parameters, (pixels[None],))
        return torch.log_softmax(normalize(features[0].to(head), dim=-1) @ head.T, dim=-1)  # [C]

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

    Returns:
        Parameter name -> [in, in] on the CPU, added up in float64 and returned in theta's dtype. A layer that the
        forward pass did not call is absent.

    Raises:
        ValueError: if there are no images or they are not uint8 [N, 3, H, W].
    """
    _check_images(images)
    pixels = (preprocess(part.to(theta.device)).to(theta.dtype) for part in images.split(batch))
    return read_grams(model, theta, (((part,), {}) for part in pixels), runtime, layers=layers)


@torch.no_grad()
def read_grams(
    model: FlatModel, theta: Tensor, calls: Iterable[Call], runtime: Runtime, *, layers: Collection[str] = ()
) -> dict[str, Tensor]:
    """What `input_grams` returns, of any model.

    Args:
        model: what is called; it is not moved.
        theta: parameters to run it with [D].
        calls: positional and keyword arguments of its forward passes.
        runtime: device and precision.
        layers: parameter names to read; by default all that can be read.
    """
    known = readers(model.module.eval())
    wanted = {name: known[name] for name in (layers or known) if name in known}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(wanted, 0)
    pending: set[str] = set()

    def hook(name: str, read: Reader) -> Callable:
        def before(part: nn.Module, arguments: tuple, named: dict) -> None:
            inputs = read(part, dict(zip(("query", "key", "value"), arguments, strict=False)) | named)
            if inputs is not None:
                rows = inputs.flatten(0, -2)
                rows = (rows.cpu() if rows.is_mps else rows).double()  # Apple GPUs know no float64
                sums[name] = sums.get(name, 0) + rows.T @ rows
                counts[name] += len(rows)
            pending.discard(name)
            if not pending:
                raise _AllRead

        return before

    parameters = model.layout.views(theta)
    handles = [
        part.register_forward_pre_hook(hook(name, read), with_kwargs=True) for name, (part, read) in wanted.items()
    ]
    try:
        for arguments, named in calls if wanted else ():
            pending.update(wanted)
            with suppress(_AllRead), runtime.autocast():
                functional_call(model.module, parameters, arguments, dict(named))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).to("cpu", theta.dtype) for name, total in sums.items()}


class _AllRead(Exception):
    """Ends a forward pass of which nothing more is wanted."""


def readers(module: nn.Module) -> dict[str, tuple[nn.Module, Reader]]:
    """Which parameters multiply an input that can be read: name -> the module that is called, how to read it.

    `nn.MultiheadAttention` uses its weights without calling a module, so a hook on `out_proj` would never fire. In
    self-attention without a mask, as in image encoders, both inputs follow from its own: `in_proj_weight` reads the
    tokens, `out_proj.weight` the attention's result, which is computed a second time. Otherwise they have no Gram
    matrix, and RegMean averages them.
    """
    found: dict[str, tuple[nn.Module, Reader]] = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, nn.MultiheadAttention):
            found[f"{prefix}in_proj_weight"] = part, _tokens
            found[f"{prefix}out_proj.weight"] = part, _attended
        elif isinstance(part, nn.Linear) and not isinstance(part, NonDynamicallyQuantizableLinear):
            found[f"{prefix}weight"] = part, lambda _, inputs: next(iter(inputs.values()))
    return found


def _tokens(part: nn.MultiheadAttention, inputs: Mapping[str, Tensor]) -> Tensor | None:
    same = inputs["key"] is inputs["query"] and inputs["value"] is inputs["query"]
    return inputs["query"] if same and part.in_proj_weight is not None else None


def _attended(part: nn.MultiheadAttention, inputs: Mapping[str, Tensor]) -> Tensor | None:
    tokens = _tokens(part, inputs)
    masked = inputs.get("attn_mask") is not None or inputs.get("key_padding_mask") is not None
    if tokens is None or masked or part.bias_k is not None or part.add_zero_attn:
        return None
    tokens = tokens if part.batch_first else tokens.transpose(0, 1)
    projected = linear(tokens, part.in_proj_weight, part.in_proj_bias).unflatten(-1, (3, part.num_heads, -1))
    query, key, value = projected.permute(2, 0, 3, 1, 4)  # each [N, heads, tokens, width / heads]
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def layer_groups(model: FlatModel) -> tuple[tuple[str, ...], ...]:
    """The groups of RegMean++: each block's parameters, and each readable layer outside of blocks by itself.

    The order is the layout's, which is the order of the forward pass in models written as a sequence of blocks.
    """
    layout: Layout = model.layout
    readable = readers(model.module)
    groups: dict[str, list[str]] = {}
    for name in layout.names:
        block = BLOCK.match(name)
        if block or name in readable:
            groups.setdefault(block[1] if block else name, []).append(name)
    return tuple(tuple(group) for group in groups.values())


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, 3, H, W] with N >= 1")

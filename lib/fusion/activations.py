"""What the layers of any model read, as statistics: Gram matrices for RegMean, moments of two models for FeatCal.

They are computed at a point theta of R^D without moving the model there: `torch.func.functional_call` lends the
module its parameters for one pass.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm, linear, pad, scaled_dot_product_attention
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout

BLOCK = re.compile(r"(.*\b(?:blocks|resblocks|layers|block)\.\d+)\.")  # of timm, open_clip, Hugging Face and its T5

Call = tuple[tuple, Mapping[str, object]]  # positional and keyword arguments
Reader = Callable[[nn.Module, Mapping[str, Tensor]], Tensor | None]


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

    def add(name: str, rows: Tensor) -> None:
        sums[name] = sums.get(name, 0) + rows.T @ rows
        counts[name] += len(rows)

    parameters = model.layout.views(theta)
    for call in calls if wanted else ():
        _read(model.module, parameters, call, wanted, runtime, add)
    return {name: (total / counts[name]).to("cpu", theta.dtype) for name, total in sums.items()}


@torch.no_grad()
def read_moments(
    model: FlatModel,
    points: Sequence[Tensor],
    calls: Iterable[Call],
    runtime: Runtime,
    *,
    layers: Collection[str],
    buffers: Sequence[Mapping[str, Tensor]] = ({}, {}),
) -> dict[str, Tensor]:
    """First and second moments of what layers read in a merged model and in an expert, on the same inputs.

    With X [n, in] and Y [n, in] what a layer reads in each of them, one row per input and token, and a column of ones
    behind each:

        moments = (X^T X / n, X^T Y / n),   so their last column and row hold the means of X and of Y

    A LayerNorm reads its input normalised, but not yet scaled and shifted; its moments are those of its `weight`.

    Args:
        model: what is called; it is not moved.
        points: parameters of the merged model and of the expert, [D] each.
        calls: positional and keyword arguments of the forward passes; each is made with both.
        runtime: device and precision.
        layers: parameter names to read; those that cannot be read are left out.
        buffers: of both models, where they differ from the present ones (BatchNorm's running statistics).

    Returns:
        Parameter name -> [2, in + 1, in + 1] on the CPU, added up in float64 and returned in the points' dtype.
    """
    module = model.module.eval()
    known = readers(module) | norm_readers(module)
    wanted = {name: known[name] for name in layers if name in known}
    states = [model.layout.views(point) | dict(own) for point, own in zip(points, buffers, strict=True)]
    sums: dict[str, Tensor] = {}
    for call in calls if wanted else ():
        merged, expert = defaultdict(list), defaultdict(list)
        for state, seen in zip(states, (merged, expert), strict=True):
            _read(module, state, call, wanted, runtime, lambda name, rows, seen=seen: seen[name].append(rows))
        for name in merged:
            x, y = (pad(torch.cat(seen[name]), (0, 1), value=1.0) for seen in (merged, expert))
            sums[name] = sums.get(name, 0) + torch.stack([x.T @ x, x.T @ y])
    return {name: (total / total[0, -1, -1]).to("cpu", points[0].dtype) for name, total in sums.items()}


def _read(
    module: nn.Module,
    state: Mapping[str, Tensor],
    call: Call,
    wanted: Mapping[str, tuple[nn.Module, Reader]],
    runtime: Runtime,
    take: Callable[[str, Tensor], None],
) -> None:
    """One forward pass: `take(name, rows)` gets in float64 what each wanted layer reads. It ends when all have been."""
    pending = set(wanted)

    def hook(name: str, read: Reader) -> Callable:
        def before(part: nn.Module, arguments: tuple, named: dict) -> None:
            inputs = read(part, dict(zip(("query", "key", "value"), arguments, strict=False)) | named)
            if inputs is not None:
                rows = inputs.flatten(0, -2)
                take(name, (rows.cpu() if rows.is_mps else rows).double())  # Apple GPUs know no float64
            pending.discard(name)
            if not pending:
                raise _AllRead

        return before

    handles = [
        part.register_forward_pre_hook(hook(name, read), with_kwargs=True) for name, (part, read) in wanted.items()
    ]
    try:
        with suppress(_AllRead), runtime.autocast():
            functional_call(module, dict(state), call[0], dict(call[1]))
    finally:
        for handle in handles:
            handle.remove()


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


def norm_readers(module: nn.Module) -> dict[str, tuple[nn.Module, Reader]]:
    """The scales of LayerNorms over the last dimension, as in `readers`; what they multiply is the normalised input."""
    found: dict[str, tuple[nn.Module, Reader]] = {}
    for path, part in module.named_modules():
        if isinstance(part, nn.LayerNorm) and part.weight is not None and part.weight.dim() == 1:
            found[f"{path}.weight" if path else "weight"] = part, _normalised
    return found


def _normalised(part: nn.LayerNorm, inputs: Mapping[str, Tensor]) -> Tensor | None:
    values = next(iter(inputs.values()))
    channels_last = not type(part).__name__.endswith("2d")  # timm's LayerNorm2d is one over the second dimension
    return layer_norm(values, part.normalized_shape, eps=part.eps) if channels_last else None


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
    """The groups of RegMean++ and FeatCal: each block's parameters, and each readable layer outside by itself.

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

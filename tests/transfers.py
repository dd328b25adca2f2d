"""An accelerator without numbers: what would be copied between it and the host, counted without having one.

The device is torch's "meta". Its tensors have shapes only, and each operation is given to the device without waiting;
what waits is to read a number (`.item()`, `.tolist()`, `float()`, `bool()`), to copy to or from the host, and any
operation whose shape depends on values, which "meta" refuses.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.runtime.device import Runtime

aten = torch.ops.aten


class NoDevice(Runtime):
    """Where tensors without numbers compute."""

    def __init__(self):
        super().__init__("meta")

    def autocast(self):
        return nullcontext()


class Transfers(TorchDispatchMode):
    """Counts, inside, what goes from the host to the device and back.

    Attributes:
        up: copies to the device, as (operation, shape).
        down: numbers and tensors read from it.
    """

    def __init__(self):
        super().__init__()
        self.up, self.down = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = any(tensor.device.type == "meta" for tensor in given)
        wanted = kwargs.get("device")
        if function is aten._local_scalar_dense.default and there:
            self.down.append((str(function), ()))
            return 1.0
        if there and wanted is not None and torch.device(wanted).type == "cpu":
            self.down.append((str(function), tuple(given[0].shape)))
            return torch.ones(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if function is aten.lift_fresh.default and there:  # torch.tensor(..., device=...)
            self.up.append(("torch.tensor", tuple(given[0].shape)))
        if function is aten.copy_.default and given[0].device != given[1].device:
            (self.down if given[1].device.type == "meta" else self.up).append((str(function), tuple(given[0].shape)))
            return given[0]
        made = function(*args, **kwargs)
        if given and not there and isinstance(made, torch.Tensor) and made.device.type == "meta":
            self.up.append((str(function), tuple(made.shape)))
        return made

"""Where and how precisely to compute, chosen once per notebook."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Runtime:
    """A device and the precision of the encoder's forward pass; parameters are always float32."""

    device: str = "cpu"
    precision: str = "fp32"

    def autocast(self) -> AbstractContextManager:
        """bf16 autocast when that is the precision, else nothing."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bf16")


def choose_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """CUDA with bf16 autocast when present, else the CPU in fp32, unless told otherwise.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ... or "mps".
        precision: "auto", "fp32" or "bf16".

    Raises:
        ValueError: for an unknown name, or a device that this machine or this build of torch lacks.
    """
    kind = device.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"unknown device '{device}'; known: {', '.join(DEVICES)} (or cuda:1, ...)")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision '{precision}'; known: {', '.join(PRECISIONS)}")
    if device == "auto":
        device = kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}' asked for, but torch sees no CUDA device; use device='cpu' or 'auto'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' asked for, but torch sees no Apple GPU; use device='cpu' or 'auto'")
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
    return Runtime(device, precision)

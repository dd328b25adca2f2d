"""Where and how precisely to compute, chosen once per notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.runtime.launch import launched

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Runtime:
    """A device and the precision of the encoder's forward pass; parameters are always float32."""

    NOT_IN_KEYS = ("device",)  # devices differ by rounding alone

    device: str = "cpu"
    precision: str = "fp32"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 autocast when that is the precision, else nothing.

        On a CPU attention is then computed as written: for the few tokens of our images, torch's fused one in bf16
        takes half of a training step (benchmarked with DeiT-Tiny at 96 pixels: 0.52 s a step of 32 images, so 0.33 s).
        """
        kind, half = self.device.split(":")[0], self.precision == "bf16"
        plain = sdpa_kernel(SDPBackend.MATH) if half and kind == "cpu" else nullcontext()
        with torch.autocast(kind, torch.bfloat16, enabled=half), plain:
            yield


def choose_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """CUDA with bf16 autocast when present, else the CPU in fp32, unless told otherwise.

    Of several processes that torchrun started each gets a GPU of its own.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ... or "mps".
        precision: "auto", "fp32" or "bf16".

    Raises:
        ValueError: for an unknown name, a device that this machine or this build of torch lacks, or fewer GPUs than
            processes.
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
    if launched().processes > 1 and kind != "cpu":
        device = _own_gpu(device)
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
    if kind == "cuda":  # what is not under autocast is float32 throughout: torch's default rounds convolutions to TF32
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    return Runtime(device, precision)


def _own_gpu(device: str) -> str:
    """The GPU of this process among those that torchrun started here."""
    launch, gpus = launched(), torch.cuda.device_count()
    if device != "cuda":
        raise ValueError(f"device '{device}' is one device for {launch.processes} processes; use device='auto'")
    if launch.processes_here > gpus:
        raise ValueError(
            f"{launch.processes_here} processes were started, but torch sees {gpus} GPU{'s' if gpus > 1 else ''} here: "
            f"start at most {gpus} (make study GPUS={gpus}), or set device='cpu'"
        )
    return f"cuda:{launch.here}"

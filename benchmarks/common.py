"""What the benchmarks share: where things lie, the shapes they measure, the memory of a process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def vit_b_32_shapes(scale: float) -> dict[str, list[int]]:
    """Names and shapes of open_clip's ViT-B/32 image encoder, cut to `scale` of their rows for smaller D."""
    from open_clip import get_model_config
    from open_clip.model import _build_vision_tower

    config = get_model_config("ViT-B-32")
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    return {
        name: [max(1, round(tensor.shape[0] * scale)), *tensor.shape[1:]] for name, tensor in visual.named_parameters()
    }


def peak_resident() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss would also remember the parent process from before exec
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""Run phases of adaptation at a small ViT-B/32 and print, for each, bytes planned and bytes measured (Linux)."""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from lib.adaptation.loop import adapt
from lib.adaptation.memory_plan import check
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

TASKS, BATCH, SIDE = 8, 8, 112  # 49 patches and a class token, as ViT-B/32 has at 224


def resident(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(word)) * 1024


def phase(visual, kind, micro_batch, **options):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS") - sum(parameter.nbytes for parameter in visual.parameters())
    model = FlatModel(visual)
    layout, theta0 = model.layout, model.initial()
    model.move_to(theta0)
    vectors = torch.zeros(TASKS, layout.length, dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    for vector in vectors:
        vector.copy_(1e-3 * torch.randn(layout.length) * layout.inside())
    heads = [torch.randn(10, 64) for _ in range(TASKS)]
    images = [torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8) for _ in range(TASKS)]
    scale = Preprocess((0.5,) * 3, (0.25,) * 3)
    objective = ImageObjective(
        model, heads, images, scale, Runtime(), batch=BATCH, seed=0, rows_at_once=micro_batch or TASKS * BATCH
    )
    learn, layers = options["learn_mask"], options["coefficients"]
    flags = {"learn_mask": learn, "coefficients": layers is not None, "fixed_mask": False, "exact": False}
    said = check("phase", objective, theta0, vectors, room=lambda _: None, **flags)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    adapt(objective, theta0, vectors, layout, steps=1, backend="eager", **options)
    size, unit = said.split("about ")[1].split()[:2]
    return {"planned": float(size) * {"GB": 1e9, "MB": 1e6}[unit], "measured": resident("VmHWM") - before}


if __name__ == "__main__":
    torch.manual_seed(0)
    config = CLIPVisionCfg(layers=5, width=256, head_width=64, patch_size=16, image_size=SIDE)
    cases = [
        ("bf16", 8, {"learn_mask": True, "coefficients": None}),
        ("fp32", 0, {"learn_mask": True, "coefficients": "layer"}),
    ]
    small = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=SIDE)
    phase(_build_vision_tower(64, small), *cases[1][:2], **cases[1][2])  # what libraries take once is no part of a plan
    found = [phase(_build_vision_tower(64, config), kind, most, **case) for kind, most, case in cases]
    print(json.dumps(found), file=sys.stderr)

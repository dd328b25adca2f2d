"""What the benchmarks share: where things lie, what they measure and on what, a process of its own for every case."""

from __future__ import annotations

import functools
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from lib.runtime.disk import ROOT as ROOT


def vit_b_32() -> nn.Module:
    """open_clip's ViT-B/32 image encoder with random weights."""
    from open_clip import get_model_config
    from open_clip.model import _build_vision_tower

    config = get_model_config("ViT-B-32")
    return _build_vision_tower(config["embed_dim"], config["vision_cfg"])


@functools.cache
def vit_b_32_shapes(scale: float) -> dict[str, list[int]]:
    """Names and shapes of that encoder's parameters, cut to `scale` of their rows for smaller D."""
    with torch.device("meta"):
        visual = vit_b_32()
    return {
        name: [max(1, round(tensor.shape[0] * scale)), *tensor.shape[1:]] for name, tensor in visual.named_parameters()
    }


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def machine(device: str = "cpu") -> dict[str, object]:
    """Columns that say where figures come from."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"machine": name, "threads": torch.get_num_threads(), "torch": torch.__version__.split("+")[0]}


def in_own_process(module: str, case: dict, *options: str) -> dict | str:
    """Run `python -m module --case <case>` and return what its last line of output says, or why it failed.

    Its peak memory is then its own. Should memory run out, it is the one that Linux stops, not its neighbours.
    """
    command = [sys.executable, "-m", module, *options, "--case", json.dumps(case)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        score = Path(f"/proc/{process.pid}/oom_score_adj")
        if score.exists():
            score.write_text("1000")
        output, errors = process.communicate()
    if process.returncode < 0:
        return f"stopped by signal {-process.returncode}" + " (out of memory?)" * (process.returncode == -9)
    if process.returncode:
        return (errors.strip().splitlines() or ["no message"])[-1][:150]
    return json.loads(output.strip().splitlines()[-1])


def peak_resident() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss would also remember the parent process from before exec
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Measured:
    """Rows of what took how long, printed as they come."""

    def __init__(self, **case: object) -> None:
        self.case, self.rows = case, []
        self.begin()

    def begin(self) -> None:
        """Let the clock start anew."""
        self.began = time.perf_counter()

    def __call__(self, what: str, parts: int = 1) -> None:
        """Note what was done since the last time, and the seconds of each of its parts."""
        seconds, peak = (time.perf_counter() - self.began) / parts, peak_resident() / 1e9
        self.rows.append({**self.case, "what": what, "seconds": seconds, "peak_gb": peak})
        print(f"{what:75s} {seconds:8.2f} s  {peak:5.2f} GB", flush=True)
        self.begin()

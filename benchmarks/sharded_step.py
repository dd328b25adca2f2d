"""What each process holds when one merged model is shared: `python -m benchmarks.sharded_step`.

Starts 1, 2 and 4 processes on this machine with torchrun (gloo), each with its part of eight task vectors of ViT-B/32
size, lets them learn a mask for two steps on a random gradient, and writes each process's peak memory to
data/benchmarks/sharded_step.csv. Every process holds the whole of theta and of the gradient, because the model needs
them; theta0, task vectors, logits and moments it holds in part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as distributed

from benchmarks.common import ROOT, peak_resident, vit_b_32_shapes
from lib.concrete.merge_step import MergeStep
from lib.concrete.sharding import Shard
from lib.vectors.layout import Layout

TABLE = ROOT / "data/benchmarks/sharded_step.csv"
TASKS = 8


def work(shapes_file: Path) -> None:
    """One process: two steps on its part, then one line of figures."""
    torch.set_num_threads(1)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    shapes = json.loads(shapes_file.read_text())
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    layout = Layout(tuple(shapes), tuple(map(tuple, shapes.values())), parts=ranks)
    shard = Shard.mine(layout)
    own = shard.blocks * layout.block
    merging = MergeStep(torch.zeros(own), torch.zeros(TASKS, own).normal_(), layout, backend="eager", shard=shard)
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    gradient = torch.zeros(layout.length).normal_()
    started = time.perf_counter()
    for step in range(2):
        merging.draw(step)
        merging.merge(torch.full((TASKS, layout.layers), 0.3))
        merging.update_mask(gradient)
    seconds = (time.perf_counter() - started) / 2
    row = {"ranks": ranks, "rank": shard.rank, "peak_gb": peak_resident() / 1e9, "seconds": seconds}
    (shapes_file.parent / f"{ranks}-{shard.rank}.json").write_text(json.dumps(row))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def main() -> None:
    """Start the processes, collect what they say, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    import tempfile

    import pandas as pd

    from lib.study.tables import save_table

    with tempfile.TemporaryDirectory() as name:
        shapes_file = Path(name) / "shapes.json"
        shapes_file.write_text(json.dumps(vit_b_32_shapes(1.0)))
        for ranks in (1, 2, 4):
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            launcher = launcher if ranks > 1 else [sys.executable]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([*launcher, __file__, "--work", str(shapes_file)], check=True, env=environment, cwd=ROOT)
        rows = [json.loads(path.read_text()) for path in Path(name).glob("*-*.json")]
    table = pd.DataFrame(rows).sort_values(["ranks", "rank"]).assign(tasks=TASKS, backend="eager", threads=1)
    print(table.to_string(index=False))
    print(f"Written to {save_table(table, TABLE)}")


if __name__ == "__main__":
    main()

"""Time and memory of the paper's pipeline at the paper's size: `python -m benchmarks.scale`.

The profile `clip-vit-b-32` (or -b-16, -l-14) on the stand-in of `benchmarks.stand_in_hub`: its files are of the real
sizes and formats, its numbers are random. Both lineages of experts are read, heads are made of text, then the model is
merged by averaging, Task Arithmetic and Ties-Merging, by one step of layer-wise AdaMerging and by one step of each
phase of Concrete AdaMerging, and one batch per task is scored. The first step of a kind includes compiling it. With
little memory name fewer tasks or a smaller batch, or leave out the mask: its logits and moments are three more models.

`peak_gb` is the most that the process has held until then. Writes data/benchmarks/scale.csv; each model and number of
tasks keeps its rows there until it is measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.common import ROOT, Measured, machine
from benchmarks.stand_in_hub import MODELS, StandIn, profile_of, write_stand_in
from lib.files.lineages import HUGGING_FACE
from lib.study.profiles import PAPER_TASKS, get_profile
from lib.study.recipes import merge_by_name
from lib.study.study import Study
from lib.study.tables import save_table
from lib.study.vision import VisionWorkspace

TABLE = ROOT / "data/benchmarks/scale.csv"
CASE = ["model", "tasks", "batch"]
BASELINES = ("Weight averaging", "Task Arithmetic", "Ties-Merging")
ADAPTIVE = {"AdaMerging (layer-wise)": 1, "Concrete AdaMerging (layer-wise)": 2}  # name -> phases


def open_stand_in(
    stand_in: StandIn, lineage: str, root: Path, model: str, tasks: str = PAPER_TASKS, **changed: object
) -> VisionWorkspace:
    """Open the profile that the stand-in is for.

    Args:
        stand_in: where everything lies.
        lineage: whose experts.
        root: folder for caches and tables.
        model: of `stand_in_hub.MODELS`.
        tasks: names of its sets.
        changed: more fields of the profile.
    """
    changed = {"mask_steps": 1, "adaptation_steps": 1, **changed, "tasks": tasks}
    changed |= {"model": stand_in.model, "experts": stand_in.experts[lineage]}
    return VisionWorkspace(Study(get_profile(profile_of(model), **changed), data_root=stand_in.data_root, root=root))


def measure(folder: Path, model: str, tasks: str, batch: int, adaptive: Sequence[str]) -> list[dict]:
    """Run the pipeline with some of the adaptive methods and return its rows."""
    names = tasks.split()
    note = Measured(model=model, tasks=len(names), batch=batch)
    stand_in = write_stand_in(folder / "hub", model, names, images=4)
    note(f"writing model, {len(names)} experts in two formats, and images")
    for lineage in sorted(stand_in.experts, key=HUGGING_FACE.__eq__):  # that of the Hugging Face hub last, and kept
        workspace = open_stand_in(stand_in, lineage, folder, model, tasks, adaptation_batch=batch)
        assert workspace.theta0.any()
        note(f"loading CLIP, {sum(p.numel() for p in workspace.clip.model.parameters()) / 1e6:.0f} million parameters")
        length = workspace.task_vectors.shape[1]
        note(f"reading {lineage} experts into task vectors [{len(names)}, {length}]")
    prompts = sum(len(task.class_names) * len(task.templates) for task in workspace.tasks.values())
    assert all(head.any() for head in workspace.heads.values())
    note(f"heads from {prompts} prompts")
    images = sum(map(len, workspace.setting().inputs.values()))
    note(f"decoding {images} images for adaptation")
    for method in BASELINES:
        merge_by_name(workspace, method)
        note(method)
    for method in adaptive:
        merged = merge_by_name(workspace, method)
        note(f"{method}, 1 step" + " of each phase" * (ADAPTIVE[method] > 1))
    workspace.evaluate(merged.theta, method, limit=batch)
    note(f"decoding and scoring {len(names)} x {batch} images")
    return note.rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32", choices=MODELS)
    parser.add_argument("--tasks", default=PAPER_TASKS, help="names of the sets, by default all eight")
    parser.add_argument("--batch", type=int, default=16, help="images per task and step")
    parser.add_argument("--without-mask", action="store_true", help="leave out Concrete AdaMerging")
    given = parser.parse_args()
    adaptive = [method for method, phases in ADAPTIVE.items() if phases == 1 or not given.without_mask]
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place), given.model, given.tasks, given.batch, adaptive)
    if given.model == "quick":
        return
    table = pd.DataFrame([row | machine() for row in rows])
    if TABLE.is_file():
        before = pd.read_csv(TABLE)
        same = before[CASE].eq(table[CASE].iloc[0]).all(axis=1)
        table = pd.concat([before[~same], table], ignore_index=True)
    print(f"Written to {save_table(table, TABLE).relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""Memory and time of merging Flan-T5 with LoRA experts: `python -m benchmarks.language`.

Checkpoints of the architecture of google/flan-t5-base (or -large) with random weights, and eight adapters beside them,
are written to a temporary folder in the formats of the hub and read back by the code that reads the real ones. The
rest is the study itself: text through the tokenizer, profile `flan-t5-base` with its batches, a few steps of Concrete
AdaMerging. With STUDY_T5_TOKENIZER the text is tokenised by the real T5 vocabulary in that folder, else by the tiny
T5's; with `--data-root` it is GLUE's, else drawn.

Writes data/benchmarks/language.csv.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.common import ROOT, Measured, machine

TABLE = ROOT / "data/benchmarks/language.csv"
# What differs from T5's defaults in the configurations on the hub.
ARCHITECTURES = {
    "flan-t5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "flan-t5-large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "quick": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2, "d_kv": 32},
}


def write_checkpoints(name: str, folder: Path) -> Path:
    """A T5 of that architecture with random weights, and its tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    from lib.language.t5 import TINY_T5

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        **ARCHITECTURES[name],
    )  # fmt: skip
    disable_progress_bar()
    T5ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(os.environ.get("STUDY_T5_TOKENIZER") or TINY_T5).save_pretrained(folder)
    return folder


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="flan-t5-base", choices=ARCHITECTURES)
    parser.add_argument("--data-root", default="", help="a folder with glue/<config>/*.parquet; else drawn text")
    parser.add_argument("--steps", type=int, default=2, help="steps of each phase")
    options = parser.parse_args()
    import pandas as pd

    from lib.study.language import LanguageWorkspace
    from lib.study.profiles import DRAWN_TEXT_TASKS, GLUE_TASKS, get_profile
    from lib.study.recipes import merge_by_name
    from lib.study.study import Study
    from lib.study.tables import save_table

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = {f"{split}_texts": 64 for split in ("train", "validation", "adaptation", "test", "curve")}
        changed = {"tasks": GLUE_TASKS if options.data_root else DRAWN_TEXT_TASKS, **texts}
        changed |= {"model": str(write_checkpoints(options.model, folder / "model")), "mask_steps": options.steps}
        changed |= {"adaptation_steps": options.steps, "adapters": str(folder / "experts" / "{task}")}
        study = Study(get_profile("flan-t5-base", **changed), data_root=options.data_root, root=folder)
        workspace = LanguageWorkspace(study)
        for task in workspace.tasks:  # experts: the fresh adapter and a little noise
            noise = 0.01 * torch.randn_like(workspace.adapter0) * workspace.adapter_model.layout.inside()
            workspace.adapters = {task: workspace.adapter_model.layout.views(workspace.adapter0 + noise)}
            workspace.save_adapter(task, folder / "experts" / task)
        workspace = LanguageWorkspace(study)

        print(
            f"{options.model}: {sum(p.numel() for p in workspace.t5.model.parameters()) / 1e6:.0f} million parameters"
        )
        note = Measured(model=options.model)
        vectors = workspace.task_vectors
        note(f"reading 8 adapters into task vectors [8, {vectors.shape[1]}]")
        setting = workspace.setting()
        for method, phases in (("AdaMerging (layer-wise)", 1), ("Concrete AdaMerging (layer-wise)", 2)):
            note.begin()
            merged = merge_by_name(workspace, method, setting)
            note(f"{method}, a step (mean over {options.steps} of each phase)", phases * options.steps)
        workspace.evaluate(merged.theta, method, limit=32)
        note("answering and scoring 8 x 32 prompts")
    if options.model != "quick":
        about = machine() | {"text": "GLUE" if options.data_root else "drawn", "batch": study.profile.adaptation_batch}
        print(f"Written to {save_table(pd.DataFrame([row | about for row in note.rows]), TABLE).relative_to(ROOT)}")


if __name__ == "__main__":
    main()

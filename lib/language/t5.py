"""T5 through transformers: the shipped tiny one, a folder in transformers' format, or a name on the hub.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils import logging

from lib.files.weights import read_weights
from lib.runtime.disk import ROOT

TINY_T5 = ROOT / "data" / "tiny_t5"


@dataclass(frozen=True)
class T5:
    """A sequence-to-sequence model and its tokenizer.

    Attributes:
        model: float32, in evaluation mode, no parameter requires a gradient.
        tokenizer: adds the end token to what it encodes.
    """

    model: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase


def load_t5(source: str = "") -> T5:
    """Load a model and its tokenizer.

    Only safetensors are read: opening a checkpoint runs no code.

    Args:
        source: "" for the shipped tiny T5, else a folder in transformers' format, or a name on the hub.

    Raises:
        FileNotFoundError: if a path is given that is no folder, or the folder holds no checkpoint.
        ValueError: if its weights are missing, damaged, not finite, or do not fit its `config.json`.
    """
    folder = Path(source).expanduser() if source else TINY_T5
    is_path = not source or source.startswith((".", "/", "~")) or folder.exists()
    if is_path and not (folder / "config.json").is_file():
        there = "name one with config.json, model.safetensors and a tokenizer"
        mend = there if source else "run `python -m worlds.training.tiny_t5`"
        raise FileNotFoundError(f"no T5 checkpoint in {folder}; {mend}")
    place = str(folder) if is_path else source
    if is_path:
        read_weights(folder)  # damaged ones are named here
    level = logging.get_verbosity()
    logging.disable_progress_bar()  # one for every small file that is read is noise in a notebook
    logging.set_verbosity_error()  # transformers reports layers that do not fit, and goes on with random ones
    try:
        options = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True}
        model, found = T5ForConditionalGeneration.from_pretrained(place, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"T5 {place} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    finally:
        logging.set_verbosity(level)
    odd = {
        "missing": found["missing_keys"],
        "unknown": found["unexpected_keys"],
        "of another shape": [name for name, *_ in found["mismatched_keys"]],
        "not finite": [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()],
    }
    if what := next((what for what, names in odd.items() if names), ""):
        raise ValueError(f"T5 {place}: of its layers {len(odd[what])} are {what}, such as '{min(odd[what])}'")
    return T5(model.eval().requires_grad_(False), tokenizer)

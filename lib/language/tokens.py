"""Prompts and targets as token numbers, made once and cached as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from lib.language.examples import Examples
from lib.runtime.disk import atomic_path
from lib.runtime.keys import key_of

PADDING = 0  # of prompts: so `inputs != PADDING` is the attention mask
IGNORED = -100  # padding of targets: what cross-entropy leaves out
FORMAT = 1  # part of every cached file's name: raise it when what is stored changes


@dataclass(frozen=True)
class Tokens:
    """Token numbers, row by row as the examples; each text ends with the end-of-text token.

    Attributes:
        inputs: prompts, int32 [N, L], padded with `PADDING` to the longest.
        targets: int32 [N, M], padded with `IGNORED` to the longest.
        truncated: how many prompts were longer than the allowed length and were cut.
    """

    inputs: Tensor
    targets: Tensor
    truncated: int


def tokenise(examples: Examples, tokenizer: PreTrainedTokenizerFast, *, max_length: int, cache: Path) -> Tokens:
    """Tokenise examples, or load them from the cache.

    Args:
        examples: prompts and targets.
        tokenizer: a fast tokenizer that pads with 0 and ends each text with its end-of-text token, as T5's does.
        max_length: longer prompts lose what exceeds it, but keep the end-of-text token. Targets are never cut.
        cache: folder for the cached tokens; made when needed. A file's name is a hash of all the arguments, and a file
            that cannot be read is made again.

    Raises:
        ValueError: if there are no examples, the length leaves no room for text, or the tokenizer does not fit.
    """
    if not examples.prompts:
        raise ValueError("no examples to tokenise")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: expected at least 2, a token and the end-of-text token")
    _check(tokenizer)
    determines = {"format": FORMAT, "max_length": max_length, "tokenizer": fingerprint(tokenizer)}
    determines |= {"prompts": examples.prompts, "targets": examples.targets}
    path = cache / "tokens" / f"{key_of(determines)}.safetensors"
    tensors = _cached(path)
    if tensors is None:
        tensors = _encode(examples, tokenizer, max_length)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
    return Tokens(tensors["inputs"], tensors["targets"], int(tensors["truncated"]))


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of everything that determines a tokenizer's output, the same before and after its use."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for changes_with_use in ("truncation", "padding"):
        state.pop(changes_with_use, None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _check(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer whose output would be misread."""
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name} is no fast tokenizer; load it with transformers.AutoTokenizer.from_pretrained")
    if tokenizer.pad_token_id != PADDING:
        raise ValueError(
            f"{name} pads with token {tokenizer.pad_token_id}, expected {PADDING} as T5's does: attention masks are "
            "made from it; use T5's tokenizer or one whose pad token is its first"
        )
    ended = tokenizer("").input_ids
    if tokenizer.eos_token_id is None or ended != [tokenizer.eos_token_id]:
        raise ValueError(
            f"{name} makes {ended} of an empty text, expected its end-of-text token ({tokenizer.eos_token_id}) alone: "
            "answers could not end; use T5's tokenizer or give this one such a post-processor"
        )


def _cached(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a cached file, or None when there is none or it is damaged."""
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    return tensors if tensors.keys() == {"inputs", "targets", "truncated"} else None


def _encode(examples: Examples, tokenizer: PreTrainedTokenizerFast, max_length: int) -> dict[str, Tensor]:
    # Cutting is done here: a tokenizer asked to cut would not say how many texts it cut.
    prompts = tokenizer(list(examples.prompts), verbose=False).input_ids
    targets = tokenizer(list(examples.targets), verbose=False).input_ids
    cut = [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in prompts]
    return {
        "inputs": _padded(cut, PADDING),
        "targets": _padded(targets, IGNORED),
        "truncated": torch.tensor(sum(len(ids) > max_length for ids in prompts)),
    }


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of token numbers -> int32 [rows, longest]."""
    tensors = [torch.tensor(ids, dtype=torch.int32) for ids in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding)

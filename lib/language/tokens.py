"""Prompts and targets as token numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from lib.language.examples import Examples
from lib.runtime.keys import key_of

PADDING = 0  # of prompts: so `inputs != PADDING` is the attention mask
IGNORED = -100  # padding of targets: what cross-entropy leaves out


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that fits, with a key of its own.

    Attributes:
        inner: a fast tokenizer that pads with 0 and ends each text with its end-of-text token, as T5's does.

    Raises:
        ValueError: if it does not: its output would be misread.
    """

    inner: PreTrainedTokenizerFast

    def __post_init__(self) -> None:
        """Refuse one that does not fit."""
        name = type(self.inner).__name__
        if not getattr(self.inner, "is_fast", False):
            raise ValueError(f"{name} is no fast tokenizer; load it with transformers.AutoTokenizer.from_pretrained")
        if self.inner.pad_token_id != PADDING:
            raise ValueError(
                f"{name} pads with token {self.inner.pad_token_id}, expected {PADDING} as T5's does: attention masks "
                "are made from it; use T5's tokenizer or one whose pad token is its first"
            )
        ended = self.inner("").input_ids
        if self.inner.eos_token_id is None or ended != [self.inner.eos_token_id]:
            raise ValueError(
                f"{name} makes {ended} of an empty text, expected its end-of-text token ({self.inner.eos_token_id}) "
                "alone: answers could not end; use T5's tokenizer or give this one such a post-processor"
            )

    def determines(self) -> dict[str, object]:
        """For keys: a hash of everything that determines its output, the same before and after its use."""
        state = json.loads(self.inner.backend_tokenizer.to_str())
        return {"state": key_of({name: part for name, part in state.items() if name not in ("truncation", "padding")})}


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


def tokenise(examples: Examples, tokenizer: Tokenizer, *, max_length: int) -> Tokens:
    """Tokenise examples.

    Args:
        examples: prompts and targets.
        tokenizer: makes numbers of texts.
        max_length: longer prompts lose what exceeds it, but keep the end-of-text token. Targets are never cut.

    Raises:
        ValueError: if there are no examples, or the length leaves no room for text.
    """
    if not examples.prompts:
        raise ValueError("no examples to tokenise")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: expected at least 2, a token and the end-of-text token")
    # Cutting is done here: a tokenizer asked to cut would not say how many texts it cut.
    prompts = tokenizer.inner(list(examples.prompts), verbose=False).input_ids
    targets = tokenizer.inner(list(examples.targets), verbose=False).input_ids
    cut = [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in prompts]
    return Tokens(_padded(cut, PADDING), _padded(targets, IGNORED), sum(len(ids) > max_length for ids in prompts))


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of token numbers -> int32 [rows, longest]."""
    tensors = [torch.tensor(ids, dtype=torch.int32) for ids in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding)


def model_inputs(rows: Tensor, device: str) -> dict[str, Tensor]:
    """Keyword arguments for a T5: token numbers and their mask, without columns that hold padding alone.

    Args:
        rows: int32 [N, L], padded with 0.
        device: where to.
    """
    mask = rows != PADDING
    longest = int(mask.sum(1).max())
    return {
        "input_ids": rows[:, :longest].long().to(device),
        "attention_mask": mask[:, :longest].long().to(device),
    }

"""Pre-training the tiny T5: an ordinary transformers model with a vocabulary of its own, on the broad mixture.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lib.language.registry import DRAWN, GLUE
from lib.language.t5 import TINY_T5
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.progress import progress
from lib.runtime.rng import seed_of
from lib.study.tables import save_table
from lib.vectors.fine_tuning import learning_rate_at
from worlds.text.mixture import SENTINELS, draw_examples
from worlds.text.world import WORDS
from worlds.training import shipping

VOCABULARY = 1408
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5's own vocabulary
POOL = 32  # batches drawn at once and sorted by length, so that little is padded
SAME_WORD = 0.035  # makes a logit of about 5 between equal words of norm sqrt(128), and of 0 +- 1 between others
NEIGHBOUR = 5.0  # likewise a logit of 5, between neighbours
CONFIG = {
    "vocab_size": VOCABULARY, "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 3,
    "num_decoder_layers": 2, "feed_forward_proj": "relu", "dropout_rate": 0.0, "tie_word_embeddings": True,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 64,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the checkpoint.

    Attributes:
        steps: optimiser steps.
        batch: examples per step.
        learning_rate: AdamW's peak for matrices.
        embedding_factor: how many times that for embeddings, norms and position biases, whose entries are about 1 and
            not about 0.1. T5's own Adafactor scales its steps by the size of what it changes; without that words are
            learned slowly.
        weight_decay: AdamW's.
        seed: names every random choice.
    """

    steps: int = 7000
    batch: int = 48
    learning_rate: float = 5e-4
    embedding_factor: float = 20.0
    weight_decay: float = 0.01
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from the mixture and the prompts; any text can be encoded, in lower case.

    Nearly every word of the world becomes one token that holds the space before it.
    """
    rng = Random(seed_of("tokenizer"))
    corpus = [text for example in draw_examples(rng, 20000) for text in example]
    corpus += [*WORDS] * 50
    corpus += [f"{task.prompt} {' '.join(task.words)}" for task in (*DRAWN.values(), *GLUE.values())] * 100
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # The first word's space is not part of the text: "yes" and not " yes" comes back.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, UNK, *SENTINELS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, additional_special_tokens=SENTINELS,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(seed: int) -> T5ForConditionalGeneration:
    """An untrained tiny T5, initialised from a named seed, its attention with a head start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("initial weights", seed))
        model = T5ForConditionalGeneration(T5Config(**CONFIG))
        head_start(model)
    return model


@torch.no_grad()
def head_start(model: T5ForConditionalGeneration) -> None:
    """Let attention begin near where it would arrive after long training, since ours is short.

    Mimetic initialisation (https://arxiv.org/abs/2305.09828). Of the encoder's four heads one looks at the word before
    and one at the word after; two look for the same word elsewhere (equal queries and keys). Cross-attention looks for
    the word just said and passes on what it finds (orthogonal values, transposed as outputs).
    """
    kernel, half = CONFIG["d_kv"], CONFIG["num_heads"] // 2
    for block in model.encoder.block:
        attention = block.layer[0].SelfAttention
        same = torch.randn(half * kernel, CONFIG["d_model"]) * SAME_WORD
        attention.q.weight[half * kernel :] = same
        attention.k.weight[half * kernel :] = same
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        same = torch.randn_like(attention.q.weight) * SAME_WORD
        attention.q.weight.copy_(same)
        attention.k.weight.copy_(same)
        torch.nn.init.orthogonal_(attention.v.weight)
        attention.o.weight.copy_(attention.v.weight.T)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [bucket, head]
    after = CONFIG["relative_attention_num_buckets"] // 2 + 1
    bias[1, 0], bias[after, 1] = NEIGHBOUR, NEIGHBOUR
    bias[0, half:] = -NEIGHBOUR / 2  # not the word itself


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Token ids of unequal length as int64 [N, longest]."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def draw_pool(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, pool: int
) -> list[tuple[list[list[int]], list[list[int]]]]:
    """The batches of a pool: inputs and targets as token ids, of about the same length within a batch."""
    rng = Random(seed_of("mixture", recipe.seed, pool))
    examples = draw_examples(rng, POOL * recipe.batch)
    inputs, targets = (tokenizer([example[side] for example in examples]).input_ids for side in (0, 1))
    order = sorted(range(len(examples)), key=lambda i: (len(inputs[i]), len(targets[i])))
    rows = [order[start : start + recipe.batch] for start in range(0, len(order), recipe.batch)]
    rng.shuffle(rows)
    return [([inputs[i] for i in batch], [targets[i] for i in batch]) for batch in rows]


def build_optimiser(model: T5ForConditionalGeneration, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with larger steps for what starts at a larger scale."""
    large = [
        name == "shared.weight" or "layer_norm" in name or "relative" in name for name, _ in model.named_parameters()
    ]
    groups = [
        {
            "params": [p for p, is_large in zip(model.parameters(), large, strict=True) if is_large == wanted],
            "factor": f,
        }
        for wanted, f in ((False, 1.0), (True, recipe.embedding_factor))
    ]
    return torch.optim.AdamW(
        groups, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )


def example_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, mean over examples of the mean over their tokens: a short answer counts as much as a long one.

    Args:
        logits: [N, M, vocabulary].
        targets: int64 [N, M], padded with -100.
    """
    tokens = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (tokens.view(targets.shape).sum(1) / (targets != -100).sum(1)).mean()


def pretrain(recipe: Recipe, checkpoint: Checkpoint | None = None) -> tuple[T5ForConditionalGeneration, pd.DataFrame]:
    """Train by cross-entropy on the mixture.

    Args:
        recipe: what to do.
        checkpoint: where to save and from where to continue.

    Returns:
        The model, and a table (step, loss, accuracy): accuracy is the share of targets of which every token came first
        (given the tokens before it); both are running means.
    """
    checkpoint = checkpoint or Checkpoint(None)
    tokenizer, model = build_tokenizer(), build_model(recipe.seed).train()
    optimiser = build_optimiser(model, recipe)
    done, curve, recent = 0, [], None
    if saved := checkpoint.load():
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        done, curve, recent = saved["step"], [tuple(row) for row in saved["curve"]], saved["recent"]
    batches = draw_pool(tokenizer, recipe, done // POOL)
    described = f"loss {recent[0]:.3f}" if recent else ""

    def postfix() -> str:
        return described

    for step in progress(range(done, recipe.steps), "pre-training", total=recipe.steps, postfix=postfix, begin=done):
        if step % POOL == 0:
            batches = draw_pool(tokenizer, recipe, step // POOL)
        inputs, targets = padded(batches[step % POOL][0], 0), padded(batches[step % POOL][1], -100)
        logits = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=targets).logits
        loss = example_loss(logits, targets)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, recipe.steps, recipe.learning_rate * group["factor"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        exact = ((logits.argmax(-1) == targets) | (targets == -100)).all(1).double().mean()
        now = (loss.item(), exact.item())
        recent = tuple(0.98 * old + 0.02 * new for old, new in zip(recent, now, strict=True)) if recent else now
        described = f"loss {recent[0]:.3f}, accuracy {recent[1]:.3f}"
        if step % 100 == 0 or step + 1 == recipe.steps:
            curve.append((step, *recent))

        def state(step: int = step, recent: tuple[float, ...] = recent) -> dict:
            progress_so_far = {"step": step + 1, "curve": curve, "recent": recent}
            return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), **progress_so_far}

        checkpoint.save(state)
    return model.eval(), pd.DataFrame(curve, columns=["step", "loss", "accuracy"])


def ship(model: T5ForConditionalGeneration, recipe: Recipe, folder: Path) -> Path:
    """Save a pre-trained model as a folder in transformers' format, weights in half precision.

    Half precision halves the file; the study's theta0 is by definition what is in the file.

    Args:
        model: the tiny T5.
        recipe: noted beside the weights with their SHA-256.
        folder: where to; files already there are replaced one by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder)
    model.config.architectures = ["T5ForConditionalGeneration"]
    model.config.save_pretrained(folder)
    special = {key: CONFIG[key] for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    shared = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}  # tied to shared.weight
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
    return shipping.ship(state, folder / "model.safetensors", folder / "recipe.json", recipe, format="pt")


def main() -> None:
    """Train the checkpoint of the default recipe again and put it in place of the shipped one."""
    recipe = Recipe()
    model, curve = pretrain(recipe, shipping.checkpoint_of(recipe))
    weights = ship(model, recipe, TINY_T5)
    save_table(curve, TINY_T5 / "pretraining.csv")
    shipping.announce(weights)


if __name__ == "__main__":
    main()

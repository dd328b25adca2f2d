"""Pre-training the tiny CLIP: an ordinary open_clip model from a custom configuration, trained contrastively.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime, choose_runtime
from lib.runtime.disk import atomic_path
from lib.runtime.progress import progress
from lib.runtime.rng import batch_indices, seed_of
from lib.study.tables import save_table
from lib.vectors.fine_tuning import learning_rate_at
from lib.vision.batches import shifted
from lib.vision.models import TINY_CLIP, Preprocess
from worlds.images import DRAWN
from worlds.images.web import NOTHING, PHRASES, draw_web
from worlds.training import shipping

VOCABULARY = 800
CONFIG = {
    "embed_dim": 96,
    # EdgeNeXt-XXS (https://arxiv.org/abs/2206.10589): convolutions and attention, and LayerNorm only, so there are no
    # running statistics to repair after merging. At 32 pixels its last attention sees one token: 2.7 % of the weights
    # learn nothing and the loss has small jumps. A plain transformer has neither; docs/backbones.md says why not one.
    "vision_cfg": {
        "image_size": 32, "timm_model_name": "edgenext_xx_small", "timm_model_pretrained": False,
        "timm_pool": "", "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 20, "vocab_size": VOCABULARY, "width": 96, "heads": 3, "layers": 2,
        "pool_type": "eos", "eos_id": 2, "pad_id": 0, "hf_tokenizer_name": "tiny_clip",
    },
}  # fmt: skip
PREPROCESS = Preprocess((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))  # rounded CLIP constants


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the checkpoint.

    Attributes:
        pictures: captioned pictures in the web world.
        steps: optimiser steps.
        batch: pairs per step.
        learning_rate: AdamW's peak.
        weight_decay: AdamW's.
        class_name: how often a caption uses the class name of the prompts.
        nothing: how often it says nothing about the content.
        wrong: how often it names another class.
        seed: names every random choice.
    """

    pictures: int = 96000
    steps: int = 8000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    class_name: float = 0.1
    nothing: float = 0.05
    wrong: float = 0.1
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens learned from every wording of the web world; any text can be encoded."""
    words = [name for module in DRAWN.values() for name in module.CLASSES]
    words += [other for module in DRAWN.values() for others in module.ALIASES.values() for other in others]
    prompts = [template.format("thing") for module in DRAWN.values() for template in module.TEMPLATES]
    corpus = [*(phrase.format(word) for word in words for phrase in PHRASES), *NOTHING, *prompts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<start>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>"
    )


def build_model(seed: int) -> nn.Module:
    """An untrained tiny CLIP (open_clip's own class from `CONFIG`), initialised from a named seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("initial weights", seed))
        text = {key: value for key, value in CONFIG["text_cfg"].items() if key != "hf_tokenizer_name"}
        return open_clip.CLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], open_clip.CLIPTextCfg(**text))


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Texts to int64 [N, context length]."""
    length = CONFIG["text_cfg"]["context_length"]
    encoded = tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids


def pretrain(recipe: Recipe, runtime: Runtime, checkpoint: Checkpoint | None = None) -> tuple[nn.Module, pd.DataFrame]:
    """Train image and text tower so that each picture finds its caption among those of its batch (InfoNCE).

    Args:
        recipe: what to do.
        runtime: device and precision.
        checkpoint: where to save and from where to continue.

    Returns:
        The model on the CPU, and a table (step, loss, accuracy): accuracy is the share of pictures in the batch whose
        own caption scored highest.
    """
    checkpoint = checkpoint or Checkpoint(None)
    drawn, captions = draw_web(
        recipe.pictures, recipe.seed, class_name=recipe.class_name, nothing=recipe.nothing, wrong=recipe.wrong
    )
    images, tokens = torch.from_numpy(drawn), tokenise(build_tokenizer(), captions)
    model = build_model(recipe.seed).to(runtime.device).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    done, curve = 0, []
    if saved := checkpoint.load():
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        done, curve = saved["step"], [tuple(row) for row in saved["curve"]]

    for step in progress(range(done, recipe.steps), "pre-training", total=recipe.steps, begin=done):
        rows = batch_indices(len(images), recipe.batch, step, "pre-training", recipe.seed)
        with runtime.autocast():
            pixels = PREPROCESS(shifted(images[rows], 2, "pre-training", recipe.seed, step).to(runtime.device))
            image = model.encode_image(pixels, normalize=True)
            text = model.encode_text(tokens[rows].to(runtime.device), normalize=True)
        logits = model.logit_scale.exp() * image.float() @ text.float().T
        target = torch.arange(len(rows), device=logits.device)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        optimiser.param_groups[0]["lr"] = learning_rate_at(step, recipe.steps, recipe.learning_rate)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # ln 100, as in CLIP
        if step % 25 == 0 or step + 1 == recipe.steps:
            curve.append((step, loss.item(), (logits.argmax(1) == target).double().mean().item()))

        def state(step: int = step) -> dict:
            return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1, "curve": curve}

        checkpoint.save(state)
    return model.cpu().eval(), pd.DataFrame(curve, columns=["step", "loss", "accuracy"])


def ship(model: nn.Module, recipe: Recipe, folder: Path) -> Path:
    """Save a pre-trained model as a folder that open_clip loads by `local-dir:`, weights in half precision.

    Half precision halves the file; the study's theta0 is by definition what is in the file.

    Args:
        model: the tiny CLIP.
        recipe: noted beside the weights with their SHA-256.
        folder: where to; files already there are replaced one by one, atomically.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder)
    preprocess = {"mean": PREPROCESS.mean, "std": PREPROCESS.std}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    with atomic_path(folder / "open_clip_config.json") as path:
        path.write_text(json.dumps(config, indent=1) + "\n")
    return shipping.ship(model.state_dict(), folder / "open_clip_model.safetensors", folder / "recipe.json", recipe)


def main() -> None:
    """`make pretrain`: train the checkpoint of the default recipe again and put it in place of the shipped one."""
    recipe = Recipe()
    model, curve = pretrain(recipe, choose_runtime(), shipping.checkpoint_of(recipe))
    weights = ship(model, recipe, TINY_CLIP)
    save_table(curve, TINY_CLIP / "pretraining.csv")
    shipping.announce(weights)


if __name__ == "__main__":
    main()

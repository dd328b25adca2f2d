"""The web world, the tokenizer, a few steps of contrastive training, shipping and loading."""

import hashlib
import json

import open_clip
import pytest
import torch
from stopping import StopsAtThree

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime
from lib.runtime.names import named_rng
from lib.vision.models import TINY_CLIP, load_clip
from worlds.images import DRAWN
from worlds.images.web import caption, draw_web
from worlds.training.tiny_clip import CONFIG, Recipe, build_model, build_tokenizer, pretrain, ship, tokenise

RECIPE = Recipe(pictures=240, steps=6, batch=24)


def test_captions_keep_their_shares():
    rng = named_rng("test")
    texts = [caption(rng, "vehicles", 0, class_name=0.3, nothing=0.2, wrong=0.0) for _ in range(2000)]
    name = DRAWN["vehicles"].CLASSES[0]
    assert sum(name in text for text in texts) / 2000 == pytest.approx(0.8 * 0.3, abs=0.04)
    aliases = DRAWN["vehicles"].ALIASES[name]
    assert sum(any(alias in text for alias in aliases) for text in texts) / 2000 == pytest.approx(0.8 * 0.7, abs=0.04)


def test_the_web_is_drawn_from_its_seed():
    images, captions = draw_web(48, 0, class_name=0.1, nothing=0.1, wrong=0.1)
    again, same = draw_web(48, 0, class_name=0.1, nothing=0.1, wrong=0.1)
    other, _ = draw_web(48, 1, class_name=0.1, nothing=0.1, wrong=0.1)
    assert images.shape == (48, 3, 32, 32)
    assert (images == again).all()
    assert captions == same
    assert (images != other).any()


def test_the_tokenizer_encodes_any_text_and_ends_with_its_end_token():
    tokens = tokenise(build_tokenizer(), ["a photo of a sedan.", "Ünknown wörds 漢字 " * 20])
    assert tokens.shape == (2, CONFIG["text_cfg"]["context_length"])
    assert tokens.max() < CONFIG["text_cfg"]["vocab_size"]
    assert ((tokens == CONFIG["text_cfg"]["eos_id"]).sum(1) == 1).all()


def test_pretraining_resumes_to_the_same_bits_and_ships_a_model_that_loads(tmp_path):
    whole, curve = pretrain(RECIPE, Runtime())
    assert curve["step"].tolist() == [0, 5]

    with pytest.raises(KeyboardInterrupt):
        pretrain(RECIPE, Runtime(), StopsAtThree(tmp_path / "checkpoint.pt", every=0))
    resumed, _ = pretrain(RECIPE, Runtime(), Checkpoint(tmp_path / "checkpoint.pt"))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    ship(whole, RECIPE, tmp_path / "clip")
    loaded = load_clip(str(tmp_path / "clip"))
    half = {name: tensor.half().float() for name, tensor in whole.state_dict().items()}
    assert all(torch.equal(tensor, half[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.image_size == 32


def test_two_seeds_start_differently_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = build_model(0), build_model(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a.visual.head.proj.weight, b.visual.head.proj.weight)


def test_the_shipped_checkpoint_matches_its_recipe():
    recipe = json.loads((TINY_CLIP / "recipe.json").read_text())
    weights = TINY_CLIP / "open_clip_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == recipe["sha256"]
    assert weights.stat().st_size < 6e6
    assert {**vars(Recipe()), "sha256": recipe["sha256"]} == recipe
    assert json.loads((TINY_CLIP / "open_clip_config.json").read_text())["model_cfg"] == CONFIG
    assert open_clip.create_model(f"local-dir:{TINY_CLIP}").visual.image_size in (32, (32, 32))

"""The mixture, the tokenizer, a few steps of pre-training, and the shipped tiny T5."""

import hashlib
import json
from random import Random

import pytest
import torch
from mini_t5 import mini_t5, save_mini_t5
from safetensors.torch import load_file, save
from stopping import StopsAtThree

from lib.language.registry import DRAWN, GLUE
from lib.language.t5 import TINY_T5, load_t5
from lib.runtime.checkpoint import Checkpoint
from worlds.text.drawn import draw
from worlds.text.mixture import MIXTURE, draw_examples
from worlds.text.world import WORDS
from worlds.training.tiny_t5 import (
    CONFIG,
    VOCABULARY,
    Recipe,
    build_model,
    build_tokenizer,
    draw_pool,
    example_loss,
    padded,
    pretrain,
    ship,
)

RECIPE = Recipe(steps=6, batch=4)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def shipped():
    return load_t5()


# --- the mixture


def test_every_template_gives_questions_and_answers():
    for make in MIXTURE:
        for number in range(100):
            source, target = make(Random(number))
            assert source and target and "  " not in source + target, (make.__name__, source, target)
            assert source == source.strip().lower() and "{" not in source


def test_no_prompt_of_a_drawn_task_is_in_the_mixture():
    texts = [source for source, _ in draw_examples(Random(0), 5000)]
    starts = tuple(task.prompt.split("{")[0].strip() for task in DRAWN.values())
    assert all(starts)
    assert not [text for text in texts if text.startswith(starts)]


def test_the_answers_of_the_drawn_tasks_are_in_the_mixture():
    answers = {target for _, target in draw_examples(Random(0), 20000)}
    assert {word for task in DRAWN.values() for word in task.words} <= answers
    assert {f"{number}.0" for number in range(6)} | {"3.4"} <= answers


# --- the tokenizer


def test_words_of_answers_are_one_token_and_so_is_nearly_every_word_of_the_world(tokenizer):
    assert len(tokenizer) == VOCABULARY
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    answers = {word for task in (*DRAWN.values(), *GLUE.values()) for word in task.words}
    assert not [word for word in answers if len(tokenizer(word).input_ids) != 2]
    longer = [word for word in WORDS if len(tokenizer(word).input_ids) != 2]
    assert len(longer) < len(WORDS) / 100, longer


@pytest.mark.parametrize(
    "text", ["yes", "unacceptable", "0.0", "3.4", "the dog , a cat ?", "ünïcode 漢字 \t é", "don't"]
)
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer(text).input_ids
    assert tokens[-1] == 1 and 2 not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_prompts_of_the_drawn_tasks_are_short(tokenizer):
    for name, task in DRAWN.items():
        prompts = [task.prompt.format(**row) for row in draw(name, "test", 100)]
        assert max(map(len, tokenizer(prompts).input_ids)) <= 48, name


# --- pre-training


def test_a_pool_depends_on_its_number_alone(tokenizer):
    pool = draw_pool(tokenizer, RECIPE, 1)
    assert pool == draw_pool(tokenizer, RECIPE, 1) != draw_pool(tokenizer, RECIPE, 2)
    assert all(len(inputs) == len(targets) == 4 for inputs, targets in pool)
    assert padded([[1], [2, 3]], -100).tolist() == [[1, -100], [2, 3]]


def test_a_short_answer_counts_as_much_as_a_long_one():
    logits, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor([[1, -100, -100], [2, 3, 4]])
    losses = -logits.log_softmax(-1)
    expected = (losses[0, 0, 1] + losses[1, [0, 1, 2], [2, 3, 4]].mean()) / 2
    assert torch.isclose(example_loss(logits, targets), expected)


def test_pretraining_resumes_to_the_same_bits_and_ships_a_model_that_loads(tmp_path):
    whole, curve = pretrain(RECIPE)
    assert curve["step"].tolist() == [0, 5]

    with pytest.raises(KeyboardInterrupt):
        pretrain(RECIPE, StopsAtThree(tmp_path / "checkpoint.pt", every=0))
    resumed, continued = pretrain(RECIPE, Checkpoint(tmp_path / "checkpoint.pt"))
    assert continued.equals(curve)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    ship(whole, RECIPE, tmp_path / "t5")
    loaded = load_t5(str(tmp_path / "t5"))
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].half().float()), name
    assert loaded.tokenizer("yes no").input_ids == build_tokenizer()("yes no").input_ids


def test_two_seeds_start_differently_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = build_model(0), build_model(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a.shared.weight, b.shared.weight)


# --- the shipped model


def test_the_shipped_checkpoint_matches_its_recipe(tokenizer):
    recipe = json.loads((TINY_T5 / "recipe.json").read_text())
    weights = TINY_T5 / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == recipe["sha256"]
    assert {**vars(Recipe()), "sha256": recipe["sha256"]} == recipe
    assert sum(path.stat().st_size for path in TINY_T5.iterdir()) < 5e6
    config = json.loads((TINY_T5 / "config.json").read_text())
    assert config | CONFIG == config
    shipped = json.loads((TINY_T5 / "tokenizer.json").read_text())
    assert shipped == json.loads(tokenizer.backend_tokenizer.to_str())


def test_the_shipped_model_is_frozen_and_in_single_precision(shipped):
    assert not shipped.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in shipped.model.parameters())
    assert shipped.model.lm_head.weight is shipped.model.shared.weight
    assert shipped.tokenizer.pad_token_id == shipped.model.config.pad_token_id == 0


def test_the_shipped_model_knows_its_world(shipped):
    asked = {"opposite of slow": ("fast", "quick"), "plural of mouse": ("mice",), "what is a tiger ?": ("an animal",),
             "copy: 3.4": ("3.4",), "the word awful": ("negative",)}  # fmt: skip
    inputs = shipped.tokenizer(list(asked), return_tensors="pt", padding=True)
    answers = shipped.tokenizer.batch_decode(
        shipped.model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True
    )
    for answer, (question, right) in zip(answers, asked.items(), strict=True):
        assert answer in right, (question, answer)


def test_a_wrong_source_says_what_to_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no T5 checkpoint in .*; name one with config\.json"):
        load_t5(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no T5 checkpoint in .*missing"):
        load_t5(str(tmp_path / "missing"))


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "decoder.block.1.layer.1"), "5 are missing, such as 'decoder.block.1.layer.1"),
        (lambda s: without(s, "shared"), "are missing, such as '(shared|.*embed_tokens).weight"),
        (lambda s: s | {"shared.weight": s["shared.weight"][:, :3].clone()}, "are of another shape, such as '"),
        (lambda s: s | {"shared.weight": s["shared.weight"] / 0}, "1 are not finite, such as 'shared.weight'"),
        (lambda s: s | {"encoder.block.2.layer.0.layer_norm.weight": torch.ones(16)}, "unknown, such as 'encoder.bl"),
        (lambda s: {f"module.{name}": tensor for name, tensor in s.items()}, "are missing, such as 'decoder"),
        (lambda s: b"version https://git-lfs", "model.safetensors cannot be read: it is a pointer of git-lfs"),
        (lambda s: b"", r"model.safetensors is not a complete safetensors file .it is empty"),
        (lambda s: save(s)[:-9], "model.safetensors is not a complete safetensors file"),
        (lambda s: None, r"expected one file with weights, such as model.safetensors .found: none"),
    ],
)
def test_damaged_weights_are_refused_in_one_sentence(tmp_path, change, message, capfd):
    """And never replaced by random ones, as transformers does after a remark."""
    path = save_mini_t5(tmp_path) / "model.safetensors"
    read, saved = (dict(model.named_parameters()) for model in (load_t5(str(tmp_path)).model, mini_t5()))
    assert all(torch.equal(read[name], saved[name]) for name in saved)
    capfd.readouterr()
    changed = change(load_file(path))
    path.unlink()
    if changed is not None:
        path.write_bytes(changed if isinstance(changed, bytes) else save(changed, {"format": "pt"}))
    with pytest.raises(ValueError, match=message) as error:
        load_t5(str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_t5_saved_as_bin_or_with_a_broken_config_is_refused_in_one_sentence(tmp_path):
    path = save_mini_t5(tmp_path) / "model.safetensors"
    torch.save(load_file(path), tmp_path / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*no file named model.safetensors") as error:
        load_t5(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*not a valid JSON") as other:
        load_t5(str(tmp_path))
    assert "\n" not in str(error.value) + str(other.value)

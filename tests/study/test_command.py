"""`python -m lib merge`: names from paths, the method for what is given, cards, and the whole way with data."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from lib.language.t5 import load_t5
from lib.runtime.disk import ROOT
from lib.study.card import hash_of, losers, model_card, with_intervals
from lib.study.command import main, named, recognise
from lib.study.own import choose_method, warnings_of
from lib.study.profiles import PROFILES

SHAPE = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 16}
MODEL = "timm:vit_tiny_patch16_224(patch_size=8, embed_dim=48, depth=1, num_heads=3)"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_paths_show_the_names_of_tasks(tmp_path):
    touch(
        tmp_path / "runs/signs/last.pt",
        tmp_path / "runs/fields/last.pt",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
    )
    pattern = str(tmp_path / "runs" / "{task}" / "last.pt")
    for given in (
        [str(tmp_path / "runs/*/last.pt")],
        [str(tmp_path / f"runs/{n}/last.pt") for n in ("signs", "fields")],
        [pattern],
    ):
        general, found = named(given)
        assert general == pattern
        assert found == {name: tmp_path / "runs" / name / "last.pt" for name in ("fields", "signs")}
    assert list(named([pattern], ["signs"])[1]) == ["signs"]
    general, found = named([str(tmp_path / "*.safetensors")])
    assert general == str(tmp_path / "{task}.safetensors") and list(found) == ["a", "b"]
    assert list(named([str(tmp_path / "a.safetensors")])[1]) == ["a"]
    for wrong, message in (
        ([str(tmp_path / "none*")], "no file or folder is called"),
        ([str(tmp_path / "a.safetensors"), str(tmp_path / "runs/signs/last.pt")], "differ in one part"),
        ([str(tmp_path / "a.safetensors"), str(tmp_path / "c.safetensors")], "must exist"),
    ):
        with pytest.raises(ValueError, match=message):
            named(wrong)
    with pytest.raises(ValueError, match="no expert is called 'c'; there are a, b"):
        named([str(tmp_path / "*.safetensors")], ["c"])


def test_a_base_shows_its_architecture_or_it_must_be_named(tmp_path):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    assert recognise(str(tmp_path / "t5")) == ("language", str(tmp_path / "t5"), "")
    assert recognise("google/flan-t5-base")[0] == "language"
    (tmp_path / "timm").mkdir()
    arguments = {"depth": 3, "img_size": [16, 16], "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": arguments}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    assert recognise(str(tmp_path / "timm"))[1] == "timm:vit_tiny_patch16_224(depth=3, img_size=16)"
    assert recognise("ViT-B-32", "openai") == ("vision", "ViT-B-32", "openai")
    touch(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"does not show its architecture.* name it, as in --base timm:resnet50"):
        recognise(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("given", "method", "labels"),
    [
        ({"data": False}, "tsv-m", False),
        ({"data": True}, "concrete-adamerging", False),
        ({"data": True, "gradients": False}, "featcal", False),
        ({"data": True, "gradients": False, "labels": True}, "tsv-m", True),
        ({"data": True, "method": "tsv-m", "labels": True}, "tsv-m", True),
        ({"data": True, "method": "regmean", "labels": True}, "regmean", False),
    ],
)
def test_auto_follows_what_is_given(given, method, labels):
    choice = choose_method(**given)
    assert (choice.method, choice.labels) == (method, labels) and choice.why


def test_a_method_without_what_it_needs_is_refused():
    for method in ("featcal", "adamerging"):
        with pytest.raises(ValueError, match="needs examples of every task"):
            choose_method(method, data=False)
    with pytest.raises(ValueError, match="unknown method 'tsv'; known: auto"):
        choose_method("tsv", data=True)


def rows(**accuracies):
    found = [
        (method, task, "test", accuracy, 200)
        for method, by_task in accuracies.items()
        for task, accuracy in by_task.items()
    ]
    return pd.DataFrame(found, columns=["method", "task", "split", "accuracy", "n"])


def test_intervals_and_who_loses():
    scores = rows(Experts={"a": 0.9, "b": 0.9}, Merged={"a": 0.88, "b": 0.7}, **{"Pre-trained": {"a": 0.5, "b": 0.95}})
    table = with_intervals(scores).set_index(["method", "task"])
    ends = stats.binomtest(140, 200).proportion_ci(0.95, "wilson")
    assert table.loc[("Merged", "b")].tolist() == [70.0, round(100 * ends.low, 1), round(100 * ends.high, 1), 200]
    assert losers(scores, "Merged", "Experts") == ["b"]
    assert list(warnings_of(scores)) == [
        "'b' is worse than before any fine-tuning: leave it out, or keep its own expert.",
        "Below their own expert, beyond the sampling of images: b.",
    ]
    card = model_card({"base": "a|b", "library": "timm", "experts": {"x": "1"}}, scores)
    assert "merging has not seen (a: 200, b: 200)" in card
    assert 'library_name: "timm"' in card and "a\\|b" in card and "| b | 90.0 (" in card


def test_the_interval_of_a_rank_correlation_is_one_of_rho():
    scores = rows(Merged={"a": -0.3, "b": 0.8}).assign(metric="Spearman's rho")
    table = with_intervals(scores)
    reach = 1.959964 * (1.06 / 197) ** 0.5
    wanted = [100 * np.tanh(np.arctanh(rho) + sign * reach) for rho in (-0.3, 0.8) for sign in (-1, 1)]
    assert table[["low", "high"]].to_numpy().ravel().tolist() == [round(end, 1) for end in wanted]


def picture_folders(root):
    """Two sets of noise whose classes differ in brightness, and an expert with a classifier for each."""
    base = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE)
    save_file(base.state_dict(), root / "base.safetensors")
    for number, task in enumerate(("light", "dark")):
        generator = np.random.default_rng(number)
        for split, count in (("train", 30), ("test", 12)):
            for label, name in enumerate(("high", "low")):
                for index in range(count):
                    place = root / "data" / task / split / name / f"{index}.png"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(generator.integers(0, 120 + 100 * label, (16, 16, 3), dtype=np.uint8)).save(place)
        torch.manual_seed(number)
        expert = timm.create_model("vit_tiny_patch16_224", num_classes=2, **SHAPE)
        expert.load_state_dict(base.state_dict(), strict=False)
        for parameter in expert.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        (root / "runs" / task).mkdir(parents=True)
        torch.save({"state_dict": expert.state_dict()}, root / "runs" / task / "last.pth")


@pytest.mark.parametrize("method", ["auto", "tsv-m"])
def test_the_whole_way_with_data(tmp_path, monkeypatch, capsys, method):
    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "cache"))
    torch.manual_seed(0)
    picture_folders(tmp_path)
    given = ["merge", "--base", MODEL, "--pretrained", str(tmp_path / "base.safetensors"), "--image-size", "16"]
    given += ["--experts", str(tmp_path / "runs" / "*"), "--data", str(tmp_path / "data"), "--steps", "4"]
    assert main([*given, "--library", "torchvision", "--out", str(tmp_path / "no")]) == 1
    told = capsys.readouterr()
    assert "cannot be written for torchvision; for timm it can" in told.err and "Merged" not in told.out
    code = main([*given, "--method", method, "--labels", "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert f"2 experts, method {'concrete-adamerging' if method == 'auto' else method}" in told.out
    card = (tmp_path / "out" / "README.md").read_text()
    if method == "auto":  # four steps from logits 0: half of the entries, padding not counted
        assert abs(float(card.partition("density of the mask | ")[2][:4]) - 0.5) < 0.03
    assert hash_of(tmp_path / "runs" / "light") in card and "| dark | " in card and "--steps 4" in card
    assert load_file(tmp_path / "out" / "heads.safetensors")["dark"].shape == (2, 49)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)(torch.rand(1, 3, 16, 16)).shape == (
        1,
        48,
    )
    assert main([*given, "--out", str(tmp_path / "out")]) == 1 and "not empty" in capsys.readouterr().err


def test_brackets_are_a_pattern_or_part_of_a_name_and_no_task_comes_twice(tmp_path):
    touch(*(tmp_path / "run [1]" / f"{name}.pt" for name in "abc"))
    assert list(named([str(tmp_path / "run [1]" / "*.pt")])[1]) == ["a", "b", "c"]
    assert list(named([str(tmp_path / "run ?1]" / "[ab].pt")])[1]) == ["a", "b"]
    with pytest.raises(ValueError, match="--tasks names one twice: a a"):
        named([str(tmp_path / "run [1]" / "{task}.pt")], ["a", "a"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method weight-averaging --scaling-factor 0.5", "method 'weight-averaging' has no --scaling-factor; these"),
        ("--scaling-factor inf", "--scaling-factor must be a finite number"),
        ("--steps 0", "--steps at least 1"),
        ("--library timm", "--library has no effect without --data"),
        ("--image-size 32", "--image-size has no effect without --data"),
        ("--data x --dtype bf16", "--dtype has no effect with --data"),
        ("--base nothing-here", "no CLIP model at 'nothing-here': neither a folder"),
    ],
)
def test_what_has_no_effect_is_refused_before_anything_is_read(tmp_path, capsys, words, message):
    touch(tmp_path / "base.safetensors", tmp_path / "a.pt", tmp_path / "b.pt")
    given = ["merge", "--base", str(tmp_path / "base.safetensors"), "--experts", str(tmp_path / "?.pt")]
    assert main([*given, "--out", str(tmp_path / "out"), *words.split()]) == 1
    assert (told := capsys.readouterr().err).startswith("Nothing merged: ") and message in told


def test_weights_out_of_reach_are_one_sentence(tmp_path, monkeypatch, capsys):
    touch(tmp_path / "a.pt", tmp_path / "b.pt")

    def offline(*_, **__):
        raise RuntimeError("Failed to download weights for tag 'openai'")

    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "cache"))
    monkeypatch.setattr("open_clip.create_model", offline)
    given = ["merge", "--base", "ViT-B-32", "--pretrained", "openai", "--experts", str(tmp_path / "?.pt")]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    assert "no weights 'openai' of ViT-B-32 within reach: set pretrained to a file" in capsys.readouterr().err


def test_a_link_to_a_folder_can_be_written_to(tmp_path):
    for number, name in enumerate(("base", "a")):
        save_file({"w": torch.full((3,), 1 + 0.1 * number)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "away").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "away")
    given = ["merge", "--base", str(tmp_path / "base.safetensors"), "--experts", str(tmp_path / "a.safetensors")]
    assert main([*given, "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "away" / "base.safetensors").is_file()


TEXTS = ("acceptability", "entailment", "sentiment", "similarity")


@pytest.mark.parametrize("method", ["auto", "task-arithmetic"])
def test_the_whole_way_with_four_adapters_of_a_t5(tmp_path, monkeypatch, capsys, method):
    """Low rank stays an adapter, and a mask on all weights makes it a whole T5."""
    monkeypatch.setenv("STUDY_OUT", str(tmp_path / "cache"))
    counts = dict.fromkeys((f"{split}_texts" for split in ("train", "validation", "adaptation", "test", "curve")), 10)
    monkeypatch.setitem(PROFILES, "tiny-t5", replace(PROFILES["tiny-t5"], adaptation_batch=2, **counts))
    for number, task in enumerate(TEXTS):
        torch.manual_seed(number)
        config = LoraConfig(r=2 + number, lora_alpha=4, target_modules=["q", "v"], init_lora_weights=False)
        get_peft_model(deepcopy(load_t5().model), config).save_pretrained(tmp_path / "adapters" / task)
    given = ["merge", "--base", str(ROOT / "data" / "tiny_t5"), "--experts", str(tmp_path / "adapters" / "{task}")]
    given += ["--tasks", " ".join(TEXTS), "--data", "hub", "--steps", "2", "--method", method]
    code = main([*given, "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert (tmp_path / "out" / "adapter_config.json").is_file() == (method == "task-arithmetic")
    assert (tmp_path / "out" / "model.safetensors").is_file() == (method == "auto")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| similarity | " in card and hash_of(tmp_path / "adapters" / "sentiment") in card

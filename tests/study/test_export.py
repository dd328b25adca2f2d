"""A merged model out: written for each library, loaded back by it in a process that knows nothing of the study."""

import json
import subprocess
import sys
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.language.export import low_rank
from lib.runtime.disk import ROOT
from lib.study.export import export
from lib.study.language import LanguageWorkspace
from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vision.backbones import load_backbone
from lib.vision.export import libraries_of, write_backbone, write_heads

# name -> (the profile's model, side of the images, the library, how that library loads the folder and computes)
LOADERS = {
    "open_clip": "network = open_clip.create_model(f'local-dir:{folder}').eval(); found = network.encode_image(images)",
    "hugging-face": "network = transformers.CLIPModel.from_pretrained(folder).eval(); "
    "found = network.visual_projection(network.vision_model(images).pooler_output); "
    "words = network.text_projection(network.text_model(torch.load('words.pt')).pooler_output); "
    "torch.save(words, 'words.pt'); "
    "transformers.CLIPVisionModel.from_pretrained(folder); transformers.CLIPImageProcessor.from_pretrained(folder)",
    "timm": "network = timm.create_model(f'local-dir:{folder}', pretrained=True).eval(); found = network(images)",
    "torchvision": "network = torchvision.models.resnet18(); "
    "absent = network.load_state_dict(torch.load(f'{folder}/model.pth'), strict=False); "
    "assert set(absent.missing_keys) == {'fc.weight', 'fc.bias'} and not absent.unexpected_keys; "
    "network.fc = torch.nn.Identity(); found = network.eval()(images)",
}
SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def small_clip(folder, quick):
    """A random CLIP in open_clip's format."""
    folder.mkdir()
    config = {"model_cfg": SMALL | {"quick_gelu": quick}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**SMALL, quick_gelu=quick).state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


def moved(backbone):
    """The backbone at other parameters and statistics than it was loaded with, as after merging."""
    torch.manual_seed(1)
    for tensor in backbone.encoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return backbone


def test_each_library_loads_what_is_written_for_it(tmp_path):
    """All in one fresh process, since importing four libraries takes long."""
    sources = {
        "shipped": ("", 0),
        "gelu": (small_clip(tmp_path / "gelu_source", quick=False), 0),
        "quick": (small_clip(tmp_path / "quick_source", quick=True), 0),
        "vit": ("timm:vit_tiny_patch16_224(patch_size=8, embed_dim=96, depth=2, num_heads=3)", 32),
        "resnet": ("timm:resnet18", 64),
    }
    script = ["import sys, torch, open_clip, timm, torchvision, transformers", "torch.set_grad_enabled(False)"]
    wanted, words = {}, open_clip.SimpleTokenizer()(["a photo of a cat", "two dogs"])
    for name, (source, size) in sources.items():
        backbone = moved(load_backbone(source, "", size))
        images = torch.rand(3, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))
        for library in libraries_of(backbone, source):
            place = tmp_path / f"{name} {library}"
            place.mkdir()
            assert write_backbone(backbone, source, place, library) == library
            torch.save(images, place / "images.pt")
            torch.save(words, place / "words.pt")
            script += [f"folder = {str(place)!r}", "import os; os.chdir(folder)", "images = torch.load('images.pt')"]
            script += [LOADERS[library], "torch.save(found, 'images.pt')"]
            with torch.no_grad():
                wanted[place] = backbone.encoder(images)
                if library == "hugging-face":
                    wanted[place / "words.pt"] = backbone.model.encode_text(words)
    assert [place.name.partition(" ")[2] for place in wanted if place.is_dir()] == [
        "open_clip", "open_clip", "hugging-face", "open_clip", "hugging-face", "timm", "timm", "torchvision",
    ]  # fmt: skip
    run = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    config = json.loads((tmp_path / "resnet timm" / "config.json").read_text())["pretrained_cfg"]
    assert config["input_size"] == [3, 64, 64] and config["crop_pct"] == 1, "timm's transform is the study's"
    for place, features in wanted.items():
        found = torch.load(place / "images.pt" if place.is_dir() else place)
        assert (found - features).abs().max() <= 1e-5 * max(1, features.abs().max()), place.name


def test_what_a_library_cannot_hold_is_refused(tmp_path):
    backbone = load_backbone()
    with pytest.raises(ValueError, match="cannot be written for hugging-face; for open_clip it can"):
        write_backbone(backbone, "", tmp_path, "hugging-face")
    assert not list(tmp_path.iterdir())


def test_heads_lie_beside_the_model(tmp_path):
    head = torch.rand(3, 5)
    write_heads({"sets": head.T.contiguous().T}, {"sets": ("a", "größe", "NA")}, tmp_path)
    assert torch.equal(load_file(tmp_path / "heads.safetensors")["sets"], head)
    assert json.loads((tmp_path / "heads.json").read_text("utf-8")) == {"sets": ["a", "größe", "NA"]}


def language(tmp_path, **changed):
    profile = get_profile("tiny-t5", tasks="sentiment", **changed)
    return LanguageWorkspace(Study(profile, root=tmp_path))


def test_a_text_model_is_one_adapter_where_the_change_has_low_rank_else_whole(tmp_path):
    workspace, generator = language(tmp_path), torch.Generator().manual_seed(0)
    start = workspace.layout.views(workspace.theta0)
    change = {
        n: torch.randn(len(w), 3, generator=generator) @ torch.randn(3, w.shape[1], generator=generator)
        for n, w in start.items()
    }
    low = workspace.theta0 + 0.01 * workspace.layout.flatten(change)
    full = workspace.theta0 + 0.01 * torch.randn(len(low), generator=generator) * workspace.layout.inside()
    adapter = export(workspace, low, tmp_path / "adapter", about={"method": "task-arithmetic"})
    factors = load_file(adapter / "adapter_model.safetensors")
    assert {min(own.shape) for own in factors.values()} == {3}
    assert "method | task-arithmetic" in (adapter / "README.md").read_text()
    assert (export(workspace, full, tmp_path / "whole") / "model.safetensors").is_file()
    assert (export(workspace, low, tmp_path / "asked", library="t5") / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="has no low rank"):
        export(workspace, full, tmp_path / "no", library="peft")
    with pytest.raises(ValueError, match="a T5 cannot be written for timm; for t5 and peft it can"):
        export(workspace, full, tmp_path / "no", library="timm")
    assert not (tmp_path / "no").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_merged_adapters_are_saved_as_one(tmp_path):
    workspace = language(tmp_path, task_vector="adapter")
    folder = export(workspace, workspace.theta0 * 1.5, tmp_path / "out")
    assert (folder / "adapter_config.json").is_file()
    with pytest.raises(ValueError, match="set task_vector='weights' to write a whole T5"):
        export(workspace, workspace.theta0, tmp_path / "no", library="t5")


def test_low_rank_says_nothing_of_what_is_no_matrix_or_needs_too_much():
    start = {"a": torch.rand(8, 6), "b": torch.rand(5)}
    assert low_rank(start, {"a": start["a"] + 1, "b": start["b"] + 1}) == {}
    assert low_rank(start, {"a": start["a"] + torch.rand(8, 6)}) == {}
    factors = low_rank(start, {"a": start["a"] + 1, "b": start["b"]})
    assert factors.keys() == {"a"} and len(factors["a"][0]) == 1
    torch.testing.assert_close(factors["a"][1] @ factors["a"][0], torch.ones(8, 6), rtol=1e-5, atol=1e-5)


def test_an_image_model_is_exported_whole_with_heads_and_card(tmp_path):
    study = Study(
        get_profile(
            "tiny", tasks="textures", train_images=60, test_images=20, adaptation_images=20, validation_images=20
        ),
        root=tmp_path,
    )
    workspace = VisionWorkspace(study)
    theta = workspace.theta0 * 1.01
    scores = workspace.evaluate(theta, "Merged")
    folder = export(workspace, theta, tmp_path / "out", scores=scores, notes=["One remark."])
    assert {"README.md", "heads.json", "heads.safetensors", "open_clip_config.json", "open_clip_model.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert "- One remark." in card and "| textures | " in card and "trained here, 420 steps" in card
    with pytest.raises(ValueError, match="is there already and not empty: name another folder"):
        export(workspace, theta, folder)
    named = VisionWorkspace(
        replace(study, profile=replace(study.profile, tasks="somebodys")), _tasks={"somebodys": None}
    )
    assert export(named, theta, tmp_path / "no heads", heads=False).is_dir()
    assert ROOT not in tmp_path.parents

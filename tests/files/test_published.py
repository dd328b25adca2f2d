"""Published experts: both file formats give the features of the model they were made by; lineages never mix."""

import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from lib.figures import FIGURES
from lib.files import experts as published
from lib.files.experts import activation_of, described, load_published
from lib.files.lineages import lineage_of, locate, name_of, one_lineage, pattern_of, tagged
from lib.files.weights import Weights, say
from lib.study.evaluation import compare_with_full, gather, main_table, with_spread
from lib.study.profiles import PROFILES, get_profile
from lib.study.reference import beside_published
from lib.study.study import Study, open_study
from lib.study.tables import all_seeds, seed_folders
from lib.study.vision import VisionWorkspace
from lib.vectors.flat_model import FlatModel
from lib.vision.models import load_clip

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
SMALL = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16}


def clip(vision: dict, width: int, seed: int = 0) -> torch.nn.Module:
    """A CLIP of open_clip with random weights and QuickGELU."""
    torch.manual_seed(seed)
    return open_clip.CLIP(width, vision, TEXT, quick_gelu=True).eval()


def ours_of(state: dict, start: dict) -> dict:
    """A state dict of transformers under the names of a pre-trained encoder."""
    return dict(published._ours(Weights.of(Path("x"), state), start, "quick_gelu"))


def of_transformers(vision: dict, width: int, kind: type = CLIPVisionModelWithProjection) -> torch.nn.Module:
    """The same architecture in transformers, with other random weights."""
    config = CLIPVisionConfig(
        hidden_size=vision["width"], intermediate_size=4 * vision["width"], num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // 64, image_size=vision["image_size"], patch_size=vision["patch_size"],
        projection_dim=width, hidden_act="quick_gelu",
    )  # fmt: skip
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for (
            name,
            parameter,
        ) in model.named_parameters():  # its biases start at 0 and its norms at 1: a swap would not show
            if name.endswith("bias") or "norm" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("name", "layers"), [("ViT-B-32", 12), ("ViT-B-16", 2), ("ViT-L-14", 2)])
@torch.no_grad()
def test_both_libraries_compute_the_same_features(name, layers):
    config = open_clip.get_model_config(name)
    vision, width = config["vision_cfg"] | {"layers": layers}, config["embed_dim"]
    theirs, ours = of_transformers(vision, width), clip(vision, width).visual
    start = dict(ours.named_parameters())
    made = ours_of(theirs.state_dict(), start)
    assert made.keys() == start.keys()
    ours.load_state_dict(made)
    pixels = torch.randn(2, 3, 224, 224)
    expected = theirs(pixel_values=pixels).image_embeds
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-5, atol=1e-5)
    for part in ours.modules():  # the activation matters at this tolerance
        if isinstance(part, QuickGELU):
            part.forward = torch.nn.functional.gelu
    assert not torch.allclose(ours(pixels), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_a_projection_the_pretrained_one_stays():
    ours, theirs = clip(SMALL, 64).visual, of_transformers(SMALL, 64, CLIPVisionModel)
    made = ours_of(theirs.state_dict(), dict(ours.named_parameters()))
    assert torch.equal(made["proj"], ours.proj)
    ours.load_state_dict(made)
    pixels = torch.randn(2, 3, 32, 32)
    expected = theirs(pixel_values=pixels).pooler_output @ ours.proj
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-5, atol=1e-5)


def test_openai_weights_bring_their_activation(monkeypatch):
    """open_clip itself only warns: "ViT-B-32" is GELU there, whatever the weights."""
    asked, create = [], open_clip.create_model

    def without_weights(name, pretrained, **options):
        asked.append((name, pretrained, options["force_quick_gelu"]))
        return create("test-clip", pretrained=None, **options)

    config = {"embed_dim": 64, "vision_cfg": SMALL, "text_cfg": TEXT}
    monkeypatch.setitem(sys.modules["open_clip.factory"]._MODEL_CONFIGS, "test-clip", config)
    monkeypatch.setattr(open_clip, "create_model", without_weights)
    made = {(name, tag): load_clip(name, tag).visual for name, tag in [
        ("ViT-B-32", "openai"), ("ViT-L-14", "openai"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32", ""),
    ]}  # fmt: skip
    assert [quick for _, _, quick in asked] == [True, True, False, False]
    assert activation_of(made["ViT-B-32", "openai"]) == "quick_gelu"
    assert sum(isinstance(part, QuickGELU) for part in made["ViT-L-14", "openai"].modules()) == 2
    assert activation_of(made["ViT-B-32", ""]) == "gelu"


class ImageEncoder(torch.nn.Module):
    """As src/modeling.py of the original task vectors has it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.train_preprocess = open_clip.image_transform(32, is_train=True)
        self.val_preprocess = open_clip.image_transform(32, is_train=False)
        self.cache_dir = None
        del self.model.transformer


def save_encoder(model: torch.nn.Module, path, **options) -> None:
    """Write a pickled encoder of a module that does not exist when it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.modules |= {"src": types.ModuleType("src"), "src.modeling": types.ModuleType("src.modeling")}
    ImageEncoder.__module__, sys.modules["src.modeling"].ImageEncoder = "src.modeling", ImageEncoder
    try:
        torch.save(ImageEncoder(model), path, **options)
    finally:
        ImageEncoder.__module__ = __name__
        del sys.modules["src"], sys.modules["src.modeling"]


@pytest.fixture(scope="module")
def start():
    """The pre-trained encoder as a point in R^D."""
    model = FlatModel(clip(SMALL, 64).visual)
    return model.layout, model.initial()


@pytest.fixture(scope="module")
def expert(start):
    """An expert near it, under open_clip's names."""
    layout, theta0 = start
    torch.manual_seed(2)
    return {name: view + 0.01 * torch.randn_like(view) for name, view in layout.views(theta0).items()}


def as_vision_model(expert: dict) -> dict:
    """Under the names of a CLIPVisionModel, by hand and not by the code that is tested."""
    given = {
        "embeddings.class_embedding": expert["class_embedding"],
        "embeddings.patch_embedding.weight": expert["conv1.weight"],
        "embeddings.position_embedding.weight": expert["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        given[f"pre_layrnorm.{kind}"] = expert[f"ln_pre.{kind}"]
        given[f"post_layernorm.{kind}"] = expert[f"ln_post.{kind}"]
        for number in range(2):
            block, layer = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
            for part, stacked in zip("qkv", expert[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                given[f"{layer}.self_attn.{part}_proj.{kind}"] = stacked.clone()
            for ours, theirs in {
                "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
            }.items():  # fmt: skip
                given[f"{layer}.{theirs}.{kind}"] = expert[f"{block}.{ours}.{kind}"]
    return {f"vision_model.{name}": tensor for name, tensor in given.items()}


def save_vision_model(state: dict, folder, config: dict | None = None, kind: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "model.safetensors":
        save_file(state, folder / kind)
    else:
        torch.save(state, folder / kind)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def load(start, pattern, task="stanford_cars"):
    return load_published(str(pattern), task, *start, lineage=lineage_of(str(pattern), [task]))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_vision_model_is_read(start, expert, tmp_path, kind):
    state = as_vision_model(expert) | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_vision_model(state, tmp_path / "vit_stanford-cars", {"hidden_act": "quick_gelu"}, kind)
    found, path = load(start, tmp_path / "vit_{task}")
    assert path == tmp_path / "vit_stanford-cars" / kind
    assert tuple(found) == start[0].names
    for name, tensor in expert.items():
        same = start[0].views(start[1])[name] if name == "proj" else tensor
        assert torch.equal(found[name], same), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("pattern", ["{task}/finetuned.pt", "{task}"])
def test_an_encoder_of_the_original_task_vectors_is_read(start, expert, tmp_path, pattern, zipped):
    model = clip(SMALL, 64)
    model.visual.load_state_dict(expert)
    save_encoder(model, tmp_path / "Cars" / "finetuned.pt", _use_new_zipfile_serialization=zipped)
    found, path = load(start, tmp_path / pattern)
    assert path == tmp_path / "Cars" / "finetuned.pt"
    assert tuple(found) == start[0].names
    assert all(torch.equal(found[name], tensor) for name, tensor in expert.items())
    with pytest.raises(ModuleNotFoundError, match="src"):
        torch.load(path, weights_only=False)


def broken(state: dict, **changes) -> dict:
    """A copy with some layers replaced, or left out for None."""
    changed = state | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


Q, BIAS = "vision_model.encoder.layers.1.self_attn.q_proj.weight", "vision_model.post_layernorm.bias"


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({Q: None}, {}, r"layer 'encoder.layers.1.self_attn.q_proj.weight' is missing \(another size of the model\?\)"),
        ({"vision_model.encoder.layers.2.mlp.fc1.bias": torch.ones(3)}, {}, "layers.2.mlp.fc1.bias. is not part"),
        ({"visual_projection.weight": torch.ones(3, 3)}, {}, r"'visual_projection.weight' has shape \[3, 3\]"),
        ({BIAS: torch.ones(7)}, {}, r"'ln_post.bias' has shape \[7\], expected \[128\]"),
        ({Q: torch.ones(3, 128)}, {}, "q_proj.weight, .* differ in shape"),
        ({BIAS: torch.ones(128).to(torch.int8)}, {}, "'ln_post.bias' is stored as torch.int8, which cannot be merged"),
        ({BIAS: torch.full((128,), float("nan"))}, {}, "'ln_post.bias' holds NaN or Inf"),
        ({BIAS: torch.full((128,), 1e3)}, {}, "differs from the pre-trained model by .*fine-tuned from other weights"),
        ({}, {"hidden_act": "gelu"}, "config.json: hidden_act is gelu, the pre-trained model has quick_gelu"),
        ({}, {"vision_config": {"num_attention_heads": 4}}, "num_attention_heads is 4, the pre-trained model has 2"),
        ({}, [], "config.json is no configuration"),
    ],
)  # fmt: skip
def test_what_is_no_expert_of_the_model_is_one_clear_error(start, expert, tmp_path, changes, config, message):
    save_vision_model(broken(as_vision_model(expert), **changes), tmp_path / "mnist", config)
    with pytest.raises(ValueError, match=message) as error:
        load(start, tmp_path / "{task}", "mnist")
    assert str(tmp_path / "mnist") in str(error.value)


def of_open_clip(expert: dict) -> dict:
    """A whole CLIP's state dict with the expert in it."""
    model = clip(SMALL, 64)
    model.visual.load_state_dict(expert)
    return model.state_dict()


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda e: {"epoch": 3, "name": "run", "optimizer": {"state": {0: {"step": torch.ones(1)}}},
               "state_dict": prefixed(of_open_clip(e), "module.")},
    of_open_clip,
    lambda e: e,
    lambda e: prefixed(e, "visual."),
    as_vision_model,
    lambda e: prefixed(as_vision_model(e), "module."),
    lambda e: as_vision_model(e) | {"classifier.weight": torch.ones(3, 128), "logit_scale": torch.ones(())},
    lambda e: as_vision_model(e) | {"vision_model.embeddings.position_ids": torch.arange(5.0).half()[None]},
    lambda e: {"model": as_vision_model(e) | {"text_model.encoder.layers.0.layer_norm1.bias": torch.ones(3)}},
])  # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "epoch_3.pt", "pytorch_model.bin"])
def test_which_names_a_file_has_is_seen_from_the_names(start, expert, tmp_path, wrap, name):
    state = wrap(expert)
    if name != "model.safetensors":
        torch.save(state, tmp_path / name)
    elif any(isinstance(value, dict) for value in state.values()):
        return
    else:
        save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / name)
    found, path = load(start, tmp_path / name, "mnist")
    assert path == tmp_path / name
    same = {"proj": start[0].views(start[1])["proj"]} if any("vision_model" in key for key in flat(state)) else {}
    assert all(torch.equal(found[key], tensor) for key, tensor in {**expert, **same}.items())


def flat(state: dict) -> list:
    return [key for value in state.values() if isinstance(value, dict) for key in value] + list(state)


def test_half_precision_is_read_and_its_rounding_stated(start, expert, tmp_path, capsys):
    say.cache_clear()
    save_file({name: tensor.bfloat16() for name, tensor in expert.items()}, tmp_path / "mnist.safetensors")
    found, _ = load(start, tmp_path / "{task}.safetensors", "mnist")
    assert all(torch.equal(found[name], expert[name].bfloat16().float()) for name in expert)
    said = capsys.readouterr().out
    assert "expert of 'mnist' is stored as bfloat16: about " in said
    share = float(said.partition("about ")[2].partition("%")[0]) / 100
    noise = sum((t.bfloat16().float() - t).square().sum() for t in start[0].views(start[1]).values()).sqrt()
    change = sum((found[n] - t).square().sum() for n, t in start[0].views(start[1]).items()).sqrt()
    assert share == pytest.approx((noise / change).item(), abs=0.006)


def test_the_pretrained_model_itself_is_no_expert(start, tmp_path):
    save_file(start[0].views(start[1]), tmp_path / "mnist.safetensors")
    with pytest.raises(ValueError, match=r"mnist.safetensors: it is the pre-trained model itself"):
        load(start, tmp_path / "{task}.safetensors", "mnist")


def test_a_line_says_how_experts_compare():
    theta0, one = torch.zeros(1024), torch.zeros(1024)
    theta0[0], one[1] = 4, 1
    lines = list(described(theta0, torch.stack([one, 2 * one, one.roll(1)]).bfloat16(), ["a", "b", "c"]))
    assert lines[0] == "expert of 'a': |tau| is 25.00% of |theta0|, largest cosine 1.00 with 'b': are they one expert?"
    far = next(described(theta0, 4 * torch.eye(1024)[:1] * -1, ["a"]))
    assert far == "expert of 'a': |tau| is 100.00% of |theta0| (no fine-tune of this model?)"
    assert lines[2].startswith("expert of 'c': |tau| is 25.00% of |theta0|, largest cosine 0.00 with ")


def test_patterns_and_places(tmp_path):
    """One rule for experts and adapters."""
    for pattern in ("~/x/{user}/{task}", "x/{task", "one/for-all", "/one/for/all"):
        with pytest.raises(ValueError, match=r"parameter 'experts' is .*, expected .*with {task} in it"):
            get_profile("clip-vit-b-32", experts=pattern)
        with pytest.raises(ValueError, match=r"parameter 'adapters' is .*, expected .*with {task} in it"):
            get_profile("tiny-t5", adapters=pattern)
    assert get_profile("clip-vit-b-32", experts="/one/for/all", tasks="mnist").experts == "/one/for/all"
    assert get_profile("tiny-t5", adapters="/one/for/all", tasks="entailment").adapters == "/one/for/all"
    for name in ("stanford_cars", "Cars", "stanford-cars"):  # a user's folders may have any of a set's names
        (tmp_path / name / name).mkdir(parents=True)
        assert (
            locate("experts", f"{tmp_path}/{name}/{{task}}", "hugging-face", "stanford_cars") == tmp_path / name / name
        )
    assert locate("adapters", "someone/t5-{task}", "lora-16", "cola") == "someone/t5-cola"
    with pytest.raises(ValueError, match="no expert of 'cola' at /gone/cola: put it there, or set adapters to where"):
        locate("adapters", "/gone/{task}", "lora-16", "cola")


def test_an_encoder_of_another_size_is_refused(start, tmp_path):
    save_encoder(clip(SMALL | {"layers": 3}, 64), tmp_path / "MNIST" / "finetuned.pt")
    with pytest.raises(ValueError, match=r"finetuned.pt: layers 'transformer.resblocks.2.* are not part"):
        load(start, tmp_path / "{task}", "mnist")
    save_encoder(clip(SMALL | {"layers": 1}, 64), tmp_path / "MNIST" / "finetuned.pt")
    with pytest.raises(ValueError, match=r"finetuned.pt: layers 'transformer.resblocks.1.* and 2 more are missing"):
        load(start, tmp_path / "{task}", "mnist")


def test_where_nothing_lies_is_named(start, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no expert of 'mnist' at .*/MNIST/finetuned.pt: put it there"):
        load(start, tmp_path / "{task}" / "finetuned.pt", "mnist")
    (tmp_path / "mnist").mkdir()
    with pytest.raises(
        ValueError, match=r"/mnist: expected one file with weights, such as model.safetensors \(found: none\)"
    ):
        load(start, tmp_path / "{task}", "mnist")
    (tmp_path / "mnist" / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read: it is a pointer of git-lfs"):
        load(start, tmp_path / "{task}", "mnist")

    def out_of_reach(*_, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", out_of_reach)
    with pytest.raises(ValueError, match=r"cannot fetch 'tanganke/clip-vit-base-patch32_stanford-cars' .*the network"):
        load_published("hugging-face", "stanford_cars", *start, lineage="hugging-face", model="ViT-B-32")


def test_an_expert_comes_from_the_hub(start, expert, tmp_path, monkeypatch):
    save_vision_model(as_vision_model(expert), tmp_path, {"hidden_act": "quick_gelu"}, "pytorch_model.bin")

    asked = []

    def from_hub(hub, *, allow_patterns):
        assert hub == "tanganke/clip-vit-base-patch16_sun397"
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", from_hub)
    _, path = load_published("hugging-face", "sun397", *start, lineage="hugging-face", model="ViT-B-16-quickgelu")
    assert path == tmp_path / "pytorch_model.bin"
    assert asked == [["config.json", "model.safetensors"], ["config.json", "pytorch_model.bin"]]  # not both at once
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"holds none of model.safetensors, pytorch_model.bin"):
        load_published("hugging-face", "sun397", *start, lineage="hugging-face", model="ViT-B-16")


def test_nothing_in_an_experts_file_runs(start, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "mark"), "w")

    (tmp_path / "MNIST.pt").write_bytes(pickle.dumps(Hostile()))
    torch.save({"visual.proj": torch.ones(2, 2), "more": Hostile()}, tmp_path / "DTD.pt")
    for task in ("mnist", "dtd"):
        with pytest.raises(ValueError, match=f"{name_of(task, 'task-vectors')}.pt"):
            load(start, tmp_path / "{task}.pt", task)
    assert not (tmp_path / "mark").exists()


def test_names_and_lineages(tmp_path):
    assert pattern_of("hugging-face", "ViT-L-14", ["mnist", "dtd"]) == "tanganke/clip-vit-large-patch14_{task}"
    assert lineage_of("", ["mnist"]) == "own"
    for theirs in ("", "tanganke/clip-vit-base-patch32_{task}", "/mirror/tanganke/clip-vit-large-patch14_{task}/x.bin"):
        assert lineage_of(theirs or "hugging-face", ["mnist"]) == "hugging-face"
    cached = "~/.cache/huggingface/hub/models--tanganke--clip-vit-base-patch32_{task}/snapshots/1/model.safetensors"
    assert lineage_of(cached, ["mnist"]) == "hugging-face"
    assert lineage_of("~/checkpoints/{task}/finetuned.pt", ["mnist"]) == "task-vectors"
    for anybodys in (
        "someone/vit_{task}",
        "~/runs/{task}.pt",
        "~/{task}/model.safetensors",
        "xtanganke/clip-vit-{task}",
    ):
        assert lineage_of(anybodys, ["mnist"]) == "given"
    (tmp_path / "GTSRB").mkdir()
    assert lineage_of(f"{tmp_path}/{{task}}", ["mnist", "gtsrb"]) == "given"
    for name in ("GTSRB", "stanford-cars", "mnist"):  # whoever named the folders
        (tmp_path / name).mkdir(exist_ok=True)
        task = {"GTSRB": "gtsrb", "stanford-cars": "stanford_cars"}.get(name, name)
        assert locate("experts", f"{tmp_path}/{{task}}", "given", task) == tmp_path / name
    (tmp_path / "GTSRB" / "finetuned.pt").touch()
    assert lineage_of(f"{tmp_path}/{{task}}", ["mnist", "gtsrb"]) == "task-vectors"
    assert name_of("my_set", "task-vectors") == "my_set"


@pytest.mark.parametrize(
    ("name", "model"), [("clip-vit-b-32", "ViT-B-32"), ("clip-vit-b-16", "ViT-B-16"), ("clip-vit-l-14", "ViT-L-14")]
)
def test_the_papers_hyperparameters(name, model):
    profile = PROFILES[name]
    assert (profile.model, profile.pretrained, profile.head, profile.head_scale) == (model, "openai", "text", 100)
    assert profile.tasks == "sun397 stanford_cars resisc45 eurosat svhn gtsrb mnist dtd"
    assert (profile.mask_steps, profile.mask_rate, profile.inner_rate) == (2000, 1e-3, 1)
    assert (profile.adaptation_steps, profile.adaptation_rate, profile.adaptation_batch) == (1000, 1e-3, 16)
    assert (profile.scaling_factor, profile.temperature, profile.experts) == (0.3, 0.5, "")
    assert (profile.fine_tuning_steps, profile.fine_tuning_batch, profile.fine_tuning_rate) == (2000, 128, 1e-5)
    assert get_profile(name, experts="hugging-face").lineage == "hugging-face"


def test_the_lineage_of_a_profile_and_its_folder():
    profile = get_profile("clip-vit-b-32", experts="~/clip/{task}/finetuned.pt")
    assert profile.lineage == "task-vectors"
    assert profile.label == "clip-vit-b-32+experts=~_clip_task_finetuned.pt"
    assert {profile.lineage for profile in PROFILES.values()} == {"own"}
    assert get_profile("flan-t5-base", adapters="tanganke/flan-t5-base_glue-{task}_lora-16").lineage == "lora-16"
    assert get_profile("flan-t5-base", adapters="x/{task}").lineage == "given"
    with pytest.raises(ValueError, match=r"parameter 'experts' is 'somewhere', expected .*with {task} in it"):
        get_profile("clip-vit-b-32", experts="somewhere")
    with pytest.raises(ValueError, match="no experts of model '' on the hub; known: ViT-B-32, ViT-B-16, ViT-L-14"):
        open_study({"profile": "tiny", "experts": "hugging-face"})


@pytest.fixture(scope="module")
def workspace(start, expert, tmp_path_factory):
    """A study of published experts of a small model, which lies in a folder."""
    root = tmp_path_factory.mktemp("study")
    config = {"embed_dim": 64, "quick_gelu": True, "vision_cfg": SMALL, "text_cfg": TEXT}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (root / "model").mkdir()
    (root / "model" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(clip(SMALL, 64).state_dict(), root / "model" / "open_clip_model.safetensors")
    for task in ("scenes", "textures"):
        save_vision_model(as_vision_model(expert), root / task)
    profile = get_profile(
        "tiny", model=str(root / "model"), tasks="scenes textures", experts=str(root / "{task}"), head="text"
    )
    return VisionWorkspace(Study(replace(profile), root=root))


def test_a_workspace_reads_its_experts(workspace, start, expert):
    layout, theta0 = start
    assert torch.equal(workspace.theta0, theta0)
    found = workspace.expert("scenes")
    assert list(found.curve.columns) == ["task", "step", "loss", "validation_accuracy"] and not len(found.curve)
    assert torch.equal(layout.views(found.theta)["ln_post.bias"], expert["ln_post.bias"])
    vectors = workspace.task_vectors
    assert vectors.shape == (2, layout.length)
    change = layout.views(vectors[1])
    assert not change["proj"].any()
    torch.testing.assert_close(change["conv1.weight"], expert["conv1.weight"] - layout.views(theta0)["conv1.weight"])


def rows(method="Task Arithmetic", seed=0, **columns) -> pd.DataFrame:
    scores = {"split": "test", "seed": seed, "accuracy": 0.5, "loss": 1.0, "n": 10}
    return pd.DataFrame([{"method": method, "task": task, **scores} for task in ("a", "b")]).assign(**columns)


def test_saved_tables_say_the_lineage(workspace, tmp_path):
    study = workspace.study
    assert set(study.save(rows(), "fusion")["lineage"]) == {"given"}
    assert json.loads((study.results / "about.json").read_text())["lineage"] == "given"
    own = Study(PROFILES["tiny"], root=tmp_path)
    assert list(own.save(rows(), "fusion").columns) == list(rows().columns)  # no column: own experts
    assert len(study.save(rows()[:0], "empty")) == 0
    with pytest.raises(ValueError, match="'given' and 'task-vectors' stand in one table"):
        study.save(rows(lineage="task-vectors"), "fusion")


def test_two_lineages_never_stand_in_one_table(tmp_path):
    own, theirs = rows(), rows(seed=1, lineage="hugging-face")
    mixed = pd.concat([own, theirs])
    message = "lineages 'hugging-face' and 'own' stand in one table"
    for read in (
        main_table, with_spread, one_lineage, FIGURES["results"], FIGURES["adaptation"],
        lambda table: compare_with_full(own, theirs),
        lambda table: beside_published(table),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read(mixed)
    cross = pd.concat([rows("pre-trained"), rows("a")])
    with pytest.raises(ValueError, match=message):
        gather({0: {"cross_evaluation": cross, "fusion": theirs}})
    for seed, table in ((0, own), (1, theirs)):
        (tmp_path / f"seed{seed}").mkdir()
        table.to_csv(tmp_path / f"seed{seed}" / "fusion.csv", index=False)
    with pytest.raises(ValueError, match=message):
        all_seeds(seed_folders(tmp_path, "fusion"), "fusion")


def test_gathered_tables_keep_their_lineage():
    def tables(**columns):
        return {0: {"cross_evaluation": rows("pre-trained", **columns), "fusion": rows(**columns)}}

    assert "lineage" not in gather(tables())
    found = gather(tables(lineage="task-vectors"))
    assert set(found["lineage"]) == {"task-vectors"}
    assert main_table(found).equals(main_table(gather(tables())))
    assert with_spread(found).equals(with_spread(gather(tables())))
    assert one_lineage(rows(), rows()[:0].assign(lineage=[])) == "own"
    assert tagged(rows(), "own").equals(rows())


def test_results_are_compared_with_the_published_ones_of_their_lineage(tmp_path):
    def results(**columns):
        return pd.concat([rows(method, **columns) for method in ("Task Arithmetic", "Experts")])

    assert set(beside_published(results(lineage="hugging-face"))["lineage"]) == {"hugging-face"}
    assert set(beside_published(results())["lineage"]) == {"task-vectors"}
    assert set(beside_published(results(), lineage="hugging-face")["lineage"]) == {"hugging-face"}
    for asked in ("", "task-vectors", "hugging-face", "lora-16", "given"):
        found = beside_published(results(lineage="given"), lineage=asked)
        assert found.empty and list(found) == list(beside_published(results())), "nothing is published on them"
        study = Study(replace(PROFILES["tiny"], experts="x/{task}"), root=tmp_path)
        for table in (study.save(found, "against_the_paper"), study.load("against_the_paper")):  # as in notebook 90
            means = table.groupby("method", sort=False)[["here", "published"]].mean()
            assert len(means) == 0 and means.corr("spearman").shape == (2, 2)
            FIGURES["against_the_paper"](table)
    assert beside_published(results(), lineage="given").empty
    with pytest.raises(ValueError, match="experts of lineage 'hugging-face', not 'task-vectors'"):
        beside_published(results(lineage="hugging-face"), lineage="task-vectors")


@pytest.mark.parametrize("broken_name", ["open_clip_model.safetensors", None])
def test_a_clip_folder_without_weights_is_refused(workspace, tmp_path, broken_name):
    source = Path(workspace.study.profile.model)
    (tmp_path / "open_clip_config.json").write_bytes((source / "open_clip_config.json").read_bytes())
    if broken_name:
        (tmp_path / broken_name).write_bytes((source / broken_name).read_bytes()[:-3])
    message = "open_clip_model.safetensors is not a complete" if broken_name else "expected one file with weights"
    with pytest.raises(ValueError, match=message):
        load_clip(str(tmp_path))


def test_weights_of_a_file_say_their_activation_or_are_refused(monkeypatch, tmp_path):
    config = {"embed_dim": 64, "vision_cfg": SMALL, "text_cfg": TEXT}
    known = sys.modules["open_clip.factory"]._MODEL_CONFIGS
    monkeypatch.setitem(known, "ViT-B-32", config)
    monkeypatch.setitem(known, "ViT-B-32-quickgelu", config | {"quick_gelu": True})
    model = clip(SMALL, 64)
    state = prefixed(model.state_dict(), "module.")

    def saved(name):
        torch.save({"epoch": 3, "state_dict": {key: tensor.half() for key, tensor in state.items()}}, tmp_path / name)
        return str(tmp_path / name)

    mine, openai, laion = (saved(name) for name in ("mine.pt", "openai-B32.pt", "ViT-B-32-laion2b_s34b_b79k.pt"))
    with pytest.raises(ValueError, match=r"mine.pt does not say with which activation .*'ViT-B-32-quickgelu' if"):
        load_clip("ViT-B-32", mine)
    found = {place: load_clip("ViT-B-32", place).visual for place in (openai, laion)}
    assert [activation_of(found[place]) for place in (openai, laion)] == ["quick_gelu", "gelu"]
    assert activation_of(load_clip("ViT-B-32-quickgelu", mine).visual) == "quick_gelu"
    assert activation_of(load_clip("ViT-B-32-gelu", mine).visual) == "gelu"
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found[openai](pixels), model.visual(pixels), rtol=2e-2, atol=2e-3)

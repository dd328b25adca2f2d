"""Backbones other than the shipped CLIP: timm's, with or without weights, and CLIP's ResNet."""

import dataclasses
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lib.files.weights import say
from lib.runtime.device import Runtime
from lib.runtime.rng import generator
from lib.study.per_task import evaluate_per_task
from lib.study.profiles import get_profile
from lib.study.recipes import merge_by_name
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vectors import batch_norm
from lib.vectors.fine_tuning import fine_tune
from lib.vectors.flat_model import FlatModel
from lib.vision.backbones import load_backbone, load_timm, parse
from lib.vision.heads import class_mean_head, text_head
from lib.vision.models import Clip
from lib.vision.objective import ImageObjective
from lib.vision.scoring import image_features
from lib.vision.training import image_loss

RUNTIME = Runtime()
SMALL_VIT = "timm:vit_tiny_patch16_224(patch_size=8, embed_dim=24, depth=2, num_heads=3)"
SMALL_CONV = "timm:resnet18(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))"
DEIT = Path(os.environ.get("STUDY_SHARED", "/nonexistent")) / "weights" / "deit_tiny_patch16_224"


def pictures(count, side, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator("pictures", seed))


@pytest.mark.parametrize(("source", "width"), [(SMALL_VIT, 24), (SMALL_CONV, 16)])
def test_random_weights_are_always_the_same(source, width):
    torch.manual_seed(1)
    first = load_backbone(source, image_size=32)
    torch.manual_seed(2)
    second = load_backbone(source, image_size=32)
    assert first.image_size == 32
    assert not isinstance(first, Clip)
    inputs = first.preprocess(pictures(2, 32))
    with torch.no_grad():
        assert torch.equal(first.encoder(inputs), second.encoder(inputs))
        assert first.encoder(inputs).shape == (2, width)


def test_the_models_own_size_and_normalisation():
    backbone = load_backbone("timm:resnet18(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))")
    config = timm.get_pretrained_cfg("resnet18")
    assert backbone.image_size == config.input_size[-1] == 224
    assert (backbone.preprocess.mean, backbone.preprocess.std) == (config.mean, config.std)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnt18", r"timm knows no model 'resnt18' \(did you mean 'resnet18'\?\)"),
        ("timm:", "cannot be read: write timm:NAME or timm:NAME"),
        ("timm:resnet18(layers=", "cannot be read"),
        ("timm:resnet18(7)", "cannot be read"),
        ("timm:resnet18(layers=print(1))", "with plain values"),
        ("timm:resnet18(colour=1)", "timm cannot build .*colour"),
    ],
)
def test_a_wrong_source_is_one_clear_sentence(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(source)
    assert "\n" not in str(caught.value)


def test_options_are_plain_values():
    assert parse("timm:resnet18.a1_in1k") == ("resnet18.a1_in1k", {})
    name, options = parse("timm:resnet18(layers=(1, 1, 1, 1), stem_type='deep')")
    assert (name, options) == ("resnet18", {"layers": (1, 1, 1, 1), "stem_type": "deep"})


def test_weights_in_timms_format_with_and_without_the_classifier(tmp_path):
    source = "timm:vit_tiny_patch16_224(patch_size=8, embed_dim=24, depth=2, num_heads=3, img_size=48)"
    name, options = parse(source)
    torch.manual_seed(3)
    whole = timm.create_model(name, num_classes=7, **options).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        backbone = load_timm(source, str(place))
        assert backbone.image_size == 48
        inputs = backbone.preprocess(pictures(2, 48))
        with torch.no_grad():
            expected = whole.forward_head(whole.forward_features(inputs), pre_logits=True)
            assert torch.equal(backbone.encoder(inputs), expected)


def test_a_clip_of_timm_says_its_activation_or_is_refused(tmp_path):
    small, quick = "(embed_dim=24, depth=1, num_heads=3, img_size=32)", "timm:vit_base_patch32_clip_quickgelu_224"
    torch.manual_seed(4)
    whole = timm.create_model(quick[5:], num_classes=0, **parse(quick + small)[1]).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    pixels, features = torch.randn(2, 3, 32, 32), {}
    for name, wanted in (("", tmp_path), (".openai", "hub"), (".openai", tmp_path)):
        with pytest.raises(ValueError, match=rf"QuickGELU.*: set model='{quick}' if .*act_layer=\"gelu\""):
            load_timm(f"timm:vit_base_patch32_clip_224{name}{small}", str(wanted))
    said = ("timm:vit_base_patch32_clip_224.laion2b", "timm:vit_base_patch32_clip_224")
    for name, options in ((quick, small), (said[0], small), (said[1], small[:-1] + ', act_layer="gelu")')):
        with torch.no_grad():
            features[name] = load_timm(name + options, str(tmp_path)).encoder(pixels)
    assert torch.equal(features[quick], whole(pixels))
    assert torch.equal(features[said[0]], features[said[1]]) and not torch.equal(features[said[0]], features[quick])
    assert load_timm(said[1] + small), "random weights are anybody's"


def test_position_embeddings_of_another_size_are_resampled_by_timm(tmp_path):
    large, small = (load_timm(SMALL_VIT, image_size=size) for size in (64, 32))
    save_file(large.encoder.state_dict(), tmp_path / "weights.safetensors")
    resized = load_timm(SMALL_VIT, str(tmp_path), 32).encoder
    assert resized.pos_embed.shape == small.encoder.pos_embed.shape == (1, 17, 24)
    expected = timm.layers.resample_abs_pos_embed(large.encoder.pos_embed, (4, 4), (8, 8), 1)
    torch.testing.assert_close(resized.pos_embed, expected)
    assert torch.equal(resized.blocks[1].mlp.fc1.weight, large.encoder.blocks[1].mlp.fc1.weight)


def test_weights_of_another_model_or_none_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected one file with weights, such as model.safetensors \(found: none\)"):
        load_timm(SMALL_VIT, str(tmp_path), 32)
    save_file(load_timm(SMALL_CONV).encoder.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"is no checkpoint of 'timm:vit.*: layers 'cls_token', .* are missing.*\(other"
    ):
        load_timm(SMALL_VIT, str(tmp_path), 32)
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"found: a\.safetensors, b\.safetensors"):
        load_timm(SMALL_CONV, str(tmp_path))


@pytest.mark.parametrize("damage", [b"version https://git-lfs.github.com/spec/v1", b"<html>", b"", b"abc"])
def test_damaged_weights_are_named(tmp_path, damage):
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        load_timm(SMALL_CONV, str(tmp_path), 32)
    assert "\n" not in str(error.value)


def fine_tuned(source, seed, classes=5, **more):
    """A model of timm with a classifier of its own, moved a little as a plain loop would."""
    name, options = parse(source)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=classes, **options, **size, **more)
    torch.manual_seed(seed)
    state = load_timm(source, image_size=32).encoder.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = tensor + 0.01 * torch.randn_like(tensor).abs()
    model.load_state_dict(state, strict=False)
    return model.eval()


@pytest.mark.parametrize("source", [SMALL_VIT, SMALL_CONV])
@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"epoch": 9, "arch": "x", "state_dict": s, "state_dict_ema": {name: t * 2 for name, t in s.items()}},
    lambda s: {"model": {f"_orig_mod.{name}": tensor for name, tensor in s.items()}},
])  # fmt: skip
def test_experts_of_timm_with_a_classifier_of_their_own(tmp_path, capsys, source, wrap):
    say.cache_clear()
    models = {task: fine_tuned(source, seed) for seed, task in enumerate(("scenes", "textures"))}
    for task, model in models.items():
        torch.save(wrap(model.state_dict()), tmp_path / f"{task}.pth")
    options = {
        "image_size": 32,
        "head": "class-mean",
        "tasks": "scenes textures",
        "experts": f"{tmp_path}/{{task}}.pth",
    }
    workspace = VisionWorkspace(Study(get_profile("tiny", model=source, **options), root=tmp_path))
    inputs = workspace.backbone.preprocess(pictures(2, 32))
    for task, model in models.items():
        expert = workspace.expert(task)
        encoder = workspace.place(expert.theta, expert.statistics)
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
            torch.testing.assert_close(encoder(inputs), expected, rtol=1e-5, atol=1e-5)
    assert workspace.task_vectors.shape[0] == 2
    said = capsys.readouterr().out
    assert "not merged: " in said and ("head.weight" in said or "fc.weight" in said)
    assert "expert of 'scenes': |tau| is " in said and "largest cosine" in said


def with_classifiers(folder, source, change=lambda state: state):
    """A study of two experts of timm, saved with their classifiers, which are its heads; and the experts."""
    options = {"image_size": 32, "head": "expert", "tasks": "scenes textures", "experts": f"{folder}/{{task}}.pth"}
    profile = get_profile("tiny", model=source, train_images=20, test_images=20, adaptation_images=20, **options)
    workspace = VisionWorkspace(Study(profile, root=folder))
    models = {}
    for seed, (name, task) in enumerate(workspace.tasks.items()):
        models[name] = fine_tuned(source, seed, len(task.class_names))
        torch.save(change(models[name].state_dict()), folder / f"{name}.pth")
    return workspace, models


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("source", [SMALL_VIT, SMALL_CONV])
def test_the_classifier_that_came_with_an_expert_is_its_tasks_head(tmp_path, source, biases):
    def change(state):
        return {f"module.{n}": t for n, t in state.items() if biases or n not in ("head.bias", "fc.bias")}

    workspace, models = with_classifiers(tmp_path, source, change)
    teachers = workspace.teachers(workspace.setting())["experts"]
    for (task, model), said in zip(models.items(), teachers, strict=True):
        if not biases:
            model.get_classifier().bias.data.zero_()
        images, labels = workspace.inputs("adaptation", task), workspace.split("adaptation")[task].labels
        with torch.no_grad():
            expected = model(workspace.backbone.preprocess(images))
        torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
        expert = workspace.expert(task)
        scores = workspace.evaluate(expert.theta, task, "adaptation", tasks=[task], statistics=expert.statistics)
        assert scores["accuracy"].item() == (expected.argmax(1) == labels).double().mean().item()
        loss = torch.nn.functional.cross_entropy(expected, labels).item()
        assert scores["loss"].item() == pytest.approx(loss, rel=1e-5)
        given = workspace.heads[task], (images, labels), workspace.backbone.preprocess, RUNTIME
        loss_at = image_loss(*given, task=task, batch=20, seed=0)
        assert torch.isfinite(loss_at(workspace.place(expert.theta, expert.statistics), 0))
    merged = merge_by_name(workspace, "AdaMerging (layer-wise)", adaptation_steps=2)
    assert torch.isfinite(merged.theta).all()
    assert evaluate_per_task(workspace, merged.theta, "x")["loss"].notna().all()
    assert workspace.fisher(images=2).gt(0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if not n.startswith("fc.")}, r"no classifier of one linear .*: none\)"),
        (lambda s: s | {"head_dist.weight": s["fc.weight"], "head_dist.bias": s["fc.bias"]}, "no classifier .*head_d"),
        (lambda s: {n: t for n, t in s.items() if n != "fc.weight"}, "no classifier of .*: fc.bias"),
        (lambda s: s | {"fc.weight": s["fc.weight"][:3], "fc.bias": s["fc.bias"][:3]}, r"\[3\], but the task has"),
        (lambda s: s | {"fc.weight": s["fc.weight"][:, :7]}, r"\d, 7\] and .* classes, of 16 f"),
        (lambda s: s | {"fc.weight": s["fc.weight"].flatten()}, "its classifier is "),
        (lambda s: s | {"fc.bias": s["fc.bias"] / 0}, "its classifier has NaN or Inf"),
        (lambda s: s | {"fc.weight": s["fc.weight"].to(torch.int8)}, "or is stored as integers"),
    ],
)  # fmt: skip
def test_a_classifier_that_does_not_fit_is_refused_in_one_sentence(tmp_path, change, message):
    workspace, _ = with_classifiers(tmp_path, SMALL_CONV, change)
    with pytest.raises(ValueError, match=message) as error:
        _ = workspace.heads
    assert "\n" not in str(error.value) and str(tmp_path / "scenes.pth") in str(error.value)


def test_heads_of_experts_need_experts_of_timm():
    for options in ({"model": SMALL_CONV}, {"experts": "x/{task}"}):
        with pytest.raises(
            ValueError, match="parameter 'head' is 'expert': only finished experts of timm come with one"
        ):
            get_profile("tiny", head="expert", **options)


def test_a_profile_that_asks_for_text_is_refused(tmp_path):
    profile = get_profile("tiny", model=SMALL_CONV, image_size=32)
    with pytest.raises(ValueError, match="reads no text, so no head comes from it: set head='class-mean'"):
        _ = VisionWorkspace(Study(profile, root=tmp_path)).backbone
    plain = VisionWorkspace(Study(dataclasses.replace(profile, head="class-mean"), root=tmp_path))
    assert plain.backbone.image_size == 32
    with pytest.raises(ValueError, match="is no CLIP, which is needed here"):
        _ = plain.clip
    with pytest.raises(ValueError, match="'image_size' is -1, expected 0 or a positive number"):
        get_profile("tiny", image_size=-1)
    assert get_profile("tiny", image_size=0) == get_profile("tiny")


def test_clips_resnet_goes_through_every_step():
    """RN50 with attention pooling, random weights, 32 pixels: heads, objective, fine-tuning, evaluation's features."""
    clip = load_backbone("RN50", image_size=32)
    assert clip.image_size == 32
    assert len(batch_norm.batch_norms(clip.encoder)) == 55
    model, images, labels = FlatModel(clip.encoder), pictures(8, 32), torch.arange(8) % 2
    theta0 = model.initial()
    assert any("attnpool" in name for name in model.layout.names)
    heads = [
        text_head(clip, ["one", "two"], ["a photo of a {}."]),
        class_mean_head(image_features(clip.encoder, images, clip.preprocess, RUNTIME), labels, 2, 40.0),
    ]
    assert [head.shape for head in heads] == [(2, 1024)] * 2
    objective = ImageObjective(model, heads, [images, images], clip.preprocess, RUNTIME, batch=4, seed=0)
    loss, gradient = objective(0)(theta0)
    assert 0 < loss < 2
    assert torch.isfinite(gradient).all()
    loss_at = image_loss(heads[1], (images, labels), clip.preprocess, RUNTIME, task="x", batch=4, seed=0)
    theta = fine_tune(model, theta0, loss_at, lambda _: 0.0, task="x", steps=1, learning_rate=1e-4).theta
    batch_norm.reestimate_batch_norm(model.move_to((theta + theta0) / 2), [clip.preprocess(images)])
    assert torch.isfinite(image_features(clip.encoder, images, clip.preprocess, RUNTIME)).all()


@pytest.mark.skipif(not DEIT.is_dir(), reason="no DeiT weights; STUDY_SHARED names the folder above weights/")
def test_a_real_deit_at_64_pixels():
    backbone = load_backbone("timm:deit_tiny_patch16_224", str(DEIT), 64)
    theirs = timm.create_model(
        "deit_tiny_patch16_224", pretrained=True, img_size=64,
        pretrained_cfg_overlay={"file": str(next(DEIT.glob("*.safetensors")))},
    ).eval()  # fmt: skip
    inputs = backbone.preprocess(pictures(4, 64))
    with torch.no_grad():
        features = backbone.encoder(inputs)
        expected = theirs.forward_head(theirs.forward_features(inputs), pre_logits=True)
    assert features.shape == (4, 192)
    assert torch.isfinite(features).all()
    assert torch.equal(features, expected)
    assert FlatModel(backbone.encoder).layout.parameters == sum(p.numel() for p in backbone.encoder.parameters())

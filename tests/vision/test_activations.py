"""Diagonal Fisher information and Gram matrices of real small models, against brute force and written-out inputs."""

from copy import deepcopy
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from torch import nn

from lib.fusion import featcal, fisher_merging, regmean, regmean_plus_plus, weight_averaging
from lib.fusion.activations import layer_groups
from lib.runtime.device import Runtime
from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vectors.fine_tuning import Expert
from lib.vectors.flat_model import FlatModel
from lib.vision import activations
from lib.vision.activations import diagonal_fisher, input_grams
from lib.vision.models import Preprocess, load_clip

RUNTIME = Runtime()
PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CLASSES, WIDTH = 3, 6


class Perceptron(nn.Sequential):
    """8 x 8 pixels to features by two linear layers."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 7), nn.Tanh(), nn.Linear(7, WIDTH))


def open_clip_vit():
    return open_clip.transformer.VisionTransformer(8, 4, width=8, layers=2, heads=2, mlp_ratio=2.0, output_dim=WIDTH)


def timm_vit():
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    return timm.models.vision_transformer.VisionTransformer(num_classes=WIDTH, **shape)


MODELS = {"perceptron": Perceptron, "open_clip ViT": open_clip_vit, "timm ViT": timm_vit}


def small_model(kind, tasks=2, images=5):
    """A float64 model, theta_t [T, D] of experts around it, images and labels of each task, and a head."""
    torch.manual_seed(0)
    model = FlatModel(MODELS[kind]().double())
    theta0 = torch.zeros(model.layout.length, dtype=torch.float64)
    for name, view in model.layout.views(theta0).items():
        view.copy_(dict(model.module.named_parameters())[name].detach())
    theta0 += 0.05 * torch.randn_like(theta0) * model.layout.inside()  # timm starts biases at zero
    experts = theta0 + 0.1 * torch.randn(tasks, len(theta0), dtype=torch.float64) * model.layout.inside()
    pixels = torch.randint(0, 256, (tasks, images, 3, 8, 8), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (tasks, images))
    return model, theta0, experts, pixels, labels, torch.randn(CLASSES, WIDTH, dtype=torch.float64) * 3


def at(model, theta):
    """An ordinary copy of the module with the parameters theta."""
    module = deepcopy(model.module)
    module.load_state_dict(model.layout.views(theta), strict=False)
    return module.eval()


def stacked_grams(model, experts, images):
    """What RegMean is given: parameter name -> [T, in, in]."""
    found = [input_grams(model, theta, own, PREPROCESS, RUNTIME) for theta, own in zip(experts, images, strict=True)]
    return {name: torch.stack([own[name] for own in found]) for name in found[0]}


def brute_force_fisher(model, theta, head, images, labels):
    """One backward pass at a time through an ordinary module."""
    module, total = at(model, theta), {name: 0.0 for name in model.layout.names}
    for number, image in enumerate(PREPROCESS(images).double()):
        features = nn.functional.normalize(module(image[None])[0], dim=0)
        log_probabilities = torch.log_softmax(head @ features, dim=0)
        for c in range(CLASSES) if labels is None else [labels[number]]:
            module.zero_grad()
            log_probabilities[c].backward(retain_graph=True)
            weight = log_probabilities[c].exp().item() if labels is None else 1.0
            for name, parameter in module.named_parameters():
                total[name] = total[name] + weight * parameter.grad.square() / len(images)
    flat = torch.zeros_like(theta)
    for name, view in model.layout.views(flat).items():
        view.copy_(total[name])
    return flat


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("memory", [1, 2**27])  # one gradient at a time, or all at once
def test_fisher_against_brute_force(kind, labelled, memory, monkeypatch):
    monkeypatch.setitem(activations.GRADIENT_BYTES, "cpu", memory)
    model, _, experts, images, labels, head = small_model(kind)
    given = labels[0] if labelled else None
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    found = diagonal_fisher(model, experts[0], head, images[0], PREPROCESS, labels=given)
    expected = brute_force_fisher(model, experts[0], head, images[0], given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    assert not (found * (1 - model.layout.inside())).any()
    assert all(torch.equal(p, before[name]) for name, p in model.module.named_parameters())  # the model did not move
    merged = fisher_merging(experts[0], experts - experts[0], model.layout, fisher=torch.stack([found, found]))
    torch.testing.assert_close(merged, experts.mean(0))


def test_random_signs_estimate_the_expectation(monkeypatch):
    model, _, experts, images, _, head = small_model("perceptron")
    arguments = (model, experts[0], head, images[0], PREPROCESS)
    exact = diagonal_fisher(*arguments)
    once = diagonal_fisher(*arguments, signs=1, seed=1)
    assert torch.equal(once, diagonal_fisher(*arguments, signs=1, seed=1))
    assert not torch.allclose(once, exact)
    many = diagonal_fisher(*arguments, signs=2000)
    assert (many - exact).norm() < 0.05 * exact.norm()
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * CLASSES) / 8**0.5  # all 8, each once
    monkeypatch.setattr(activations, "_combinations", lambda images, *_: every.expand(images, -1, -1))
    torch.testing.assert_close(diagonal_fisher(*arguments), exact)


@pytest.mark.parametrize("kind", MODELS)
def test_gram_matrices_are_those_of_the_inputs(kind):
    model, _, experts, images, _, _ = small_model(kind)
    found = input_grams(model, experts[0], images[0], PREPROCESS, RUNTIME, batch=2)
    module, inputs = at(model, experts[0]), {}
    for name, part in module.named_modules():
        if isinstance(part, nn.MultiheadAttention):  # with out_proj = 1 its output is what out_proj reads
            for path, wide in ((f"{name}.in_proj_weight", False), (f"{name}.out_proj.weight", True)):

                def attention_hook(part, given, _, path=path, wide=wide):
                    copy = deepcopy(part)
                    copy.out_proj.weight.data, copy.out_proj.bias.data = torch.eye(8).double(), torch.zeros(8).double()
                    inputs[path] = copy.forward(*given)[0] if wide else given[0]

                part.register_forward_hook(attention_hook)
        elif isinstance(part, nn.Linear):
            part.register_forward_hook(lambda _, given, __, name=name: inputs.update({f"{name}.weight": given[0]}))
    module(PREPROCESS(images[0]).double())
    assert found.keys() == inputs.keys()
    assert len(found) == {"perceptron": 2, "open_clip ViT": 8, "timm ViT": 9}[kind]  # 4 per block; timm's head
    for name, rows in inputs.items():
        rows = rows.detach().flatten(0, -2)
        torch.testing.assert_close(found[name], rows.T @ rows / len(rows), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_in_either_order_of_dimensions_and_with_a_mask(batch_first):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
            self.mask = None

        def forward(self, pixels):
            tokens = pixels.flatten(1).unflatten(1, (-1, 8))
            tokens = tokens if batch_first else tokens.transpose(0, 1)
            return self.attention(tokens, key=tokens, value=tokens, attn_mask=self.mask)[0]

    torch.manual_seed(0)
    model = FlatModel(Attention())
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    found = input_grams(model, model.initial(), images, PREPROCESS, RUNTIME)
    identity = deepcopy(model.module)
    identity.attention.out_proj.weight.data, identity.attention.out_proj.bias.data = torch.eye(8), torch.zeros(8)
    rows = identity(PREPROCESS(images)).detach().flatten(0, 1)
    torch.testing.assert_close(found["attention.out_proj.weight"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
    model.module.mask = torch.zeros(24, 24)
    found = input_grams(model, model.initial(), images, PREPROCESS, RUNTIME)
    assert set(found) == {"attention.in_proj_weight"}  # RegMean averages the other


def test_only_the_wanted_layers_are_read_and_the_pass_ends_there():
    model, _, experts, images, _, _ = small_model("open_clip ViT")
    everything = input_grams(model, experts[0], images[0], PREPROCESS, RUNTIME)
    reached = []
    model.module.transformer.resblocks[1].register_forward_hook(lambda *_: reached.append(1))
    wanted = [name for name in everything if "resblocks.0" in name]
    found = input_grams(model, experts[0], images[0], PREPROCESS, RUNTIME, layers=[*wanted, "conv1.weight"])
    assert not reached
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], everything[name]) for name in wanted)
    assert not any(part._forward_pre_hooks for part in model.module.modules())  # nothing is left behind


def test_bad_images_and_labels():
    model, _, experts, images, labels, head = small_model("perceptron")
    for bad in (images[0].double(), images[0][:0], images):
        with pytest.raises(ValueError, match=r"images are torch.* expected uint8 \[N, 3, H, W\]"):
            input_grams(model, experts[0], bad, PREPROCESS, RUNTIME)
        with pytest.raises(ValueError, match=r"images are torch.* expected uint8 \[N, 3, H, W\]"):
            diagonal_fisher(model, experts[0], head, bad, PREPROCESS)
    for bad in (labels[0][:2], labels[0] + CLASSES, labels[0] - CLASSES):
        with pytest.raises(ValueError, match="labels have shape"):
            diagonal_fisher(model, experts[0], head, images[0], PREPROCESS, labels=bad)
    with pytest.raises(ValueError, match="signs is -1"):
        diagonal_fisher(model, experts[0], head, images[0], PREPROCESS, signs=-1)


def test_groups_of_layers():
    groups = layer_groups(FlatModel(load_clip().visual))
    assert len(groups) == 2 + 2 + 6 + 2 + 1  # EdgeNeXt's blocks, and the projection behind them
    assert all(name.startswith("trunk.stages.2.blocks.5.") for name in groups[9])
    assert groups[-1] == ("head.proj.weight",)
    vit = layer_groups(FlatModel(open_clip_vit()))
    assert [{name.split(".")[2] for name in group} for group in vit] == [{"0"}, {"1"}]
    assert layer_groups(FlatModel(Perceptron())) == (("1.weight",), ("3.weight",))


def test_two_layers_by_hand():
    """RegMean and RegMean++ on a perceptron, with every input written out."""
    model, theta0, experts, images, _, _ = small_model("perceptron", images=40)
    vectors, layout = experts - theta0, model.layout
    inputs = [PREPROCESS(pixels).double().flatten(1) for pixels in images]
    first = [layout.views(theta)["1.weight"] for theta in experts]
    second = [layout.views(theta)["3.weight"] for theta in experts]
    bias = [layout.views(theta)["1.bias"] for theta in experts]

    def solve(data, weights):
        return torch.linalg.lstsq(
            torch.cat(data), torch.cat([x @ w.T for x, w in zip(data, weights, strict=True)])
        ).solution.T

    grams = stacked_grams(model, experts, images)
    merged = layout.views(regmean(theta0, vectors, layout, grams=grams, non_diagonal=1.0))
    hidden = [torch.tanh(x @ w.T + b) for x, w, b in zip(inputs, first, bias, strict=True)]  # the experts' own
    torch.testing.assert_close(merged["3.weight"], solve(hidden, second))

    def grams_at(task, theta, layers):
        return input_grams(model, theta, images[task], PREPROCESS, RUNTIME, layers=layers)

    groups = {"groups": layer_groups(model), "grams_at": grams_at}
    plus = layout.views(regmean_plus_plus(theta0, vectors, layout, **groups, non_diagonal=1.0))
    torch.testing.assert_close(plus["1.weight"], merged["1.weight"])  # nothing lies before the first layer
    torch.testing.assert_close(plus["1.bias"], sum(bias) / 2)
    hidden = [torch.tanh(x @ plus["1.weight"].T + plus["1.bias"]) for x in inputs]  # the merged model's
    torch.testing.assert_close(plus["3.weight"], solve(hidden, second))
    assert not torch.allclose(plus["3.weight"], merged["3.weight"], rtol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_regression_keeps_outputs_closer_than_averaging(kind):
    """What RegMean is for: on each layer's inputs, the merged layer answers more like the experts."""
    model, theta0, experts, images, _, _ = small_model(kind, images=30)
    layout, vectors = model.layout, experts - theta0
    grams = stacked_grams(model, experts, images)

    def loss(theta, name):
        errors = [layout.views(theta)[name] - layout.views(expert)[name] for expert in experts]
        return sum((e @ g * e).sum() for e, g in zip(errors, grams[name], strict=True))

    merged = regmean(theta0, vectors, layout, grams=grams, non_diagonal=1.0)
    average = weight_averaging(theta0, vectors, layout)
    assert all(loss(merged, name) < loss(average, name) for name in grams)


def test_statistics_of_experts_are_kept_in_the_store(tmp_path, monkeypatch):
    """What notebook 03 calls, on a made-up study: right shapes, made once, one line per method."""
    model, theta0, experts, images, labels, head = small_model("open_clip ViT", tasks=2, images=6)
    tasks = {"one": 0, "two": 1}
    workspace = VisionWorkspace(Study(get_profile("tiny"), root=tmp_path))
    splits = {name: SimpleNamespace(images=images[t], labels=labels[t]) for name, t in tasks.items()}
    workspace._tasks.update(tasks)
    workspace._splits["train"] = splits
    # Everything that would be loaded or trained.
    workspace.__dict__ |= {
        "heads": {"one": head, "two": head}, "model": model, "theta0": theta0, "task_vectors": experts - theta0,
        "backbone": SimpleNamespace(preprocess=PREPROCESS), "expert": lambda task: Expert(experts[tasks[task]]),
    }  # fmt: skip
    everything = (theta0, experts - theta0, model.layout)
    fisher = workspace.fisher(images=4, signs=0)
    chosen = workspace.sample("two", 4)
    torch.testing.assert_close(fisher[1], diagonal_fisher(model, experts[1], head, chosen, PREPROCESS))
    grams = workspace.grams(images=4)
    assert grams["transformer.resblocks.0.attn.in_proj_weight"].shape == (2, 8, 8)
    inputs = workspace.merged_inputs(images=4)
    results = [fisher_merging(*everything, fisher=fisher), regmean(*everything, grams=grams)]
    calibrated = featcal(*everything, **workspace.calibration(images=4))
    results += [regmean_plus_plus(*everything, **inputs), calibrated]
    assert all(torch.isfinite(result).all() for result in results)
    start = theta0 + 0.3 * (experts - theta0).sum(0)
    moved = {name for name, part in model.layout.views(calibrated - start).items() if part.any()}
    assert moved == {name for group in inputs["groups"] for name in group}  # a block has linear layers and norms only
    monkeypatch.setattr(activations, "read_grams", None)  # from here on only the store can answer
    monkeypatch.setattr(activations, "functional_call", None)
    assert torch.equal(workspace.fisher(images=4, signs=0), fisher)
    again = workspace.grams(images=4)
    assert all(torch.equal(again[name], grams[name]) for name in grams)


def test_the_shipped_clip():
    """The tiny CLIP's encoder is no plain transformer: its gradients and inputs are read all the same."""
    clip = load_clip()
    model = FlatModel(clip.visual)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    theta, head, labels = model.initial(), torch.randn(4, 96) * 3, torch.tensor([0, 3, 1])
    found = diagonal_fisher(model, theta, head, images, clip.preprocess, labels=labels)
    expected = torch.zeros_like(theta)
    for image, label in zip(images, labels, strict=True):
        features = nn.functional.normalize(model.move_to(theta)(clip.preprocess(image[None])), dim=-1)
        torch.log_softmax(features @ head.T, dim=-1)[0, label].backward()
        expected += model.gradient.square() / 3
    assert (found - expected).norm() < 1e-5 * expected.norm()
    grams = input_grams(model, theta, images, clip.preprocess, RUNTIME)
    linear = [name for name, part in clip.visual.named_modules() if isinstance(part, nn.Linear)]
    assert sorted(grams) == sorted(f"{name}.weight" for name in linear)
    assert all((torch.linalg.eigvalsh(gram.double()) > -1e-5 * gram.diagonal().max()).all() for gram in grams.values())

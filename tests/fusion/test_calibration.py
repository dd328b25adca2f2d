"""FeatCal against the definition by another route, the authors' block-by-block algorithm, and bad input."""

from copy import deepcopy

import pytest
import torch
from fusion_inputs import extra, moments
from torch import nn
from torch.nn.functional import layer_norm

from lib.fusion import featcal, task_arithmetic, tsv_m
from lib.fusion.activations import layer_groups, read_moments
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout

OPTIONS = {"ridge": 0.07, "anchor": 1.6, "expert_share": 0.4}


def problem(tasks=3, seed=0):
    """A linear layer and a norm, both with a bias, and a vector that no input is known of."""
    torch.manual_seed(seed)
    state = {
        "a.weight": torch.zeros(3, 4),
        "a.bias": torch.zeros(3),
        "n.weight": torch.zeros(5),
        "n.bias": torch.zeros(5),
    }
    layout = Layout.of(state | {"c": torch.zeros(2)}, block=4)
    inside = layout.inside().double()
    theta0 = torch.randn(layout.length, dtype=torch.float64) * inside
    return theta0, torch.randn(tasks, layout.length, dtype=torch.float64) * inside, layout


def inputs_of(tasks, width, rows=9):
    """What a layer of the merged model and of each expert reads: X and Y [T, rows, width]."""
    x = torch.randn(tasks, rows, width, dtype=torch.float64)
    return x, x + 0.3 * torch.randn_like(x) + 0.1


def given_inputs(**data):
    """`moments_at` that knows the inputs of some layers, whatever the points: name -> (X, Y)."""

    def moments_at(task, merged, expert, layers):
        return {name: moments(x[task], y[task]) for name, (x, y) in data.items() if name in layers}

    return moments_at


def least_squares(blocks, anchor, ridge):
    """Minimise sum |A v - B|^2 + ridge |v - anchor|^2 over v, with the ridge as rows of the data."""
    data, targets = zip(*blocks, (ridge**0.5 * torch.eye(len(anchor)).double(), ridge**0.5 * anchor), strict=True)
    return torch.linalg.lstsq(torch.cat(data), torch.cat(targets)).solution


def expected_linear(x, y, weights, biases, anchors, ridge, expert_share):
    """A weight [out, in] and its bias [out], by least squares: no Gram matrix but for its length."""
    z = expert_share * y + (1 - expert_share) * x
    rows = x.shape[1]
    scale = [(1 / (own.T @ own / rows).norm()) ** 0.5 for own in x]
    blocks = [(s * a / rows**0.5, s * b @ w.T / rows**0.5) for s, a, b, w in zip(scale, x, z, weights, strict=True)]
    weight = least_squares(blocks, anchors[0].T, ridge).T
    wanted = [b + w @ own.mean(0) - weight @ a.mean(0) for b, w, own, a in zip(biases, weights, z, x, strict=True)]
    one = torch.ones(1, 1).double()
    blocks = [(s * one, s * own[None]) for s, own in zip(scale, wanted, strict=True)]
    return weight, least_squares(blocks, anchors[1][None], ridge)[0]


def expected_norm(u, scales, shifts, anchors, ridge):
    """Scale and shift [width] feature by feature; u [T, rows, width] are normalised inputs."""
    found = []
    for feature in range(u.shape[-1]):
        columns = [torch.stack([own[:, feature], torch.ones(len(own)).double()], 1) / len(own) ** 0.5 for own in u]
        experts = [torch.stack([g[feature], h[feature]]) for g, h in zip(scales, shifts, strict=True)]
        blocks = [(own, own @ expert) for own, expert in zip(columns, experts, strict=True)]
        found.append(least_squares(blocks, torch.stack([own[feature] for own in anchors]), ridge))
    return torch.stack(found, 1)


# Closed forms


def test_a_linear_layer_and_a_norm_by_least_squares():
    theta0, vectors, layout = problem()
    x, y = inputs_of(3, 4)
    u, v = inputs_of(3, 5)
    start = theta0 + 0.4 * vectors.sum(0)
    needs = {"groups": [layout.names], "moments_at": given_inputs(**{"a.weight": (x, y), "n.weight": (u, v)})}
    merged = layout.views(featcal(theta0, vectors, layout, start=start, **needs, **OPTIONS))
    experts = [layout.views(theta0 + vector) for vector in vectors]
    anchors = layout.views(theta0 + OPTIONS["anchor"] * (start - theta0))

    def of(name):
        return [expert[name] for expert in experts]

    own = [anchors["a.weight"], anchors["a.bias"]]
    weight, bias = expected_linear(x, y, of("a.weight"), of("a.bias"), own, OPTIONS["ridge"], OPTIONS["expert_share"])
    torch.testing.assert_close(merged["a.weight"], weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged["a.bias"], bias, rtol=1e-9, atol=1e-9)
    own = [anchors["n.weight"], anchors["n.bias"]]
    scale, shift = expected_norm(u, of("n.weight"), of("n.bias"), own, OPTIONS["ridge"])  # not of what experts read
    torch.testing.assert_close(merged["n.weight"], scale, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged["n.bias"], shift, rtol=1e-9, atol=1e-9)
    assert torch.equal(merged["c"], layout.views(start)["c"])


def test_layers_without_a_bias():
    layout = Layout.of({"a.weight": torch.zeros(3, 4), "n": torch.zeros(5)}, block=4)
    torch.manual_seed(0)
    inside = layout.inside().double()
    theta0, vectors = torch.randn(layout.length).double() * inside, torch.randn(2, layout.length).double() * inside
    x, y = inputs_of(2, 4)
    u, _ = inputs_of(2, 5)
    needs = {"groups": [layout.names], "moments_at": given_inputs(**{"a.weight": (x, y), "n": (u, u)})}
    merged = layout.views(featcal(theta0, vectors, layout, **needs, **OPTIONS))
    anchors = layout.views(theta0 + OPTIONS["anchor"] * 0.3 * vectors.sum(0))
    experts = [layout.views(theta0 + vector) for vector in vectors]
    zero = [torch.zeros(3).double()] * 2
    given = [own["a.weight"] for own in experts], zero, [anchors["a.weight"], zero[0]]
    weight, _ = expected_linear(x, y, *given, OPTIONS["ridge"], OPTIONS["expert_share"])
    torch.testing.assert_close(merged["a.weight"], weight, rtol=1e-9, atol=1e-9)
    square = u.square().mean(1)
    total = sum(own * expert["n"] for own, expert in zip(square, experts, strict=True))
    scale = (total + OPTIONS["ridge"] * anchors["n"]) / (square.sum(0) + OPTIONS["ridge"])
    torch.testing.assert_close(merged["n"], scale)


@pytest.mark.parametrize("expert_share", [0.0, 0.3, 1.0])
def test_one_task_gives_its_experts_outputs_back(expert_share):
    """Fewer inputs than features, so there is no gap to the expert's outputs that a layer could not close."""
    torch.manual_seed(0)
    layout = Layout.of({"weight": torch.zeros(3, 9)})
    theta0, vectors = torch.randn(layout.length).double(), torch.randn(1, layout.length).double()
    x, y = inputs_of(1, 9, rows=5)
    needs = {"groups": [("weight",)], "moments_at": given_inputs(weight=(x, y)), "ridge": 1e-10}
    merged = layout.views(featcal(theta0, vectors, layout, expert_share=expert_share, **needs))["weight"]
    z = expert_share * y[0] + (1 - expert_share) * x[0]
    torch.testing.assert_close(x[0] @ merged.T, z @ layout.views(theta0 + vectors[0])["weight"].T, rtol=1e-6, atol=1e-6)


def test_a_large_ridge_gives_the_anchor_and_any_point_may_be_the_start():
    theta0, vectors, layout = problem()
    needs = extra("featcal", theta0, vectors, layout)
    for start in (None, tsv_m(theta0, vectors, layout)):
        merged = layout.views(featcal(theta0, vectors, layout, start=start, ridge=1e9, **needs))
        point = task_arithmetic(theta0, vectors, layout, scaling_factor=0.3) if start is None else start
        far = layout.views(theta0 + 2.0 * (point - theta0))
        for name in ("a.weight", "n.weight"):
            torch.testing.assert_close(merged[name], far[name], rtol=1e-6, atol=1e-6)


def test_a_start_where_all_experts_are_is_kept():
    theta0, vectors, layout = problem()
    same, needs = vectors[:1].repeat(3, 1), extra("featcal", theta0, vectors, layout)
    merged = featcal(theta0, same, layout, start=theta0 + vectors[0], anchor=1.0, **needs)
    torch.testing.assert_close(merged, theta0 + vectors[0], rtol=1e-12, atol=1e-12)


# The algorithm, from a model on


class Block(nn.Module):
    """A norm and two linear layers around a residual."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6, bias=False)

    def forward(self, x):
        return x + self.two(torch.tanh(self.one(self.norm(x))))


class Tower(nn.Module):
    """A layer that is not calibrated by itself, two blocks, and a final norm that is in no group."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.norm = nn.Conv1d(2, 6, 1), nn.Sequential(Block(), Block()), nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(self.blocks(self.stem(x).mT))


def tower(tasks=3):
    """Model, theta0, task vectors, and inputs of each task [T, batch, channels, places]."""
    torch.manual_seed(0)
    model = FlatModel(Tower().double())
    theta0 = model.layout.flatten(dict(model.module.named_parameters()), torch.zeros(model.layout.length).double())
    inside = model.layout.inside().double()
    vectors = 0.3 * torch.randn(tasks, len(theta0), dtype=torch.float64) * inside
    return model, theta0 + 0.1 * torch.randn_like(theta0) * inside, vectors, torch.randn(tasks, 7, 2, 5).double()


def at(model, theta):
    """A copy of the model at theta."""
    module = deepcopy(model.module)
    module.load_state_dict({name: own.clone() for name, own in model.layout.views(theta).items()})
    return module.requires_grad_(False)


def block_inputs(block, x):
    """What each layer of a block reads, written out, and the block's output."""
    normalised = layer_norm(x, (6,))
    scaled = block.norm(x)
    hidden = torch.tanh(block.one(scaled))
    return {"norm": normalised, "one": scaled, "two": hidden}, block(x)


def test_block_by_block_as_the_authors_do():
    """Their loop on modules: both models go through a block as it was, it is solved for, the merged one goes again."""
    model, theta0, vectors, inputs = tower()
    layout, ridge, anchor, share = model.layout, *OPTIONS.values()

    def moments_at(task, merged, expert, layers):
        calls = (((part,), {}) for part in inputs[task].split(3))
        return read_moments(model, (merged, expert), calls, Runtime(), layers=layers)

    found = featcal(theta0, vectors, layout, groups=layer_groups(model), moments_at=moments_at, **OPTIONS)
    start = theta0 + 0.3 * vectors.sum(0)
    student, experts = at(model, start), [at(model, theta0 + vector) for vector in vectors]
    far = at(model, theta0 + anchor * (start - theta0))
    x = [student.stem(own).mT for own in inputs]
    y = [expert.stem(own).mT for expert, own in zip(experts, inputs, strict=True)]
    for number in range(2):
        block, target = student.blocks[number], far.blocks[number]
        theirs = [expert.blocks[number] for expert in experts]
        ours = [block_inputs(block, own)[0] for own in x]
        seen, y = zip(*(block_inputs(own, rows) for own, rows in zip(theirs, y, strict=True)), strict=True)

        def stack(every, name):
            return torch.stack([own[name].flatten(0, 1) for own in every])

        scales, shifts = [own.norm.weight for own in theirs], [own.norm.bias for own in theirs]
        own = [target.norm.weight, target.norm.bias]
        solved = {"norm": expected_norm(stack(ours, "norm"), scales, shifts, own, ridge)}
        for name in ("one", "two"):
            zero = torch.zeros(6).double()
            weights = [getattr(own, name).weight for own in theirs]
            biases = [zero if name == "two" else own.one.bias for own in theirs]
            own = [getattr(target, name).weight, zero if name == "two" else target.one.bias]
            rows = stack(ours, name), stack(seen, name)
            solved[name] = expected_linear(*rows, weights, biases, own, ridge, share)
        for name, (weight, bias) in solved.items():
            getattr(block, name).weight.copy_(weight)
            if name != "two":
                getattr(block, name).bias.copy_(bias)
        x = [block(own) for own in x]
    expected = layout.flatten(dict(student.named_parameters()), torch.zeros_like(theta0))
    assert (found - start).norm() > 0.1 * start.norm()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    for name in ("stem.weight", "stem.bias", "norm.weight"):
        assert torch.equal(layout.views(found)[name], layout.views(start)[name])


def test_moments_are_those_of_the_inputs_and_the_pass_ends_there():
    model, theta0, vectors, inputs = tower()
    points = theta0, theta0 + vectors[0]
    reached = []
    model.module.norm.register_forward_pre_hook(lambda *_: reached.append(1))
    layers = ["blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.two.weight", "stem.weight"]
    calls = [((part,), {}) for part in inputs[0].split(4)]
    found = read_moments(model, points, calls, Runtime(), layers=layers)
    assert set(found) == {"blocks.0.norm.weight", "blocks.0.two.weight"}
    assert not reached
    assert not any(part._forward_pre_hooks for part in model.module.blocks.modules())  # nothing is left behind
    modules = [at(model, point) for point in points]
    both = [block_inputs(module.blocks[0], module.stem(inputs[0]).mT)[0] for module in modules]
    for name in ("norm", "two"):
        expected = moments(*(own[name].flatten(0, 1) for own in both))
        torch.testing.assert_close(found[f"blocks.0.{name}.weight"], expected, rtol=1e-10, atol=1e-12)


def test_buffers_belong_to_their_point():
    """A BatchNorm before the layer: each of both models normalises with its own running statistics."""
    torch.manual_seed(0)
    model = FlatModel(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double())
    theta = model.layout.flatten(dict(model.module.named_parameters()), torch.zeros(model.layout.length).double())
    rows, before = torch.randn(6, 3).double(), model.module[0].running_mean.clone()
    buffers = [{"0.running_mean": torch.full((3,), value).double()} for value in (1.0, 2.0)]
    found = read_moments(
        model, (theta, theta), [((rows,), {})], Runtime(), layers=["1.weight", "0.weight"], buffers=buffers
    )
    x, y = ((rows - own["0.running_mean"]) / (1 + model.module[0].eps) ** 0.5 for own in buffers)
    assert set(found) == {"1.weight"}  # a BatchNorm's scale keeps the start
    torch.testing.assert_close(found["1.weight"], moments(x, y))
    assert torch.equal(model.module[0].running_mean, before)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, r"ridge is 0\.0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"anchor": float("inf")}, "anchor is inf"),
        ({"expert_share": -0.1}, r"expert_share is -0\.1"),
        ({"expert_share": 1.1}, r"expert_share is 1\.1"),
        ({"start": torch.zeros(3)}, r"start has shape \[3\]"),
        ({"start": torch.full((24,), float("nan"))}, r"start has shape \[24\], expected a finite merged point"),
        ({"groups": []}, "no groups"),
        ({"groups": [("a.weight", "z")]}, "'z', which is no layer"),
        ({"groups": [("c",), ("c",)]}, "'c' is in more than one place"),
    ],
)
def test_bad_options(options, message):
    theta0, vectors, layout = problem()
    needs = extra("featcal", theta0, vectors, layout)
    with pytest.raises(ValueError, match=message):
        featcal(theta0, vectors, layout, **(needs | options))


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((2, 4, 4), 0.0, r"layer 'a.weight' have shape \[3, 2, 4, 4\], expected .* \[3, 2, 5, 5\]"),
        ((2, 5, 5), float("nan"), "layer 'a.weight' hold NaN or Inf"),
    ],
)
def test_bad_moments(shape, value, message):
    theta0, vectors, layout = problem()
    with pytest.raises(ValueError, match=message):
        featcal(theta0, vectors, layout, groups=[("a.weight",)],
                moments_at=lambda *_: {"a.weight": torch.full(shape, value)})  # fmt: skip


def test_moments_of_a_kernel_are_refused():
    layout = Layout.of({"k": torch.zeros(2, 3, 1, 1)})
    theta0 = torch.zeros(layout.length)
    with pytest.raises(ValueError, match=r"layer 'k' of shape \[2, 3, 1, 1\]: it must be"):
        featcal(theta0, theta0[None], layout, groups=[("k",)], moments_at=lambda *_: {"k": torch.zeros(2, 4, 4)})

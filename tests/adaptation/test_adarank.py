"""AdaRank: its closed-form gradients against autograd, where it starts, and what a run leaves."""

import pandas as pd
import pytest
import torch
from stopping import dies_at

from lib import concrete
from lib.adaptation.adarank import Components, Pruning, adarank
from lib.adaptation.coefficients import Coefficients, Variable
from lib.adaptation.protocol import Protocol
from lib.fusion import task_arithmetic
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.store import Store
from lib.vectors.layout import Layout

SHAPES = {"weight": (6, 4), "bias": (6,), "tall": (3, 5), "kernel": (2, 3, 2, 2)}
TEMPERATURE = 3.0


def world(tasks=3, dtype=torch.float64, seed=0, shapes=SHAPES):
    """theta0 and task vectors; the second task's "weight" has rank 2."""
    torch.manual_seed(seed)
    layout = Layout.of({name: torch.zeros(shape) for name, shape in shapes.items()}, block=8)
    inside = layout.inside().to(dtype)
    theta0 = torch.randn(layout.length, dtype=dtype) * inside
    vectors = torch.randn(tasks, layout.length, dtype=dtype) * inside
    if "weight" in shapes:
        thin = torch.randn(6, 2, dtype=dtype) @ torch.randn(2, 4, dtype=dtype)
        layout.views(vectors[1])["weight"].copy_(thin)
    return theta0, vectors, layout


def towards(target):
    """Squared distance to a target, a convex objective: loss and gradient, whatever the step."""

    def objective(theta):
        return (theta - target).square().sum() / 2, theta - target

    return lambda step: objective


def merged_by_autograd(theta0, vectors, layout, logits, lambdas):
    """The merge as an explicit graph: logits name -> [T, R], lambdas [T, L]."""
    parts = []
    for number, (name, own) in enumerate(layout.views(theta0).items()):
        for task, vector in enumerate(vectors):
            change = layout.views(vector)[name]
            if own.dim() == 2:
                u, s, vh = torch.linalg.svd(change, full_matrices=False)
                soft = torch.sigmoid(logits[name][task] / TEMPERATURE)
                bits = (soft > 0.5).to(soft) - soft.detach() + soft
                change = (u * (bits * s)) @ vh
            own = own + lambdas[task, number] * change
        parts.append(own.flatten())
        parts.append(theta0.new_zeros(layout.offsets[number + 1] - layout.offsets[number] - own.numel()))
    return torch.cat(parts)


@pytest.mark.parametrize("granularity", ["layer", "task", None])
def test_gradients_are_those_of_autograd_through_the_whole_merge(granularity):
    theta0, vectors, layout = world()
    components = Components(vectors, layout, theta0)
    logits = torch.randn_like(components.values)
    options = {"initial": 0.3, "learning_rate": 0.1, "protocol": Protocol(), "like": theta0}
    lambdas = Coefficients(3, layout, granularity, **options)
    lambdas.values = torch.randn_like(lambdas.values)
    learned = Variable(logits, 0.1)
    pruning = Pruning(towards(theta0), theta0, vectors, components, lambdas, learned, temperature=TEMPERATURE)

    free = {name: own.clone().requires_grad_() for name, own in components.by_name(logits).items()}
    every = pruning.weights().clone().requires_grad_()
    theta = merged_by_autograd(theta0, vectors, layout, free, every)
    torch.testing.assert_close(pruning.theta(), theta.detach(), atol=1e-12, rtol=1e-12)
    loss = theta.cosh().log().sum()
    gradient = torch.autograd.grad(loss, theta, retain_graph=True)[0]
    expected = torch.autograd.grad(loss, [every, *free.values()])
    by_logit, by_layer = pruning.gradients(gradient)
    torch.testing.assert_close(by_layer, expected[0], atol=1e-12, rtol=1e-10)
    for found, wanted in zip(components.parts(by_logit), expected[1:], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
        assert found.abs().max() > 1e-3
    off = (logits < 0) & (components.values > 0)
    assert (by_logit[off].abs() > 0).all(), "what is off may come back"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_every_component_on_it_starts_at_task_arithmetic(dtype):
    theta0, vectors, layout = world(dtype=dtype)
    found = adarank(towards(theta0), theta0, vectors, layout, steps=0, coefficients=None)
    wanted = task_arithmetic(theta0, vectors, layout, scaling_factor=0.3)
    torch.testing.assert_close(found.theta, wanted)
    assert torch.equal(found.coefficients, torch.full((3,), 0.3, dtype=dtype))
    assert {name: list(bits.shape) for name, bits in found.masks.items()} == {"weight": [3, 4], "tall": [3, 3]}
    assert found.masks["weight"].sum(1).tolist() == [4, 2, 4], "no bits beyond the rank"
    assert found.masks["tall"].all()


@pytest.mark.parametrize("share, kept", [(0.0, (0, 0)), (0.5, (2, 1)), (0.7, (2, 2)), (1.0, (4, 3))])
def test_a_share_of_the_largest_possible_rank_is_on_at_the_start(share, kept):
    theta0, vectors, layout = world()
    found = adarank(towards(theta0), theta0, vectors, layout, steps=1, initial_share=share, mask_learning_rate=1e-6)
    for (name, bits), first in zip(found.masks.items(), kept, strict=True):
        assert bits[0].tolist() == [number < first for number in range(min(SHAPES[name]))], "the largest ones"
    total = 4 + 2 + 4 + 3 * 3
    on = sum(min(kept[0], rank) for rank in (4, 2, 4)) + 3 * kept[1]
    assert found.curve["kept"].item() == pytest.approx(on / total)


def test_layers_that_are_no_matrices_are_those_of_adamerging():
    """Nothing of them is pruned; their coefficients are learned."""
    theta0, vectors, layout = world()
    options = {"steps": 20, "initial_share": 0.0, "learning_rate": 0.01, "mask_learning_rate": 1e-6}
    found = adarank(towards(theta0 + vectors[0]), theta0, vectors, layout, **options)
    assert found.coefficients.shape == (3, 4)
    merged = concrete.merge(theta0, vectors, found.coefficients, layout)
    for name, own in layout.views(found.theta).items():
        wanted = layout.views(merged if name in ("bias", "kernel") else theta0)[name]
        torch.testing.assert_close(own, wanted, atol=1e-12, rtol=0)
    moved = (found.coefficients - 0.3).abs()
    assert (moved[:, [1, 3]] > 0.05).all()
    assert torch.equal(moved[:, [0, 2]], torch.zeros_like(moved[:, [0, 2]])), "with every bit off they do not matter"


def test_a_run_finds_planted_components():
    """The target lacks some of them; coefficients held fixed, bits say which."""
    theta0, vectors, layout = world(dtype=torch.float32)
    components = Components(vectors, layout, theta0)
    torch.manual_seed(1)
    planted = (torch.rand_like(components.values) < 0.5) & (components.values > 0)
    summed = 0.3 * vectors.sum(0)
    components.write_sum(0.3 * planted * components.values, summed)
    target = theta0 + summed
    found = adarank(towards(target), theta0, vectors, layout, steps=400, coefficients=None, mask_learning_rate=0.01)
    loss = found.curve["loss"]
    assert loss.iloc[-1] < 0.2 * loss.iloc[0]
    bits = torch.cat([own.flatten() for own in found.masks.values()])
    assert (bits == planted)[components.values > 0].float().mean() > 0.8
    assert found.curve["kept"].iloc[0] == 1 > found.curve["kept"].iloc[-1]


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_bits_and_coefficients_together_lower_the_loss(granularity):
    theta0, vectors, layout = world(dtype=torch.float32)
    looked = []

    def evaluate(theta):
        looked.append(theta.clone())
        return {"accuracy": 0.5}

    found = adarank(
        towards(theta0 + vectors[0]), theta0, vectors, layout, steps=300, coefficients=granularity,
        learning_rate=0.01, mask_learning_rate=0.01, evaluate=evaluate, evaluate_every=200,
    )  # fmt: skip
    assert found.curve["loss"].iloc[-1] < 0.1 * found.curve["loss"].iloc[0]
    assert list(found.curve.columns) == ["step", "loss", "kept", "accuracy"]
    assert found.curve["accuracy"].dropna().index.tolist() == [199, 299]
    assert torch.equal(looked[-1], found.theta)
    assert found.coefficients.shape == ((3, 4) if granularity == "layer" else (3,))


def test_task_vectors_in_half_precision():
    theta0, vectors, layout = world(dtype=torch.float32)
    half = vectors.bfloat16()
    options = {"steps": 5, "initial_share": 0.5, "mask_learning_rate": 0.05}
    found = adarank(towards(theta0), theta0, half, layout, **options)
    wanted = adarank(towards(theta0), theta0, half.float(), layout, **options)
    torch.testing.assert_close(found.theta, wanted.theta)


def test_a_matrix_that_no_task_changed():
    theta0, vectors, layout = world()
    for vector in vectors:
        layout.views(vector)["tall"].zero_()
    found = adarank(towards(theta0 + vectors[0]), theta0, vectors, layout, steps=3)
    assert found.masks["tall"].shape == (3, 0)
    assert torch.equal(layout.views(found.theta)["tall"], layout.views(theta0)["tall"])


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path):
    theta0, vectors, layout = world(dtype=torch.float32)
    target, options = theta0 + vectors[0], {"steps": 12, "learning_rate": 0.02, "mask_learning_rate": 0.03}
    whole = adarank(towards(target), theta0, vectors, layout, **options)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", every=0)
    with pytest.raises(KeyboardInterrupt):
        adarank(dies_at(7, towards(target)), theta0, vectors, layout, checkpoint=checkpoint, **options)
    resumed = adarank(towards(target), theta0, vectors, layout, checkpoint=checkpoint, **options)
    assert torch.equal(whole.theta, resumed.theta)
    assert torch.equal(whole.coefficients, resumed.coefficients)
    pd.testing.assert_frame_equal(whole.curve, resumed.curve, check_exact=True)
    assert whole.curve["kept"].nunique() > 1


def test_the_store_keeps_it(tmp_path):
    theta0, vectors, layout = world(dtype=torch.float32)
    given = towards(theta0 + vectors[0]), theta0, vectors, layout
    remembered, options = Store(tmp_path).remember(adarank), {"steps": 8, "mask_learning_rate": 0.03}
    made, read = remembered(*given, label="one", **options), remembered(*given, label="other", **options)
    assert len(list((tmp_path / "adarank").glob("*/about.json"))) == 1
    assert torch.equal(made.theta, read.theta)
    assert list(made.masks) == ["weight", "tall"]
    for name, bits in adarank(*given, **options).masks.items():
        assert read.masks[name].dtype == torch.bool
        assert torch.equal(bits, read.masks[name])
    pd.testing.assert_frame_equal(made.curve, read.curve)


def test_an_objective_forgets_earlier_runs_and_is_asked_for_a_report():
    theta0, vectors, layout = world()

    class Counting:
        resets = 0

        def __call__(self, step):
            return towards(theta0)(step)

        def reset(self):
            self.resets += 1

        def report(self):
            return {"entropy": torch.tensor(0.5)}

    objective = Counting()
    found = adarank(objective, theta0, vectors, layout, steps=2)
    assert objective.resets == 1
    assert found.curve["entropy"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"initial_share": 1.2}, "initial_share is 1.2"),
        ({"initial_share": float("nan")}, "initial_share is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"initial_logit": -0.1}, "initial_logit -0.1"),
        ({"coefficients": "row"}, "coefficients='row'"),
    ],
)
def test_arguments_out_of_range(options, message):
    theta0, vectors, layout = world()
    with pytest.raises(ValueError, match=message):
        adarank(towards(theta0), theta0, vectors, layout, steps=1, **options)


def test_inputs_that_do_not_fit():
    theta0, vectors, layout = world()
    with pytest.raises(ValueError, match="task vectors have shape"):
        adarank(towards(theta0), theta0, vectors[:, :-8], layout, steps=1)
    with pytest.raises(ValueError, match="task vector 1 holds NaN or Inf in layer 'bias'"):
        layout.views(vectors[1])["bias"][0] = float("nan")
        adarank(towards(theta0), theta0, vectors, layout, steps=1)
    theta0, vectors, layout = world(shapes={"bias": (6,), "kernel": (2, 3, 2, 2)})
    with pytest.raises(ValueError, match="no layer is a matrix"):
        adarank(towards(theta0), theta0, vectors, layout, steps=1)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    theta0, vectors, layout = world()

    def diverges(step):
        return lambda theta: (float("nan") if step == 3 else 1.0, torch.zeros_like(theta))

    with pytest.raises(ValueError, match="AdaRank: the loss is nan at step 3"):
        adarank(diverges, theta0, vectors, layout, steps=9)

"""SyMerge: both gradients against autograd through merge, model and heads; what a run leaves, and leaves alone."""

import pandas as pd
import pytest
import torch
from stopping import dies_at
from test_objectives import parts
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from lib.adaptation.coefficients import Coefficients
from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.adaptation.symerge import Synergy, symerge
from lib.fusion import task_arithmetic
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.keys import content
from lib.runtime.store import Store
from lib.vision.objective import ImageObjective, image_logits

CLASSES = (3, 7)


def world(objective="expert-labels", batch=8, **options):
    """An objective, theta0 and task vectors, and the layout; the experts' predictions are those of theta0 + tau."""
    model, heads, sets, preprocess, runtime = parts(classes=CLASSES)
    theta0, layout = model.initial(), model.layout
    torch.manual_seed(1)
    vectors = 0.3 * torch.randn(len(CLASSES), layout.length) * layout.inside()
    given = zip(vectors, heads, sets, strict=True)
    experts = [image_logits(model, theta0 + vector, *own, preprocess, runtime) for vector, *own in given]
    options |= {"batch": batch, "seed": 0, "objective": objective, "experts": experts}
    return ImageObjective(model, heads, sets, preprocess, runtime, **options), theta0, vectors, layout


def learned(objective, theta0, vectors, layout, granularity="layer", clamp=False, rate=0.1):
    options = {"initial": 0.3, "learning_rate": 0.1, "protocol": Protocol(clamp=clamp), "like": theta0}
    lambdas = Coefficients(len(vectors), layout, granularity, **options)
    return Synergy(objective, theta0, vectors, layout, lambdas, head_learning_rate=rate)


def loss_in_words(objective, theta0, vectors, layout, lambdas, heads, step):
    """Cross-entropy on the experts' labels as one graph, from coefficients [T, L] and heads to the loss."""
    parameters = {
        name: own + sum(lambdas[task, number] * layout.views(vector)[name] for task, vector in enumerate(vectors))
        for number, (name, own) in enumerate(layout.views(theta0).items())
    }
    total = 0.0
    for task, rows in objective.rows(step).items():
        pixels = objective.preprocess(objective.images[task][rows])
        features = normalize(functional_call(objective.model.module, parameters, (pixels,)), dim=-1)
        total = total + cross_entropy(features @ heads[task].T, objective.experts[task][rows].argmax(-1))
    return total


@pytest.mark.parametrize("granularity", ["layer", "task"])
@pytest.mark.parametrize("rows_at_once", [0, 5])
def test_gradients_are_those_of_autograd_through_merge_model_and_heads(granularity, rows_at_once):
    objective, *point = world(rows_at_once=rows_at_once)
    synergy = learned(objective, *point, granularity)
    synergy.lambdas.values = torch.randn_like(synergy.lambdas.values)
    every = synergy.lambdas.values.clone()
    every = (every if granularity == "layer" else every[:, None].repeat(1, synergy.layout.layers)).requires_grad_()
    heads = [head.clone().requires_grad_() for head in objective.heads]
    for again in range(2):  # nothing adds up from step to step
        loss, by_layer, by_head = synergy.gradients(3)
        wanted = loss_in_words(objective, *point, every, heads, 3)
        expected = torch.autograd.grad(wanted, [every, *heads])
        assert float(loss) == pytest.approx(wanted.item(), rel=1e-5), again
        torch.testing.assert_close(by_layer, expected[0], atol=1e-5, rtol=1e-4)
        for found, own in zip(by_head, expected[1:], strict=True):
            torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-4)
            assert found.abs().max() > 1e-3


def test_a_step_is_one_of_torch_s_adam_on_coefficients_and_heads():
    objective, *point = world()
    found = symerge(objective, *point, steps=5, learning_rate=0.02, head_learning_rate=0.03, clamp=False)
    lambdas = torch.full((2, point[-1].layers), 0.3, requires_grad=True)
    heads = [head.clone().requires_grad_() for head in objective.heads]
    optimiser = torch.optim.Adam([{"params": [lambdas], "lr": 0.02}, {"params": heads, "lr": 0.03}])
    for step in range(5):
        optimiser.zero_grad()
        loss_in_words(objective, *point, lambdas, heads, step).backward()
        optimiser.step()
    torch.testing.assert_close(found.coefficients, lambdas.detach(), atol=1e-4, rtol=1e-3)
    for own, wanted in zip(found.heads, heads, strict=True):
        torch.testing.assert_close(own, wanted.detach(), atol=1e-4, rtol=1e-3)


def test_it_starts_at_task_arithmetic_with_the_heads_given():
    objective, *point = world()
    found = symerge(objective, *point, steps=0)
    torch.testing.assert_close(found.theta, task_arithmetic(*point, scaling_factor=0.3))
    assert all(torch.equal(own, given) for own, given in zip(found.heads, objective.heads, strict=True))
    assert len(found.curve) == 0


@pytest.mark.parametrize("clamp", [False, True])
def test_with_heads_left_alone_it_is_adamerging(clamp):
    objective, *point = world()
    options = {"steps": 40, "learning_rate": 0.05, "initial_coefficient": 0.3}
    found = symerge(objective, *point, head_learning_rate=0, clamp=clamp, **options)
    wanted = adapt(objective, *point, protocol=Protocol(clamp=clamp), **options)
    torch.testing.assert_close(found.coefficients, wanted.coefficients, atol=1e-4, rtol=1e-3)
    assert clamp == bool(((found.coefficients >= 0) & (found.coefficients <= 1)).all())
    assert found.curve["loss"].tolist() == pytest.approx(wanted.curve["loss"].tolist(), rel=1e-3)
    assert all(torch.equal(own, given) for own, given in zip(found.heads, objective.heads, strict=True))


@pytest.mark.parametrize("labels", ["expert-labels", "filtered-labels"])
@pytest.mark.parametrize("granularity", ["layer", "task", None])
def test_heads_and_coefficients_together_lower_the_loss(granularity, labels):
    objective, *point = world(labels, batch=40)
    looked = []

    def evaluate(theta, heads):
        looked.append((theta.clone(), heads))
        return {"accuracy": 0.5}

    options = {"steps": 60, "evaluate": evaluate, "evaluate_every": 40, "head_learning_rate": 0.03}
    found = symerge(objective, *point, coefficients=granularity, **options)
    alone = symerge(objective, *point, coefficients="layer", steps=60, head_learning_rate=0)
    assert found.curve["loss"].iloc[-1] < 0.7 * found.curve["loss"].iloc[0]
    assert found.curve["loss"].iloc[-1] < alone.curve["loss"].iloc[-1]
    assert list(found.curve.columns) == ["step", "loss", "entropy", "marginal_entropy", "accuracy"]
    assert found.curve["accuracy"].dropna().index.tolist() == [39, 59]
    assert torch.equal(looked[-1][0], found.theta)
    assert all(torch.equal(own, last) for own, last in zip(found.heads, looked[-1][1], strict=True))
    assert not torch.equal(looked[0][1][0], looked[1][1][0]), "what was shown does not move on"
    assert found.coefficients.shape == ((2, point[-1].layers) if granularity == "layer" else (2,))
    assert (granularity is None) == torch.equal(found.coefficients, torch.full_like(found.coefficients, 0.3))


def test_the_objective_given_and_its_heads_stay_as_they_are():
    objective, *point = world("information-maximisation", batch=2)  # a running mean prediction, too
    objective(0)(point[0])
    before, running, key = [head.clone() for head in objective.heads], objective.state(), content(objective)
    symerge(objective, *point, steps=3)
    assert all(torch.equal(own, head) for own, head in zip(before, objective.heads, strict=True))
    assert not any(head.requires_grad or head.grad is not None for head in objective.heads)
    assert all(torch.equal(*pair) for pair in zip(running, objective.state(), strict=True))
    assert content(objective) == key


@pytest.mark.parametrize("objective", ["expert-labels", "information-maximisation"])
def test_an_interrupted_run_continues_to_the_same_bits(tmp_path, monkeypatch, objective):
    given = world(objective, batch=2)
    options = {"steps": 12, "learning_rate": 0.02, "head_learning_rate": 0.03}
    whole = symerge(*given, **options)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", every=0)
    monkeypatch.setattr(Synergy, "one_step", dies_at(7, Synergy.one_step))
    with pytest.raises(KeyboardInterrupt):
        symerge(*given, checkpoint=checkpoint, **options)
    monkeypatch.undo()
    assert len(checkpoint.load()["curve"]) == 7
    resumed = symerge(*world(objective, batch=2), checkpoint=checkpoint, **options)
    assert torch.equal(whole.theta, resumed.theta)
    assert torch.equal(whole.coefficients, resumed.coefficients)
    assert all(torch.equal(*pair) for pair in zip(whole.heads, resumed.heads, strict=True))
    pd.testing.assert_frame_equal(whole.curve, resumed.curve, check_exact=True)


def test_the_store_keeps_it_and_knows_what_determines_it(tmp_path):
    given, remembered = world(), Store(tmp_path).remember(symerge)
    made, read = remembered(*given, steps=4, label="one"), remembered(*given, steps=4, label="other")
    folders = tmp_path / "symerge"
    assert len(list(folders.glob("*/about.json"))) == 1
    assert torch.equal(made.theta, read.theta)
    assert isinstance(read.heads, tuple)
    for own, wanted in zip(read.heads, symerge(*given, steps=4).heads, strict=True):
        assert torch.equal(own, wanted)
    pd.testing.assert_frame_equal(made.curve, read.curve)
    given[0].heads[1] = given[0].heads[1] + 0.1
    remembered(*given, steps=4)
    remembered(*given, steps=4, head_learning_rate=0.5)
    remembered(*world(confidence=0.5), steps=4)
    assert len(list(folders.glob("*/about.json"))) == 4


def test_task_vectors_in_half_precision():
    objective, theta0, vectors, layout = world()
    half = vectors.bfloat16()
    found, wanted = (symerge(objective, theta0, own, layout, steps=5) for own in (half, half.float()))
    torch.testing.assert_close(found.theta, wanted.theta)
    torch.testing.assert_close(found.heads, wanted.heads)


def test_what_does_not_fit_is_refused():
    objective, theta0, vectors, layout = world()
    with pytest.raises(ValueError, match="task vectors have shape"):
        symerge(objective, theta0, vectors[:, :-8], layout, steps=1)
    with pytest.raises(ValueError, match="the objective has 2 heads, expected one to learn for each of 1 task vectors"):
        symerge(objective, theta0, vectors[:1], layout, steps=1)
    with pytest.raises(ValueError, match="the objective has no heads"):
        symerge(lambda step: objective(step), theta0, vectors, layout, steps=1)
    with pytest.raises(ValueError, match=r"head_learning_rate is -0\.1"):
        symerge(objective, theta0, vectors, layout, steps=1, head_learning_rate=-0.1)
    with pytest.raises(ValueError, match="coefficients='row'"):
        symerge(objective, theta0, vectors, layout, steps=1, coefficients="row")
    objective.heads[0] = objective.heads[0] * float("nan")
    with pytest.raises(ValueError, match="SyMerge: the loss is nan at step 0"):
        symerge(objective, theta0, vectors, layout, steps=1)

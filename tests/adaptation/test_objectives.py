"""What adaptation minimises: gradients against autograd, micro-batches, the running mean prediction, signatures."""

import math

import pytest
import torch
from torch import nn

from lib.adaptation.failures import signatures
from lib.adaptation.losses import entropy, entropy_of_mean, expert_kl, expert_labels, filtered_labels
from lib.adaptation.objectives import FROM_EXPERTS, OBJECTIVES
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

SIDE, WIDTH = 4, 6


def parts(classes=(3, 20), images=40, seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 10), nn.GELU(), nn.Linear(10, WIDTH))
    heads = [5 * torch.nn.functional.normalize(torch.randn(count, WIDTH), dim=-1) for count in classes]
    sets = [torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8) for _ in classes]
    return FlatModel(encoder), heads, sets, Preprocess((0.5,) * 3, (0.25,) * 3), Runtime()


def seen(batches, step):
    """The images of a step, one set per task."""
    return [batches.images[task][rows] for task, rows in batches.rows(step).items()]


def literal(model, heads, rows, preprocess, theta, diversity):
    """The loss in the words of its definition."""
    encoder = model.move_to(theta)
    total = 0.0
    for head, pixels in zip(heads, rows, strict=True):
        features = torch.nn.functional.normalize(encoder(preprocess(pixels)), dim=-1)
        probabilities = torch.softmax(features @ head.T, -1)
        mean = probabilities.mean(0)
        total = total - (probabilities * probabilities.log()).sum(-1).mean() + diversity * (mean * mean.log()).sum()
    total.backward()
    return total.item(), model.gradient.clone()


@pytest.mark.parametrize(("objective", "diversity"), [("entropy", 0.0), ("information-maximisation", 0.7)])
@pytest.mark.parametrize("rows_at_once", [0, 5])
def test_loss_and_gradient_are_those_of_the_definition(objective, diversity, rows_at_once):
    model, heads, sets, preprocess, runtime = parts()
    options = {"batch": 8, "seed": 0, "objective": objective, "diversity": 0.7, "rows_at_once": rows_at_once}
    batches = ImageObjective(model, heads, sets, preprocess, runtime, **options)
    theta = model.initial()
    loss, gradient = batches(3)(theta)
    gradient = gradient.clone()
    wanted, exact = literal(model, heads, seen(batches, 3), preprocess, theta, diversity)
    assert loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(gradient, exact, atol=1e-6, rtol=1e-4)
    assert batches.report()["entropy"] <= 1
    assert batches.report()["marginal_entropy"] <= 1


def test_one_class_for_everything_pleases_entropy_but_not_information_maximisation():
    sure = torch.eye(4)[torch.zeros(8, dtype=torch.long)] * 50
    spread = torch.eye(4)[torch.arange(8) % 4] * 50
    for logits in (sure, spread):
        assert entropy(logits).mean() < 1e-6
    assert entropy_of_mean(sure.softmax(-1).mean(0)) < 1e-6
    assert entropy_of_mean(spread.softmax(-1).mean(0)) == pytest.approx(math.log(4))
    assert torch.isfinite(entropy_of_mean(torch.tensor([1.0, 0.0])))


def test_the_mean_prediction_runs_on_where_classes_outnumber_the_batch():
    model, heads, sets, preprocess, runtime = parts(classes=(3, 20))
    batches = ImageObjective(
        model, heads, sets, preprocess, runtime, batch=5, seed=0, objective="information-maximisation"
    )
    theta = model.initial()
    means = []
    for step in range(3):
        objective = batches(step)
        objective(theta)
        objective(theta)  # a second look at the same batch adds nothing
        with torch.no_grad():
            features = nn.functional.normalize(model.module(preprocess(seen(batches, step)[1])), dim=-1)
            means.append((features @ heads[1].T).softmax(-1).mean(0))
    wanted = means[0]
    for mean in means[1:]:
        wanted = 0.25 * mean + 0.75 * wanted  # 5 images of 20 classes
    torch.testing.assert_close(batches.state()[1], wanted)

    again = ImageObjective(
        model, heads, sets, preprocess, runtime, batch=5, seed=0, objective="information-maximisation"
    )
    again.load_state(batches.state())
    assert again(3)(theta)[0] == batches(3)(theta)[0]
    fresh = ImageObjective(
        model, heads, sets, preprocess, runtime, batch=5, seed=0, objective="information-maximisation"
    )
    assert fresh(3)(theta)[0] != batches(3)(theta)[0]


@pytest.mark.parametrize(("classes", "batch"), [(5, 8), (20, 8), (100, 4)])
def test_the_diversity_term_pulls_as_hard_as_that_of_all_rows_however_many_classes(classes, batch):
    """At one point the mean of many batches' gradients is the gradient of H(mean over all rows), not B / C of it."""
    model, (head,), sets, preprocess, runtime = parts(classes=(classes,), images=80)
    head *= 3  # sure of single images, so that their mean is far from even
    theta, gradients = model.initial(), {}
    for objective in ("entropy", "information-maximisation"):
        options = {"batch": batch, "seed": 0, "objective": objective}
        batches, steps = ImageObjective(model, [head], sets, preprocess, runtime, **options), 6 * 80 // batch
        found = torch.stack([batches(step)(theta)[1].clone() for step in range(steps)])
        gradients[objective] = found[steps // 2 :].mean(0)  # the running mean has run in
    diversity = gradients["information-maximisation"] - gradients["entropy"]
    features = nn.functional.normalize(model.move_to(theta)(preprocess(sets[0])), dim=-1)
    (-entropy_of_mean((features @ head.T).softmax(-1).mean(0))).backward()
    whole = model.gradient
    assert (diversity @ whole / whole.square().sum()).item() == pytest.approx(1, abs=0.2)
    assert nn.functional.cosine_similarity(diversity, whole, dim=0) > 0.9


def test_without_a_limit_all_tasks_are_one_batch_also_where_some_have_few_rows():
    model, heads, _, preprocess, runtime = parts(classes=(3, 3, 3, 3))
    sets = [torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8) for count in (64, 10, 10, 10)]
    model.module.append(nn.BatchNorm1d(WIDTH))
    batches = ImageObjective(FlatModel(model.module), heads, sets, preprocess, runtime, batch=64, seed=0)
    assert batches.tasks_together() == 4
    assert batches.rows_together() >= 64 + 10 + 10 + 10


def test_batches_repeat_only_after_an_epoch():
    model, heads, sets, preprocess, runtime = parts(images=40)
    batches = ImageObjective(model, heads, sets, preprocess, runtime, batch=8, seed=0)
    epoch = torch.cat([seen(batches, step)[0] for step in range(5)]).flatten(1)
    assert len(epoch.unique(dim=0)) == len(sets[0].flatten(1).unique(dim=0))
    assert not torch.equal(seen(batches, 0)[0], seen(batches, 5)[0])


def test_an_unknown_objective_names_the_known_ones():
    model, heads, sets, preprocess, runtime = parts()
    with pytest.raises(ValueError, match=f"unknown objective 'infomax'; known: {', '.join(OBJECTIVES)}"):
        ImageObjective(model, heads, sets, preprocess, runtime, batch=4, seed=0, objective="infomax")


# Objectives that look at the experts' predictions


def kl_in_words(p, q):
    return sum(float(a * (a.log() - b.log()).item()) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_to_the_expert_is_the_divergence_of_softened_predictions(temperature):
    torch.manual_seed(0)
    merged, expert = torch.randn(2, 5, 7, dtype=torch.float64)
    wanted = [
        kl_in_words(torch.softmax(e / temperature, -1), torch.softmax(m / temperature, -1))
        for e, m in zip(expert, merged, strict=True)
    ]
    assert expert_kl(merged, expert, temperature).item() == pytest.approx(temperature**2 * sum(wanted) / 5, abs=1e-12)
    assert expert_kl(expert, expert, temperature).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_hardly_depends_on_a_high_temperature():
    """The square of the temperature is there for that (Hinton et al., section 2)."""
    torch.manual_seed(0)
    expert = torch.randn(5, 7, dtype=torch.float64)
    found = []
    for temperature in (50.0, 100.0):
        merged = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
        expert_kl(merged, expert, temperature).backward()
        found.append(merged.grad)
    torch.testing.assert_close(*found, rtol=0.05, atol=1e-3)


def test_only_rows_that_the_expert_is_sure_of_count():
    expert = torch.tensor([[9.0, 0, 0], [0, 0.1, 0], [0, 0, 9.0]])
    merged = torch.tensor([[1.0, 2, 3], [4.0, 5, 6], [3.0, 2, 1]])
    own = nn.functional.cross_entropy(merged, torch.tensor([0, 1, 2]), reduction="none")
    assert expert_labels(merged, expert).item() == pytest.approx(own.mean().item())
    assert expert_labels(merged, expert, 0.9).item() == pytest.approx(own[[0, 2]].mean().item())
    assert expert_labels(merged, expert, 1.0).item() == 0


def test_a_label_that_contradicts_a_surer_merged_model_does_not_count():
    """Rows in order: agreed and surer, agreed and less sure, contradicted and less sure, contradicted and surer."""
    merged = torch.tensor([[3.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0]], dtype=torch.float64, requires_grad=True)
    expert = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [3.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    own = nn.functional.cross_entropy(merged, torch.tensor([0, 0, 0, 1]), reduction="none")
    loss = filtered_labels(merged, expert)
    assert loss.item() == pytest.approx(own[:3].mean().item())
    (gradient,) = torch.autograd.grad(loss, merged)
    (wanted,) = torch.autograd.grad(own[:3].mean(), merged)
    torch.testing.assert_close(gradient, wanted)
    assert torch.equal(gradient[3], torch.zeros(3, dtype=torch.float64))
    assert filtered_labels(merged[3:], expert[3:]).item() == 0
    assert filtered_labels(expert, expert).item() == pytest.approx(expert_labels(expert, expert).item())
    one, other = torch.tensor([[2.0, 0]]), torch.tensor([[0, 2.0]])
    assert filtered_labels(one, other).item() == expert_labels(one, other).item() > 2, "equally sure is sure enough"


@pytest.mark.parametrize("objective", FROM_EXPERTS)
@pytest.mark.parametrize("rows_at_once", [0, 5])
def test_experts_predictions_belong_to_their_rows(objective, rows_at_once):
    model, heads, sets, preprocess, runtime = parts()
    experts = [3 * torch.randn(len(own), len(head)) for own, head in zip(sets, heads, strict=True)]
    options = {"batch": 8, "seed": 0, "objective": objective, "rows_at_once": rows_at_once, "confidence": 0.4}
    batches = ImageObjective(model, heads, sets, preprocess, runtime, experts=experts, expert_temperature=2, **options)
    theta, total = model.initial(), 0.0
    loss, gradient = batches(3)(theta)
    gradient, encoder = gradient.clone(), model.move_to(theta)
    for task, rows in batches.rows(3).items():
        logits = nn.functional.normalize(encoder(preprocess(sets[task][rows])), dim=-1) @ heads[task].T
        given = experts[task][rows]
        if objective == "expert-kl":
            p, q = (given / 2).softmax(-1), (logits / 2).softmax(-1)
            total = total + 4 * (p * (p / q).log()).sum(-1).mean()
        else:
            sure = given.softmax(-1).amax(-1) >= 0.4
            if objective == "filtered-labels":
                surer = logits.softmax(-1).amax(-1) > given.softmax(-1).amax(-1)
                sure = (logits.argmax(-1) == given.argmax(-1)) | ~surer
                assert 0 < sure.sum() < 8
            total = total - logits.log_softmax(-1)[torch.arange(8), given.argmax(-1)][sure].mean()
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(gradient, model.gradient, atol=1e-6, rtol=1e-4)
    assert set(batches.report()) == {"entropy", "marginal_entropy"}


def test_at_the_expert_itself_there_is_nothing_to_learn_from_it():
    model, heads, sets, preprocess, runtime = parts(classes=(4,))
    theta = model.initial()
    with torch.no_grad():
        features = nn.functional.normalize(model.move_to(theta)(preprocess(sets[0])), dim=-1)
    experts, options = [features @ heads[0].T], {"batch": 8, "seed": 0, "objective": "expert-kl"}
    loss, gradient = ImageObjective(model, heads, sets, preprocess, runtime, experts=experts, **options)(0)(theta)
    assert abs(loss) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_missing_or_foreign_predictions_are_refused():
    model, heads, sets, preprocess, runtime = parts()
    given, options = (model, heads, sets, preprocess, runtime), {"batch": 4, "seed": 0, "objective": "expert-kl"}
    with pytest.raises(ValueError, match=r"'expert-kl' needs the experts' predictions: .* \[40, 40\] rows"):
        ImageObjective(*given, **options)
    few = [torch.randn(39, 3), torch.randn(40, 20)]
    with pytest.raises(ValueError, match=r"one tensor per task, not \[39, 40\]"):
        ImageObjective(*given, experts=few, **options)
    for wrong in ({"expert_temperature": 0.0}, {"confidence": 1.5}):
        with pytest.raises(ValueError, match="expected a positive temperature, and a confidence from 0 to 1"):
            ImageObjective(*given, **options, experts=[torch.randn(40, 3), torch.randn(40, 20)], **wrong)


def rows(steps, **columns):
    return [{name: value(step) for name, value in columns.items()} for step in range(steps)]


def noise(step):
    return 0.01 * math.sin(1000.0 * step)


def test_a_healthy_run_has_no_signature():
    curve = rows(
        100, loss=lambda k: 2 - 0.01 * k + noise(k), lowest_density=lambda k: 0.4, entropy=lambda k: 0.5 - 0.002 * k,
        marginal_entropy=lambda k: 0.8 + noise(k), accuracy=lambda k: 0.7, averaging=lambda k: 0.6,
    )  # fmt: skip
    assert signatures(curve) == {}
    assert signatures([]) == {}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("mask collapsed", {"lowest_density": lambda k: 0.5 / (k + 1)}),
        ("worse than averaging", {"accuracy": lambda k: 0.5, "averaging": lambda k: 0.6}),
        (
            "few classes",
            {"entropy": lambda k: 0.5 - 0.004 * k, "marginal_entropy": lambda k: 0.8 - 0.006 * k + noise(k)},
        ),
        ("stuck", {"loss": lambda k: 2 + noise(k)}),
    ],
)
def test_each_signature_is_found_alone(name, columns):
    curve = rows(100, **({"loss": lambda k: 2 - 0.01 * k + noise(k)} | columns))
    found = signatures(curve)
    assert list(found) == [name]
    assert found[name].startswith(name)


def test_few_steps_are_not_judged_by_their_noise():
    assert signatures(rows(10, loss=lambda k: 2 + noise(k))) == {}
    assert signatures(rows(50, loss=lambda k: 2 + noise(k)), patience=100) == {}

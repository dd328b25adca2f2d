"""The language workspace on a T5 with random weights: both spaces, the methods, finished adapters from files."""

import pytest
import torch
from mini_t5 import save_mini_t5
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import T5ForConditionalGeneration

from lib import concrete, fusion
from lib.figures.language import projection
from lib.files.weights import say
from lib.fusion import METHODS
from lib.fusion.activations import read_grams
from lib.language.activations import diagonal_fisher, prompt_calls
from lib.language.generation import first_token_logits, generate, in_batches
from lib.language.tokens import model_inputs
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.device import Runtime
from lib.study.language import LanguageWorkspace
from lib.study.profiles import get_profile
from lib.study.recipes import merge_by_name
from lib.study.study import Study
from lib.vectors.fine_tuning import fine_tune
from lib.vectors.task_vectors import check_task_vectors

SIZES = {"train_texts": 40, "validation_texts": 10, "adaptation_texts": 20, "test_texts": 20, "curve_texts": 5}
BUDGET = {
    "fine_tuning_steps": 4, "fine_tuning_batch": 8, "lora_rank": 4, "lora_alpha": 8,
    "mask_steps": 3, "adaptation_steps": 3, "evaluate_every": 2, "adaptation_batch": 4,
}  # fmt: skip
TASKS = "sentiment entailment similarity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_mini_t5(tmp_path_factory.mktemp("t5"))


def draw(task, split, count, seed=0):
    """Rows of a few words; the label is whether 'not' is there."""
    rows = []
    for number in range(count):
        text = f"the {'dog' if number % 3 else 'cat'} runs {'not' if number % 2 else ''} {number % 10}"
        label = float(number % 6) if task == "similarity" else number % 2
        rows.append({"sentence": text, "sentence1": text, "sentence2": "a dog", "label": label})
    return rows


@pytest.fixture
def world(folder, tmp_path, monkeypatch):
    from worlds.text import drawn

    monkeypatch.setattr(drawn, "draw", draw)

    def make(**changed):
        profile = get_profile("tiny-t5", model=str(folder), tasks=TASKS, **(SIZES | BUDGET | changed))
        workspace = LanguageWorkspace(Study(profile, root=tmp_path))
        for task in workspace.tasks:  # here, not in processes of their own, where `draw` would be the real one
            workspace.fine_tune(task)
        return workspace

    return make


@pytest.mark.parametrize("space", ["weights", "adapter"])
def test_an_expert_in_either_space_answers_as_its_adapter_does(world, space):
    workspace = world(task_vector=space)
    check_task_vectors(workspace.theta0, workspace.task_vectors, workspace.layout)
    assert all(("lora_" in name) == (space == "adapter") for name in workspace.layout.names)
    for number, task in enumerate(workspace.tasks):
        prompts = workspace.inputs("test", task)
        with torch.no_grad():
            here = workspace.model.move_to(workspace.theta0 + workspace.task_vectors[number])
            found = logits(here, prompts)
            adapter = workspace.adapter_model.move_to(workspace.expert(task).theta)
            torch.testing.assert_close(found, logits(adapter, prompts), atol=1e-5, rtol=1e-5)


def logits(module, prompts):
    return first_token_logits(module.eval(), model_inputs(prompts, "cpu"), Runtime())


@pytest.mark.parametrize("space", ["weights", "adapter"])
@pytest.mark.parametrize("method", ["Task Arithmetic", "AdaMerging (layer-wise)", "Concrete AdaMerging (task-wise)"])
def test_the_methods_of_vision_run_as_they_are(world, space, method):
    workspace = world(task_vector=space)
    merged = merge_by_name(workspace, method, curves=True)
    point = workspace.theta0, workspace.task_vectors, workspace.layout
    if method == "Task Arithmetic":
        assert torch.equal(merged.theta, fusion.task_arithmetic(*point, scaling_factor=0.3))
    else:
        again = concrete.merge(*point[:2], merged.coefficients, point[2], merged.mask)
        assert torch.equal(merged.theta, again)
        assert list(merged.curve["accuracy"].notna()) == [False, True, True], "every second step, and the last"
    table = workspace.evaluate(merged.theta, method, "test", "adaptation")
    assert list(table["task"]) == TASKS.split() * 2
    assert table["accuracy"].between(-1, 1).all()
    assert table["invalid"].between(0, 1).all()
    assert (table["loss"] > 0).all()


def test_finished_adapters_are_read_from_files(world, tmp_path, monkeypatch):
    workspace = world()
    for task in workspace.tasks:
        workspace.save_adapter(task, tmp_path / "experts" / task)
    other = world(adapters=str(tmp_path / "experts" / "{task}"))
    torch.testing.assert_close(other.task_vectors, workspace.task_vectors, atol=1e-6, rtol=1e-5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(world(adapters="~/experts/{task}").task_vectors, other.task_vectors)
    in_adapters = [
        world(task_vector="adapter", **where) for where in ({}, {"adapters": str(tmp_path / "experts" / "{task}")})
    ]
    assert torch.equal(in_adapters[0].task_vectors, in_adapters[1].task_vectors)
    assert other.spaces == workspace.spaces == ("weights", "adapter")


def test_experts_of_several_kinds_are_merged_together(world, folder, tmp_path, capsys):
    """A full fine-tune, an adapter of other layers and one of DoRA: what is merged is what any of them changes."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data.mul_(1.01)
    model.save_pretrained(tmp_path / "experts" / "sentiment")
    for task, options in (("entailment", {"target_modules": ["k", "wo"]}), ("similarity", {"use_dora": True})):
        base = T5ForConditionalGeneration.from_pretrained(folder)
        adapter = get_peft_model(base, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, **options))
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.1)
        adapter.save_pretrained(tmp_path / "experts" / task)
    workspace = world(adapters=str(tmp_path / "experts" / "{task}"))
    assert workspace.task_vectors.shape[0] == 3
    say.cache_clear()
    capsys.readouterr()
    assert workspace.spaces == ("weights",), "notebook 20 leaves out what is about adapters' parameters"
    assert capsys.readouterr().out.startswith("what is about adapters' parameters is left out here: adapter ")
    assert {projection(name) for name in workspace.layout.names} >= {"other", "encoder q", "encoder wo", "cross v"}
    for method in METHODS.values():
        if not method.needs_data:
            merged = method.merge(workspace.theta0, workspace.task_vectors, workspace.layout)
            assert torch.isfinite(merged).all(), method.name
    again = PeftModel.from_pretrained(
        T5ForConditionalGeneration.from_pretrained(folder), tmp_path / "experts" / "similarity"
    )
    prompts = workspace.inputs("test", "similarity")
    found = logits(workspace.model.move_to(workspace.expert("similarity").theta).eval(), prompts)
    expected = logits(again.eval(), prompts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Cut(Exception):
    pass


def test_training_goes_on_where_it_was_cut(world, tmp_path):
    """With dropout, whose masks must follow from the step and not from what was drawn before."""
    workspace = world(lora_dropout=0.2)

    def train(last=None, checkpoint=None):
        loss_at = workspace.training_loss("sentiment")

        def until(module, step):
            if step == last:
                raise Cut
            return loss_at(module, step)

        given = workspace.adapter_model, workspace.adapter0, until, workspace.validation_accuracy("sentiment")
        return fine_tune(*given, task="sentiment", steps=6, learning_rate=1e-2, checkpoint=checkpoint)

    whole, path = train(), tmp_path / "checkpoint.pt"
    with pytest.raises(Cut):
        train(3, Checkpoint(path, every=0))
    again = train(checkpoint=Checkpoint(path, every=0))
    assert torch.equal(whole.theta, again.theta)
    assert again.curve["step"].iloc[-1] == 6


def test_batches_by_length_come_back_in_order(world):
    rows = torch.tensor([[5, 6, 7, 1], [5, 1, 0, 0], [8, 9, 1, 0]], dtype=torch.int32)
    seen = []

    def read(numbers):
        seen.extend(numbers.tolist())
        return [int(rows[number, 0]) for number in numbers]

    assert in_batches(rows, 2, read) == [5, 5, 8]
    assert seen == [1, 2, 0], "shortest first, so that a batch has little padding"
    workspace = world()
    prompts = workspace.inputs("test", "sentiment")
    module = workspace.model.move_to(workspace.theta0)
    given = workspace.tokenizer, prompts, workspace.study.runtime, 3
    assert generate(module, *given, batch=3) == generate(module, *given, batch=20)


def test_texts_have_no_corruptions(world):
    workspace = world()
    with pytest.raises(ValueError, match="corruption 'contrast' is one of images"):
        workspace.setting(corruption="contrast")


@pytest.mark.parametrize("space", ["weights", "adapter"])
def test_statistics_of_experts_are_those_of_their_definition(world, space):
    workspace = world(task_vector=space)
    theta = workspace.theta0 + workspace.task_vectors[0]
    prompts = workspace.inputs("train", "sentiment")[:6]
    model = workspace.model

    module, expected = model.move_to(theta), torch.zeros_like(theta)
    for row in prompts:
        p = logits(module, row[None]).softmax(-1)[0]
        for share in p:
            model.gradient.zero_()
            share.log().backward(retain_graph=True)
            expected += share.item() * model.gradient.square() / len(prompts)
    found = diagonal_fisher(model, theta, prompts, signs=400)
    inside = expected > expected.max() / 100
    torch.testing.assert_close(found[inside], expected[inside], rtol=0.5, atol=0)
    assert found.sum().item() == pytest.approx(expected.sum().item(), rel=0.1)

    seen = {}
    layer = workspace.layout.names[0]
    part = model.module.get_submodule(layer.removesuffix(".weight"))
    handle = part.register_forward_pre_hook(
        lambda _, inputs: seen.setdefault("rows", []).append(inputs[0].flatten(0, -2))
    )
    with torch.no_grad():
        for row in prompts:
            logits(model.move_to(theta), row[None])
    handle.remove()
    rows = torch.cat(seen["rows"]).double()
    grams = read_grams(model, theta, prompt_calls(prompts, "cpu"), workspace.study.runtime, layers=[layer])
    torch.testing.assert_close(grams[layer].double(), rows.T @ rows / len(rows), atol=1e-5, rtol=1e-4)
    assert set(workspace.grams(texts=5)) == set(workspace.layout.names)
    assert workspace.fisher(texts=3).shape == workspace.task_vectors.shape
    needs = workspace.calibration(texts=5)
    names = [name for group in needs["groups"] for name in group]
    assert sorted(names) == sorted(workspace.layout.names)
    assert {name.split(".layer.")[0] for name in needs["groups"][0]} == {names[0].split(".layer.")[0]}  # a block of T5
    moments = needs["moments_at"](0, theta, theta, needs["groups"][0])
    assert set(moments) == set(needs["groups"][0])
    assert all(torch.equal(*both) for both in moments.values())
    calibrated = fusion.featcal(workspace.theta0, workspace.task_vectors, workspace.layout, **needs)
    assert torch.isfinite(calibrated).all()


@pytest.mark.parametrize("whole", [False, True])
def test_experts_answers_are_teachers(world, whole):
    workspace = world()
    setting = workspace.setting(objective="expert-kl", whole_answers=whole)
    objective = workspace.objective(setting)
    assert (objective.answers is not None) == whole
    assert [own.dim() for own in objective.experts] == [3 if whole else 2] * 3
    merged = merge_by_name(workspace, "AdaMerging (layer-wise)", setting, adaptation_steps=20, adaptation_rate=0.03)
    assert merged.curve["loss"].tail(5).mean() < merged.curve["loss"].head(5).mean()

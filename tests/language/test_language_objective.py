"""The entropy of the first decoded token: against its definition, whatever the padding and the grouping."""

import inspect

import pytest
import torch
from mini_t5 import mini_t5

from lib.adaptation.objectives import PredictionObjective
from lib.language.lora import attach
from lib.language.objective import TokenObjective, expert_answers
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel


def prompts(counts=(20, 20), lengths=(6, 9), seed=0):
    torch.manual_seed(seed)
    found = []
    for count, length in zip(counts, lengths, strict=True):
        rows = torch.randint(3, 40, (count, length), dtype=torch.int32)
        for number, row in enumerate(rows):
            end = 2 + number % (length - 1)
            row[end - 1], row[end:] = 1, 0
        found.append(rows)
    return found


def flat():
    return FlatModel(mini_t5())


def objective(model, rows, **options):
    options = {"batch": 8, "seed": 0} | options
    return TokenObjective(model, rows, [3, 2], Runtime(), **options)


@pytest.mark.parametrize("rows_at_once", [0, 8])
@pytest.mark.parametrize("name", ["entropy", "information-maximisation"])
def test_loss_and_gradient_are_those_of_the_definition(name, rows_at_once):
    model, rows = flat(), prompts()
    theta = model.initial()
    batches = objective(model, rows, objective=name, diversity=0.5, rows_at_once=rows_at_once)
    loss, gradient = batches(2)(theta)
    gradient = gradient.clone()
    total = 0.0
    for task, chosen in batches.rows(2).items():
        logits = []
        for row in rows[task][chosen]:  # one by one and without padding
            ids = row[row != 0].long()[None]
            module = model.module
            logits.append(module(input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0])
        p = torch.stack(logits).softmax(-1)
        mean = p.mean(0)
        total = total - (p * p.log()).sum(-1).mean()
        if name != "entropy":
            total = total + 0.5 * (mean * mean.log()).sum()
    model.move_to(theta)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(gradient, model.gradient, atol=1e-6, rtol=1e-3)


def test_tasks_of_like_lengths_go_through_the_model_together():
    """On a CPU: few calls, and no prompt is padded by more than half its length."""
    lengths = (18, 34, 35, 46, 22, 120)
    model, rows = flat(), prompts([20] * len(lengths), lengths)
    batches = TokenObjective(model, rows, [2] * len(lengths), Runtime(), batch=8, seed=0)
    groups = [sorted(lengths[task] for task in group) for group in batches.groups(range(len(lengths)))]
    assert groups == [[120], [34, 35, 46], [18, 22]]
    assert batches.rows_together() == 24
    assert [len(inputs["input_ids"]) for inputs in batches(0).inputs] == [8, 24, 16]
    one_each = TokenObjective(model, rows, [2] * len(lengths), Runtime(), batch=8, seed=0, rows_at_once=8)
    assert len(one_each.groups(range(len(lengths)))) == len(lengths)


def other_point(model):
    torch.manual_seed(1)
    return model.initial() + 0.3 * torch.randn(model.layout.length) * model.layout.inside()


def test_the_expert_s_first_tokens_are_those_of_its_greedy_answers():
    model, rows = flat(), prompts()[1]
    theta = other_point(model)
    answers, logits = expert_answers(model, theta, rows, Runtime())
    assert answers.shape == (20, 1)
    assert torch.equal(logits[:, 0].argmax(-1), answers[:, 0].long())
    model.move_to(theta)
    for row, wanted in zip(rows, logits[:, 0], strict=True):
        ids = row[row != 0].long()[None]
        start = torch.zeros(1, 1, dtype=torch.long)
        found = model.module(input_ids=ids, decoder_input_ids=start).logits[0, 0]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows_at_once", [0, 8])
def test_whole_answers_compare_every_token_after_the_expert_s_own_ones(rows_at_once):
    model, rows = flat(), prompts()
    theta, merged = other_point(model), model.initial()
    answers, experts = zip(*(expert_answers(model, theta, own, Runtime(), 4) for own in rows), strict=True)
    answers = [own.clone() for own in answers]
    answers[0][::2, 2:] = -100  # answers of two tokens
    options = {"objective": "expert-kl", "experts": experts, "answers": answers, "rows_at_once": rows_at_once}
    batches, total = objective(model, rows, **options), 0.0
    loss, gradient = batches(1)(merged)
    gradient = gradient.clone()
    assert gradient.abs().sum() > 0
    for task, chosen in batches.rows(1).items():
        distances = []
        for row in chosen:
            answer = answers[task][row]
            answer = answer[answer != -100].long()
            ids, start = rows[task][row], torch.cat([torch.zeros(1, dtype=torch.long), answer[:-1]])
            logits = model.module(input_ids=ids[ids != 0].long()[None], decoder_input_ids=start[None]).logits[0]
            p, q = experts[task][row][: len(answer)].softmax(-1), logits.softmax(-1)
            distances.append((p * (p / q).log()).sum(-1))
        total = total + torch.cat(distances).mean()
    model.move_to(merged)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-4)
    torch.testing.assert_close(gradient, model.gradient, atol=1e-6, rtol=1e-3)


def test_the_first_token_leaves_the_decoder_s_queries_alone_and_whole_answers_do_not():
    """With one token to attend to, the softmax of self-attention is 1 whatever the query."""
    model, rows = flat(), prompts()
    answers, experts = zip(*(expert_answers(model, other_point(model), own, Runtime(), 4) for own in rows), strict=True)
    query = "decoder.block.0.layer.0.SelfAttention.q.weight"
    first = objective(model, rows, objective="expert-kl", experts=[own[:, 0] for own in experts])
    whole = objective(model, rows, objective="expert-kl", experts=experts, answers=answers)
    found = [
        model.layout.views(batches(0)(model.initial())[1].clone())[query].abs().max() for batches in (first, whole)
    ]
    assert found[0] < 1e-9 < 1e-5 < found[1]


def test_only_the_named_parameters_are_moved_and_have_a_gradient():
    module = mini_t5().requires_grad_(False)
    names = [name for name, _ in module.named_parameters() if name.endswith("q.weight")]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    model = FlatModel(module, names=names)
    assert list(model.layout.names) == names
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if name not in names}
    loss, gradient = objective(model, prompts())(0)(model.initial() * 1.5)
    assert gradient.abs().sum() > 0
    assert all(torch.equal(dict(module.named_parameters())[name], tensor) for name, tensor in frozen.items())
    assert loss > 0


def test_no_dropout_while_adapting_whatever_ran_before():
    adapter = attach(mini_t5(), rank=4, alpha=8, targets=["q", "v"], dropout=0.5)
    names = [name for name, parameter in adapter.named_parameters() if parameter.requires_grad]
    model = FlatModel(adapter, names=names)
    theta = model.initial() + 0.1 * torch.randn(model.layout.length)
    batches = objective(model, prompts())
    model.module.train()  # as fine-tuning leaves it
    losses = {batches(0)(theta)[0].item() for _ in range(3)}
    model.module.eval()
    assert losses == {batches(0)(theta)[0].item()}


def test_there_is_no_way_in_for_targets_and_wrong_prompts_are_refused():
    names = inspect.signature(TokenObjective).parameters
    assert not [name for name in names if "target" in name or "label" in name]
    options = inspect.signature(PredictionObjective).parameters
    assert not [name for name in options if "target" in name or "label" in name]
    with pytest.raises(ValueError, match=r"prompts of task 1 are torch.int64 \[20, 9\], expected int32"):
        objective(flat(), [prompts()[0], prompts()[1].long()])
    with pytest.raises(ValueError, match="unknown objective 'x'"):
        objective(flat(), prompts(), objective="x")

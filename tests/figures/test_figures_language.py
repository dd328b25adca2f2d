"""Figures of the language notebooks draw what the tables say, from one seed and from three."""

import pandas as pd
import pytest

from lib.figures import language

TASKS = ("sentiment", "similarity")


def spaces_table(seeds):
    rows = []
    for seed in range(seeds):
        for space, more in (("weights", 0.0), ("adapter", 0.1)):
            for a, b, cosine in (("a", "b", 0.2), ("a", "c", 0.4)):
                rows.append(
                    {"space": space, "quantity": "cosine", "task": a, "other": b, "value": cosine + more, "seed": seed}
                )
            for factor in (0.1, 0.3, 1.0):
                for task in TASKS:
                    value = 0.5 + factor / 10 - more + 0.02 * seed
                    scored = {"scaling_factor": factor, "task": task, "value": value, "seed": seed}
                    rows.append({"space": space, "quantity": "accuracy", **scored})
            rows.append({"space": space, "quantity": "relative length", "task": "a", "value": 7.0, "seed": seed})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seeds", [1, 3])
def test_adapter_spaces_compare_pairs_of_tasks_and_scores_over_factors(seeds):
    left, right = language.adapter_spaces(spaces_table(seeds)).axes
    points = left.lines[0]
    assert list(points.get_xdata()) == pytest.approx([0.2, 0.4]), "one point per pair, whatever the number of seeds"
    assert list(points.get_ydata()) == pytest.approx([0.3, 0.5])
    weights, adapter = right.lines
    assert list(weights.get_xdata()) == [0.1, 0.3, 1.0]
    assert weights.get_ydata()[0] == pytest.approx(51 + (seeds - 1))
    assert weights.get_ydata() - adapter.get_ydata() == pytest.approx([10, 10, 10])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["weights, B A", "adapter, A and B"]
    assert len(right.collections) == (2 if seeds > 1 else 0), "a band over seeds for each space"
    assert f"{seeds} seed" in right.get_title()


@pytest.mark.parametrize("seeds", [1, 3])
def test_first_token_shows_each_model_on_each_task(seeds):
    table = pd.DataFrame(
        {"model": model, "task": task, "seed": seed, "entropy": 3.0 - number + seed, "right": 0.2 * (number + place)}
        for number, model in enumerate(language.MODELS)
        for place, task in enumerate(TASKS)
        for seed in range(seeds)
    )
    sure, right = language.first_token(table).axes
    assert [container.get_label() for container in right.containers] == list(language.MODELS)
    for number, (entropy, share) in enumerate(zip(sure.containers, right.containers, strict=True)):
        assert list(entropy.lines[0].get_xdata()) == pytest.approx([3 - number + (seeds - 1) / 2] * 2)
        assert list(share.lines[0].get_xdata()) == pytest.approx([20 * number, 20 * (number + 1)])
        heights = entropy.lines[0].get_ydata()
        assert [round(-height) for height in heights] == [0, 1], "the first task on top"
    assert [text.get_text() for text in sure.get_yticklabels()] == list(TASKS)
    spread = sure.containers[0].lines[2][0].get_segments()[0]
    assert spread[1][0] - spread[0][0] == pytest.approx(2.0 if seeds > 1 else 0), "one standard deviation each way"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder q"),
        ("decoder.block.0.layer.1.EncDecAttention.v.weight", "cross v"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "encoder wi_0"),
        ("base_model.model.decoder.block.0.layer.0.SelfAttention.v.lora_B.default.weight", "decoder v B"),
    ],
)
def test_projections_are_named_by_attention_and_factor(name, said):
    assert language.projection(name) == said


def test_layers_of_no_block_have_one_name():
    assert language.projection("shared.weight") == language.projection("encoder.final_layer_norm.weight") == "other"

"""Fine-tuning moves what is to be fine-tuned and nothing else."""

import pytest
import torch
from torch import nn

from lib.vectors.fine_tuning import fine_tune
from lib.vectors.flat_model import FlatModel


def test_frozen_parameters_stay_where_they_are_to_the_bit():
    """AdamW's weight decay needs no gradient to move what it is given."""
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(16, 4)
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    model = FlatModel(module)
    theta0 = model.initial()
    expert = fine_tune(
        model, theta0, lambda encoder, _: encoder(inputs).square().mean(), lambda _: 0.0,
        task="x", steps=20, learning_rate=0.1,
    )  # fmt: skip
    start, end = model.layout.views(theta0), model.layout.views(expert.theta)
    assert set(start) == {"0.bias", "1.weight", "1.bias"}, "frozen ones are no part of the vector"
    assert not any(torch.equal(start[name], end[name]) for name in start)
    assert torch.equal(module[0].weight, before)


def test_a_frozen_parameter_cannot_be_named_as_part_of_the_vector():
    module = nn.Linear(4, 8).requires_grad_(False)
    with pytest.raises(ValueError, match=r"parameter 'bias' is frozen: call requires_grad_\(\)"):
        FlatModel(module, names=["bias"])

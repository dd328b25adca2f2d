"""What a prediction on unlabelled inputs is asked to be: sure, sure and diverse, or what the task's expert says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (nats) of each row's class probabilities: [N, C] -> [N]."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def entropy_of_mean(mean: Tensor) -> Tensor:
    """Shannon entropy (nats) of a mean prediction, class probabilities [C] -> []."""
    return -torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()


def expert_kl(logits: Tensor, expert: Tensor, temperature: float = 1.0) -> Tensor:
    """How far predictions are from the expert's: mean over rows of KL(expert || merged) in nats.

    Knowledge distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531) with the expert as the teacher: both
    predictions are softened by the temperature, and its square keeps the size of the gradient.

    Args:
        logits: of the merged model [N, C].
        expert: logits of the expert on the same rows [N, C].
        temperature: 1 compares the predictions as they are.

    Returns:
        [].
    """
    merged, wanted = (log_softmax(own / temperature, -1) for own in (logits, expert))
    return temperature**2 * kl_div(merged, wanted, reduction="batchmean", log_target=True)


def expert_labels(logits: Tensor, expert: Tensor, confidence: float = 0.0) -> Tensor:
    """Cross-entropy (nats) on the class that the expert predicts, mean over the rows of which it is sure enough.

    Args:
        logits: of the merged model [N, C].
        expert: logits of the expert on the same rows [N, C].
        confidence: rows whose largest expert probability is below it do not count; 0 takes all.

    Returns:
        []; 0 where no row counts.
    """
    sure, labels = expert.softmax(-1).max(-1)
    return _mean_over(logits, labels, sure >= confidence)


def filtered_labels(logits: Tensor, expert: Tensor) -> Tensor:
    """The same on the rows on which both agree, or the expert is at least as sure as the merged model.

    The filter of SyMerge (https://arxiv.org/abs/2412.19098), as in its authors' code: a label that contradicts a surer
    merged model does not count. Which rows these are changes with the merged model; the gradient takes it as given.

    Args:
        logits: of the merged model [N, C].
        expert: logits of the expert on the same rows [N, C].

    Returns:
        [], nats; 0 where no row counts.
    """
    (sure, labels), (own, said) = (given.detach().softmax(-1).max(-1) for given in (expert, logits))
    return _mean_over(logits, labels, (said == labels) | (sure >= own))


def _mean_over(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy, mean over the rows that count, bool [N]."""
    counted = counted.to(logits)  # a weight, not a selection: a GPU need not say how many they are
    losses = cross_entropy(logits, labels, reduction="none")
    return (losses * counted).sum() / counted.sum().clamp(min=1)

"""The frozen classification heads of the tasks, from text or from pre-trained features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.runtime.device import Runtime
from lib.vision.models import Backbone, Clip
from lib.vision.scoring import image_features


@torch.no_grad()
def text_head(clip: Clip, class_names: Sequence[str], templates: Sequence[str], scale: float = 0.0) -> Tensor:
    """The zero-shot head of a task: normalised mean text embedding of each class's prompts, times a logit scale.

    Radford et al., https://arxiv.org/abs/2103.00020, section 3.1.4 (prompt ensembling).

    Args:
        clip: the model.
        class_names: C names.
        templates: prompts with one `{}`.
        scale: factor between cosine similarity and logit; 0 takes the model's own.

    Returns:
        [C, width]; logits are `normalised features @ head.T`.
    """
    rows = []
    for name in class_names:
        tokens = clip.tokenizer([template.format(name) for template in templates])
        embeddings = clip.model.encode_text(tokens.to(clip.model.logit_scale.device), normalize=True)
        rows.append(torch.nn.functional.normalize(embeddings.mean(0), dim=0))
    return torch.stack(rows) * (scale or clip.logit_scale)


def class_mean_head(features: Tensor, labels: Tensor, classes: int, logit_scale: float) -> Tensor:
    """A head without text: the normalised mean pre-trained feature of each class's training images.

    Used, frozen like a text head, where the prompts of a small CLIP say nothing about a data set (profile
    `tiny-real`). Features are centred neither here nor at test time, so the head stays a plain linear map.

    Args:
        features: normalised features of the training images [N, width].
        labels: int64 [N].
        classes: C.
        logit_scale: factor between cosine similarity and logit.

    Returns:
        [C, width].

    Raises:
        ValueError: if a class has no image.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no training image to take a mean of")
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels.cpu(), features.float().cpu())
    return torch.nn.functional.normalize(sums, dim=-1) * logit_scale


def minimise(loss_at: Callable[[], Tensor], *parameters: Tensor, **options: object) -> None:
    """Move parameters, in place, to where a smooth loss is least: L-BFGS, at most 100 iterations.

    Args:
        loss_at: the loss at the parameters as they are.
        parameters: leaves that require gradients.
        options: of `torch.optim.LBFGS`.
    """
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, **options)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_at()
        loss.backward()
        return loss

    optimiser.step(closure)


def linear_probe_head(
    features: Tensor, labels: Tensor, classes: int, logit_scale: float, penalty: float = 1e-4
) -> Tensor:
    """A head without text: the directions of a logistic regression on the pre-trained features of training images.

    Class means of a backbone without text lie close together, so that even an expert's logits stay close; directions
    that were fitted to tell the classes apart do not. Each is brought to length 1, so that one temperature holds for
    all tasks, whatever the regression made of its own.

    Args:
        features: normalised features of the training images [N, width].
        labels: int64 [N].
        classes: C.
        logit_scale: factor between cosine similarity and logit.
        penalty: weight of half the squared norm of the regression's weights (L-BFGS, no bias).

    Returns:
        [C, width].

    Raises:
        ValueError: if a class has no image.
    """
    directions = 20 * class_mean_head(features, labels, classes, 1.0)  # near the length that the fit will have
    directions.requires_grad_(True)
    features, labels = features.float().cpu(), labels.cpu()

    def loss_at() -> Tensor:
        fit = torch.nn.functional.cross_entropy(features @ directions.T, labels)
        return fit + penalty / 2 * directions.square().sum()

    minimise(loss_at, directions, line_search_fn="strong_wolfe")
    return torch.nn.functional.normalize(directions.detach(), dim=-1) * logit_scale


HEADS = {"class-mean": class_mean_head, "linear-probe": linear_probe_head}


def feature_head(
    kind: str, backbone: Backbone, images: Tensor, labels: Tensor, classes: int, logit_scale: float, runtime: Runtime
) -> Tensor:
    """A head without text [C, width], from features of training images at the backbone's present parameters.

    `kind` is a name from `HEADS`; images are uint8 [N, 3, H, W], labels int64 [N], the backbone ready for evaluation.
    """
    features = image_features(backbone.encoder, images, backbone.preprocess, runtime)
    return HEADS[kind](features, labels, classes, logit_scale)

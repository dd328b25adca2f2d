"""Scores as tidy tables: one row per method, task and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.models import Preprocess, image_features

COLUMNS = ("method", "task", "split", "seed", "accuracy", "loss", "n")


def score(features: Tensor, head: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) of a head on normalised features.

    Args:
        features: [N, width].
        head: [C, width].
        labels: int64 [N].
    """
    logits = features @ head.cpu().T
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        "n": len(labels),
    }


def evaluate(
    theta: Tensor,
    model: FlatModel,
    heads: Mapping[str, Tensor],
    splits: Mapping[str, tuple[Tensor, Tensor]],
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    method: str,
    split: str,
    seed: int,
) -> pd.DataFrame:
    """Score one point of R^D on every task.

    Args:
        theta: parameters of the image encoder [D].
        model: the encoder.
        heads: task -> head [C, width].
        splits: task -> (uint8 images [N, 3, H, W], int64 labels [N]).
        preprocess: pixels to input.
        runtime: device and precision.
        method: value of the column of that name.
        split: likewise.
        seed: likewise.

    Returns:
        A row per task with the columns `COLUMNS`; accuracy in 0..1, loss in nats.
    """
    encoder = model.move_to(theta)
    rows = []
    for task, (images, labels) in splits.items():
        features = image_features(encoder, images, preprocess, runtime)
        scores = score(features, heads[task], labels)
        rows.append({"method": method, "task": task, "split": split, "seed": seed, **scores})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int, penalty: float = 1e-4
) -> dict[str, float]:
    """Logistic regression on frozen normalised features (L-BFGS), scored like `score`.

    Args:
        train: features to fit on [N, width].
        train_labels: int64 [N].
        test: features to score on [M, width].
        test_labels: int64 [M].
        classes: C.
        penalty: weight of the squared norm of the weights.
    """
    weight = torch.zeros(train.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    scale = 20.0  # features have length 1: without it the weights would have to grow far against the penalty
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.cross_entropy(scale * train @ weight + bias, train_labels)
        loss = fit + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        logits = scale * test @ weight + bias
    return {
        "accuracy": (logits.argmax(-1) == test_labels).double().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, test_labels).item(),
        "n": len(test_labels),
    }


def methods_by_tasks(table: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Percentages, one row per method (in order of appearance), one column per task and their mean, one decimal."""
    chosen = table[table["split"] == split]
    wide = chosen.pivot_table(index="method", columns="task", values="accuracy", sort=False) * 100
    return wide.assign(mean=wide.mean(axis=1)).round(1)


def gather(tables: Mapping[int, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Put the tables of several seeds into one, with the methods named as in the results.

    Args:
        tables: seed -> name of a saved table -> the table: "cross_evaluation", "fusion", "concrete_task_arithmetic",
            "adaptation"; those that are not there are left out.

    Returns:
        Rows (method, task, split, seed, accuracy, loss, n); rows that are no method of their own are left out.
    """
    parts = []
    for by_name in tables.values():
        cross = by_name["cross_evaluation"]
        rows = cross[cross["method"] == "pre-trained"].assign(method="Zero-shot")
        for name in ("fusion", "concrete_task_arithmetic", "adaptation"):
            table = by_name.get(name, cross[:0])
            known = table["method"].isin(rows["method"]) | table["method"].str.endswith("(control)")
            rows = pd.concat([rows, table[~known]])
        parts += [rows, cross[cross["method"] == cross["task"]].assign(method="Experts")]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def main_table(results: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks: held-out percentages averaged over seeds, with three summary columns.

    Returns:
        One row per method in order of appearance; a column per task, `mean` over tasks, `std` of that mean over seeds
        (NaN with one seed), and `adapted on`, the mean on the adaptation split.
    """
    wide = methods_by_tasks(results)
    by_seed = results[results["split"] == "test"].groupby(["method", "seed"])["accuracy"].mean() * 100
    seen = results[results["split"] == "adaptation"].groupby("method")["accuracy"].mean() * 100
    return wide.assign(std=by_seed.groupby("method").std().round(2), **{"adapted on": seen.round(1)})


def paired_difference(results: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Difference of two methods' mean held-out accuracy within each seed, in points: mean, std, number of seeds."""
    by_seed = results[results["split"] == "test"].groupby(["method", "seed"])["accuracy"].mean().unstack() * 100
    rows = {}
    for better, base in pairs:
        difference = by_seed.loc[better] - by_seed.loc[base]
        rows[f"{better} - {base}"] = {
            "mean difference": difference.mean(),
            "std over seeds": difference.std(),
            "seeds": len(difference),
        }
    return pd.DataFrame(rows).T.round(2).astype({"seeds": int})

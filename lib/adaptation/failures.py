"""Failure signatures of test-time adaptation, read off the curve while it runs and said in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

COLLAPSED = 0.02  # mean of the mask over a layer below which hardly anything of that layer is merged
FEWER = 0.85  # fall of the mean prediction's entropy, as a share of its start, that ordinary batches do not show
LOWEST = 0.3  # mean prediction's entropy, as a share of its maximum, that no useful model of even classes has
LEAST_STEPS = 20  # before that, noise looks like anything


def signatures(curve: Sequence[Mapping[str, float]], patience: int = LEAST_STEPS) -> dict[str, str]:
    """What goes wrong, if anything, in a run so far.

    Args:
        curve: one row per step, as `lib.adaptation.adapt` keeps it: loss, and where known `lowest_density` (smallest
            mean of the mask over a layer), `entropy` and `marginal_entropy` (of single and of mean predictions, as
            shares of their largest possible value), `accuracy` and `averaging` (of the merged model and of plain
            weight averaging on the same images).
        patience: number of steps from which on a loss that does not fall counts as stuck.

    Returns:
        Name of a signature -> a sentence that says what is seen and what to try.
    """
    found: dict[str, str] = {}
    if not curve:
        return found

    def column(name: str) -> np.ndarray:
        values = np.array([row.get(name, np.nan) for row in curve], float)
        return values[np.isfinite(values)]

    density = column("lowest_density")
    if len(density) and density[-1] < COLLAPSED:
        found["mask collapsed"] = (
            f"mask collapsed: in at least one layer its mean is only {density[-1]:.3f}, so that layer stays "
            "pre-trained or hangs on a few entries; lower the mask's learning rate"
        )
    accuracy, averaging = column("accuracy"), column("averaging")
    if len(accuracy) and len(averaging) and accuracy[-1] < averaging[-1]:
        found["worse than averaging"] = (
            f"worse than averaging: {100 * accuracy[-1]:.1f} % against {100 * averaging[-1]:.1f} % of plain weight "
            "averaging; the objective does not lead to accuracy here"
        )
    if len(curve) < LEAST_STEPS:
        return found
    part = max(5, len(curve) // 10)

    def ends(name: str) -> tuple[float, float, float]:
        values = column(name)
        if len(values) < 2 * part:
            return np.nan, np.nan, np.nan
        noise = np.hypot(values[:part].std(ddof=1), values[-part:].std(ddof=1)) / part**0.5
        return values[:part].mean(), values[-part:].mean(), noise

    entropy, marginal, loss = ends("entropy"), ends("marginal_entropy"), ends("loss")
    falls = marginal[1] < FEWER * marginal[0] and marginal[0] - marginal[1] > 2 * marginal[2]
    if marginal[1] < LOWEST or (entropy[1] < entropy[0] and falls):
        found["few classes"] = (
            f"few classes: the entropy of a task's mean prediction goes from {marginal[0]:.2f} to {marginal[1]:.2f} of "
            "its maximum: predictions gather on few classes, which a low entropy cannot tell from good ones; try "
            "objective='information-maximisation', a smaller learning rate, or a better start"
        )
    if len(curve) >= patience and loss[0] - loss[1] < 2 * loss[2]:
        found["stuck"] = (
            f"stuck: the loss has not fallen beyond twice its noise in {len(curve)} steps "
            f"({loss[0]:.3f} to {loss[1]:.3f}); raise the learning rate, or there is nothing to learn"
        )
    return found

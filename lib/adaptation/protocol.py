"""The choices that the paper leaves open, or on which it and its two published codes differ, under one name each."""

from __future__ import annotations

from dataclasses import dataclass

from lib.concrete.mask import FINAL_MASKS

CHOICES = {
    "outer_sample": ("shared", "fresh"),
    "inner_gradient_at": ("initial", "previous"),
    "inner_optimiser": ("adam", "sgd"),
    "moments": ("kept", "reset"),
    "final_mask": FINAL_MASKS,
    "hypergradient": ("first-order", "exact"),
}


@dataclass(frozen=True)
class Protocol:
    """How the loop of `lib.adaptation` does what the paper (https://arxiv.org/abs/2312.06173, Algorithm 1) describes.

    The defaults are the paper's. The two published codes are the authors' scripts and FusionBench; notebook 12 changes
    these choices one at a time.

    Attributes:
        clamp: merge at coefficients clamped to [0, 1], as one of the codes does; outside, their gradient is 0 (that of
            the inner level is never outside: its step starts from the initial values).
        tie: all tasks share one coefficient (per layer).
        l2: weight of the squared distance of the coefficients from their initial value, added to the loss of adaptation
            (an inner step starts there, where it has no gradient).
        outer_sample: the upper level merges with the "shared" mask sample of the inner level, or draws a "fresh" one.
        inner_gradient_at: the inner gradient is taken at the "initial" coefficients (Algorithm 1), or at the "previous"
            step's, as in both codes: they reset the coefficients after the weights were merged.
        inner_optimiser: the inner step is one of "adam" (the paper's experiments) or of "sgd" (its Algorithm 1). Where
            there is one level only, as in AdaMerging and in adaptation inside the final mask, Adam stays.
        moments: the inner Adam's moments are "kept" between steps (both codes), or "reset" with the coefficients.
        initial_logits: the mask's logits at the start.
        rescale: divide the mask by its mean in each layer.
        final_mask: the mask that stays is one more "sample", a "binary" one (drawn too: 1 with probability
            sigmoid(x)), the "expected" one, sigmoid(x), or the "hard" one, x > 0.
        hypergradient: the upper level treats the inner step as a constant ("first-order"), or differentiates through
            it ("exact": one product with the Hessian more per step, for small models).
    """

    clamp: bool = False
    tie: bool = False
    l2: float = 0.0
    outer_sample: str = "shared"
    inner_gradient_at: str = "initial"
    inner_optimiser: str = "adam"
    moments: str = "kept"
    initial_logits: float = 0.0
    rescale: bool = True
    final_mask: str = "sample"
    hypergradient: str = "first-order"

    def __post_init__(self) -> None:
        """Check every choice.

        Raises:
            ValueError: naming the choice and what it may be.
        """
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, known))}")
        if not self.l2 >= 0:
            raise ValueError(f"l2={self.l2}, expected 0 or a positive weight")
        if self.hypergradient == "exact" and (self.outer_sample, self.inner_gradient_at) != ("shared", "initial"):
            raise ValueError("hypergradient='exact' needs outer_sample='shared' and inner_gradient_at='initial'")

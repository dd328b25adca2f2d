"""Test-time adaptation: objectives on unlabelled inputs, and the one loop that is Algorithm 1 of the paper."""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "coefficients": "Coefficients",
        "failures": "signatures",
        "loop": "Adapted adapt",
        "losses": "entropy expert_kl expert_labels",
        "objectives": "OBJECTIVES PredictionObjective",
        "protocol": "CHOICES Protocol",
    },
)

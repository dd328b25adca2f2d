"""Test-time adaptation: objectives on unlabelled inputs, and the one loop that is Algorithm 1 of the paper."""

from lib.adaptation.coefficients import Coefficients
from lib.adaptation.loop import Adapted, adapt
from lib.adaptation.objectives import OBJECTIVES, PredictionObjective, entropy
from lib.adaptation.protocol import CHOICES, Protocol
from lib.adaptation.signatures import signatures

__all__ = [
    "CHOICES",
    "OBJECTIVES",
    "Adapted",
    "Coefficients",
    "PredictionObjective",
    "Protocol",
    "adapt",
    "entropy",
    "signatures",
]

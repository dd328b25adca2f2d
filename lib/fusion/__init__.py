"""Merging task vectors without training: pure functions from tensors to a tensor.

Every method has the signature `method(theta0: [D], task_vectors: [T, D], layout, *, hyperparameters) -> [D]` and
carries its paper through the decorator `fusion_method`, from which the notebooks build their table of methods.
Methods that need data take statistics of it as a tensor; they never see a model or an image.
"""

from lib.fusion.arithmetic import dare, task_arithmetic, ties_merging, weight_averaging
from lib.fusion.calibration import featcal
from lib.fusion.methods import METHODS, FusionMethod, fusion_method
from lib.fusion.spectral import iso_c, iso_cts, tsv_m, wudi_merging
from lib.fusion.statistical import fisher_merging, regmean, regmean_plus_plus

__all__ = [
    "METHODS",
    "FusionMethod",
    "dare",
    "featcal",
    "fisher_merging",
    "fusion_method",
    "iso_c",
    "iso_cts",
    "regmean",
    "regmean_plus_plus",
    "task_arithmetic",
    "ties_merging",
    "tsv_m",
    "weight_averaging",
    "wudi_merging",
]

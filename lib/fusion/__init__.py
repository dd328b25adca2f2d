"""Merging task vectors without training: pure functions from tensors to a tensor.

Every method has the signature `method(theta0: [D], task_vectors: [T, D], layout, *, hyperparameters) -> [D]` and
carries its paper through the decorator `fusion_method`, from which the notebooks build their table of methods.
Methods that need data take statistics of it as a tensor; they never see a model or an image. Those that keep something
of each task return a point per task, [T, D], and stand in a table of their own, `PER_TASK`. `BASES` splits what a
method merges into one part per task, for methods that learn coefficients or a mask on it.
"""

from lib.fusion.arithmetic import dare, task_arithmetic, ties_merging, weight_averaging
from lib.fusion.bases import BASES, CONTROLS, Base
from lib.fusion.calibration import featcal
from lib.fusion.masking import consensus_task_arithmetic, model_breadcrumbs, model_stock
from lib.fusion.methods import METHODS, PER_TASK, FusionMethod, fusion_method
from lib.fusion.per_task import emr_merging, tall_masks
from lib.fusion.spectral import iso_c, iso_cts, tsv_m, wudi_merging
from lib.fusion.statistical import fisher_merging, regmean, regmean_plus_plus

__all__ = [
    "BASES",
    "CONTROLS",
    "METHODS",
    "PER_TASK",
    "Base",
    "FusionMethod",
    "consensus_task_arithmetic",
    "dare",
    "emr_merging",
    "featcal",
    "fisher_merging",
    "fusion_method",
    "iso_c",
    "iso_cts",
    "model_breadcrumbs",
    "model_stock",
    "regmean",
    "regmean_plus_plus",
    "tall_masks",
    "task_arithmetic",
    "ties_merging",
    "tsv_m",
    "weight_averaging",
    "wudi_merging",
]

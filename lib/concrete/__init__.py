"""The Concrete mask: samples, rescaling, merging inside it, its closed-form gradient, and the fast step that learns it.

`mask` is the plain, readable reference; `merge_step` does the same in few passes over memory.
"""

from lib.concrete.hypergradient import hessian_product, second_order
from lib.concrete.mask import (
    coefficient_gradient,
    expected_mask,
    final_mask,
    layer_means,
    logit_gradient,
    merge,
    merge_sum,
    rescale,
    sample_mask,
    shuffle_within_layers,
    weighted_sum,
)
from lib.concrete.merge_step import MergeStep
from lib.concrete.noise import uniform

__all__ = [
    "MergeStep",
    "coefficient_gradient",
    "expected_mask",
    "final_mask",
    "hessian_product",
    "layer_means",
    "logit_gradient",
    "merge",
    "merge_sum",
    "rescale",
    "sample_mask",
    "second_order",
    "shuffle_within_layers",
    "uniform",
    "weighted_sum",
]

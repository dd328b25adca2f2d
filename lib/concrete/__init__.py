"""The Concrete mask: samples, rescaling, merging inside it, its closed-form gradient, and the fast step that learns it.

`mask` is the plain, readable reference; `merge_step` does the same in few passes over memory.
"""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "hypergradient": "hessian_product second_order",
        "mask": "coefficient_gradient expected_mask final_mask layer_means logit_gradient merge merge_sum rescale "
        "sample_mask shuffle_within_layers weighted_sum",
        "merge_step": "MergeStep",
        "noise": "uniform",
    },
)

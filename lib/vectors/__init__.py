"""A model is a point in R^D: where its layers lie, how it is fine-tuned, and what fine-tuning adds to it.

Task vectors, BatchNorm's statistics (which are no part of the vector), files that are larger than memory.
"""

from lib.runtime.index import index
from lib.vectors.task_vectors import task_vectors as task_vectors  # now, as the function has the module's name

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "batch_norm": "reestimate_batch_norm",
        "fine_tuning": "Expert fine_tune",
        "flat_model": "Differentiable FlatModel Objective",
        "layout": "Layout",
        "streaming": "stream_sum",
        "task_vectors": "cosine_similarity layer_kind layer_norms sign_agreement task_vectors",
    },
)

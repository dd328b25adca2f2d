"""A model is a point in R^D: where its layers lie, how it is fine-tuned, and what fine-tuning adds to it.

Task vectors, BatchNorm's statistics (which are no part of the vector), files that are larger than memory.
"""

from lib.vectors.batch_norm import reestimate_batch_norm
from lib.vectors.fine_tuning import Expert, fine_tune
from lib.vectors.flat_model import FlatModel, Objective
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import cosine_similarity, layer_kind, layer_norms, sign_agreement, task_vectors

__all__ = [
    "Expert",
    "FlatModel",
    "Layout",
    "Objective",
    "cosine_similarity",
    "fine_tune",
    "layer_kind",
    "layer_norms",
    "reestimate_batch_norm",
    "sign_agreement",
    "task_vectors",
]

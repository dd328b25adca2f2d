"""Images: models and their frozen heads, tasks, objective, scoring; `lib.language` mirrors it."""

from lib.runtime.index import index

__getattr__, __dir__, __all__ = index(
    __name__,
    {
        "activations": "diagonal_fisher input_grams",
        "backbones": "load_backbone",
        "heads": "class_mean_head linear_probe_head text_head",
        "models": "Backbone Clip Preprocess load_clip",
        "objective": "ImageObjective features_at image_logits",
        "scoring": "image_features logits_of raw_features score",
        "tasks": "CORRUPTIONS Split Task corrupt load_splits load_task",
        "training": "image_accuracy image_loss",
    },
)

"""Images: models and their frozen heads, tasks, objective, scoring; `lib.language` mirrors it."""

from lib.vision.activations import diagonal_fisher, input_grams
from lib.vision.backbones import load_backbone
from lib.vision.features import image_features
from lib.vision.heads import class_mean_head, linear_probe_head, text_head
from lib.vision.models import Backbone, Clip, Preprocess, load_clip
from lib.vision.objective import ImageObjective, image_accuracy, image_loss
from lib.vision.scoring import score
from lib.vision.tasks import CORRUPTIONS, Split, Task, corrupt, load_splits, load_task

__all__ = [
    "CORRUPTIONS",
    "Backbone",
    "Clip",
    "ImageObjective",
    "Preprocess",
    "Split",
    "Task",
    "class_mean_head",
    "corrupt",
    "diagonal_fisher",
    "image_accuracy",
    "image_features",
    "image_loss",
    "input_grams",
    "linear_probe_head",
    "load_backbone",
    "load_clip",
    "load_splits",
    "load_task",
    "score",
    "text_head",
]

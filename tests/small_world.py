"""What methods ask of a workspace, made on the spot: a tiny encoder, three tasks, no labels anywhere."""

from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vectors.flat_model import FlatModel
from lib.vectors.task_vectors import check_task_vectors
from lib.vision.models import Preprocess

TASKS = ("one", "two", "three")


class World(VisionWorkspace):
    """A workspace that has everything already, and keeps in mind what it was asked for.

    Attributes:
        asked: (splits, tasks, corruption, limit) of every evaluation.
        looked_at: (split, corruption) of all inputs that were read.
    """

    def __init__(self, root):
        torch.manual_seed(0)
        profile = get_profile("tiny", mask_steps=4, adaptation_steps=3, evaluate_every=2, adaptation_batch=4)
        super().__init__(Study(profile, root=root))
        self.backbone = SimpleNamespace(preprocess=Preprocess((0.5,) * 3, (0.25,) * 3))
        self.model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 5)))
        self.theta0 = self.model.initial()
        self.task_vectors = 0.1 * torch.randn(3, self.layout.length) * self.layout.inside()
        check_task_vectors(self.theta0, self.task_vectors, self.layout)
        self._tasks.update(dict.fromkeys(TASKS))
        self.heads = {name: 4 * torch.randn(4, 5) for name in TASKS}
        self._images = {name: torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8) for name in TASKS}
        self.asked, self.looked_at = [], []

    frozen_bytes = 0

    def inputs(self, split, task, corruption=""):
        self.looked_at.append((split, corruption))
        return self._images[task]

    def scored(self, tasks, corruption, limit):
        return {"tasks": tasks, "corruption": corruption, "limit": limit}

    def evaluate(self, theta, method, *splits, tasks=(), corruption="", limit=None):
        self.asked.append((splits, tuple(tasks), corruption, limit))
        return pd.DataFrame({"task": list(tasks), "accuracy": [0.25] * len(tasks)})

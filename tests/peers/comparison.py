"""What the comparisons with other libraries share: models to merge, and the one way to say "the same"."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.vectors.layout import Layout
from lib.vision.models import load_clip

ERRORS: dict[tuple[str, str], float] = {}  # (method, peer) -> largest relative error seen, printed after the tests


@dataclass(frozen=True)
class Problem:
    """A pre-trained module, T experts of it, and the same as vectors: theta0 [D], vectors [T, D]."""

    pretrained: nn.Module
    experts: list[nn.Module]
    layout: Layout
    theta0: Tensor
    vectors: Tensor

    @property
    def inside(self) -> Tensor:
        """Which entries of a flat vector are parameters: bool [D]. Peers have no padding."""
        return self.layout.inside() > 0

    @property
    def task_vectors(self) -> list[dict[str, Tensor]]:
        """The task vectors as peers take them: a state dict each, copied."""
        return [{n: view.clone() for n, view in self.layout.views(row).items()} for row in self.vectors]

    def models(self) -> tuple[nn.Module, list[nn.Module]]:
        """Copies of the modules, for peers that merge in place."""
        return deepcopy(self.pretrained), [deepcopy(expert) for expert in self.experts]


def flat(state: dict[str, Tensor], layout: Layout) -> Tensor:
    """Named parameters as a flat vector [D] of their own type (`Layout.flatten` gives float32)."""
    vector = torch.zeros(layout.length, dtype=next(iter(state.values())).dtype)
    for name, view in layout.views(vector).items():
        view.copy_(state[name].detach())
    return vector


def problem(module: nn.Module, tasks: int, seed: int, dtype: torch.dtype) -> Problem:
    """Experts at random around a module: every layer of every task moved by its own share of the layer's size."""
    random = torch.Generator().manual_seed(seed)
    pretrained = module.to(dtype).requires_grad_(True)
    experts = [deepcopy(pretrained) for _ in range(tasks)]
    with torch.no_grad():
        for expert in experts:
            for parameter in expert.parameters():
                size = parameter.square().mean().sqrt() + 0.01  # biases may start at zero
                share = 0.1 * torch.rand((), generator=random, dtype=dtype)
                parameter += share * size * torch.randn(parameter.shape, generator=random, dtype=dtype)
    layout = Layout.of(dict(pretrained.named_parameters()))
    theta0 = flat(pretrained.state_dict(), layout)
    vectors = torch.stack([flat(expert.state_dict(), layout) for expert in experts]) - theta0
    return Problem(pretrained, experts, layout, theta0, vectors)


def small_module(kind: str, seed: int) -> nn.Module:
    """Random models with layers of every shape: matrices tall and wide, kernels, norms, embeddings; or one matrix."""
    torch.manual_seed(seed)
    layers = {
        "matrix": lambda: [nn.Linear(24, 17, bias=False)],
        "linear": lambda: [nn.Linear(12, 40), nn.LayerNorm(40), nn.Linear(40, 16, bias=False), nn.Linear(16, 16)],
        "convolution": lambda: [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 20)],
        "embedding": lambda: [nn.Embedding(50, 18), nn.Linear(18, 9), nn.Linear(9, 3)],
    }
    return nn.Sequential(*layers[kind]())


PROBLEMS = {
    f"{kind}-{tasks}-{str(dtype).removeprefix('torch.')}": (kind, tasks, seed, dtype)
    for seed, (kind, tasks, dtype) in enumerate(
        [
            ("matrix", 2, torch.float64),
            ("linear", 3, torch.float64),
            ("convolution", 8, torch.float64),
            ("embedding", 5, torch.float64),
            ("linear", 1, torch.float64),
            ("matrix", 8, torch.float32),
            ("linear", 4, torch.float32),
            ("convolution", 2, torch.float32),
            ("embedding", 3, torch.float32),
            ("tiny_clip", 8, torch.float32),
            ("tiny_clip", 4, torch.float64),
        ]
    )
}


def make(kind: str, tasks: int, seed: int, dtype: torch.dtype) -> Problem:
    """One of `PROBLEMS`; "tiny_clip" is the image encoder that the study ships."""
    module = load_clip().visual if kind == "tiny_clip" else small_module(kind, seed)
    return problem(module, tasks, seed, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, in float64."""
    assert expected.norm() > 0, "a comparison with zero says nothing"
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def assert_same(method: str, peer: str, found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Equal up to a relative error in the Euclidean norm, which is kept for the table printed at the end."""
    ERRORS[method, peer] = max(error(found, expected), ERRORS.get((method, peer), 0.0))
    assert error(found, expected) <= tolerance

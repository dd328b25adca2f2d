"""FusionBench's own test-time adaptation, made to run without a disk: for the benchmark and for tests/peers.

Its classes run as they are. Given from outside are what they would load: experts, frozen heads, batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

import lightning
from fusion_bench.compat.method import ModelFusionAlgorithm
from omegaconf import OmegaConf
from torch import Tensor, nn

# One configuration serves all its classes; its published values. `lr` is the mask's in the Concrete methods.
CONFIG = {
    "optimizer": "adam",
    "lr": 1e-3,
    "base_lr": 1.0,
    "adamerging_lr": 1e-3,
    "scaling_factor": 0.3,
    "init_values": 0.3,
    "initial_logits": 0,
    "temperature": 0.5,
    "clamp_weights": False,
    "weights": None,
    "tie_weights": True,
    "strict": False,
    "save_interval": 10**9,
}


class Tower(nn.Module):
    """An image encoder that answers as those of Hugging Face do: (tokens, features)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[None, Tensor]:
        """Pixels [N, 3, H, W] -> (nothing, features [N, width])."""
        return None, self.encoder(pixels)


def prepare(
    kind: type[ModelFusionAlgorithm],
    pretrained: Tower,
    experts: Sequence[Tower],
    heads: Sequence[Tensor],
    batches: Sequence[Iterator[Tensor]],
    fabric: lightning.Fabric,
    **config: object,
) -> ModelFusionAlgorithm:
    """An algorithm of FusionBench for CLIP, ready for `setup_models`, `train_mask`, `test_time_adaptation` and so on.

    Args:
        kind: its class.
        pretrained: the pre-trained encoder; the algorithm takes it over.
        experts: T of them, which become task vectors in place.
        heads: [C_t, width] each; logits are normalised features @ head.T.
        batches: the pixels of each task, [B, 3, H, W], in the order in which they are asked for.
        fabric: runs backward passes and takes reports.
        config: what differs from `CONFIG`, `max_steps` at least.
    """
    names = [str(task) for task in range(len(experts))]
    models: Mapping[str, Tower] = {"_pretrained_": pretrained, **dict(zip(names, experts, strict=True))}
    loaders = {name: ((pixels, None) for pixels in own) for name, own in zip(names, batches, strict=True)}
    algorithm = kind(OmegaConf.create(CONFIG | config))
    algorithm._fabric = algorithm.fabric = fabric
    algorithm.modelpool = SimpleNamespace(model_names=names, load_model=models.__getitem__)
    algorithm.zeroshot_weights = dict(zip(names, heads, strict=True))
    algorithm.visual_projection, algorithm.logit_scale_exp = nn.Identity(), 1.0
    algorithm.get_shuffled_test_loader_iter = loaders.__getitem__
    algorithm.on_test_time_adaptation_start = lambda: None  # it would make the heads
    return algorithm

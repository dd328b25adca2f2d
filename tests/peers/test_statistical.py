"""Fisher merging, RegMean and RegMean++ against FusionBench: the merging rules, and the statistics they run on."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import timm
import torch
from comparison import Problem, assert_same, error, flat
from comparison import problem as make_problem
from fusion_bench.method.fisher_merging.clip_fisher_merging import FisherMergingForCLIPVisionModel
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights, regmean_merging
from fusion_bench.method.regmean_plusplus import regmean_plusplus
from fusion_bench.method.regmean_plusplus.clip_regmean_plusplus import RegMeanAlgorithmForCLIPPlusPlus
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.fusion import fisher_merging, regmean, regmean_plus_plus
from lib.fusion.activations import layer_groups
from lib.runtime.device import Runtime
from lib.vectors.flat_model import FlatModel
from lib.vision import activations
from lib.vision.activations import diagonal_fisher, input_grams
from lib.vision.models import Preprocess

RUNTIME, PREPROCESS = Runtime(), Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CLASSES, WIDTH, IMAGES = 3, 6, 12


def parameters(problem: Problem) -> dict[str, list[Tensor]]:
    """The experts as FusionBench's merging functions take them: name -> one tensor per task."""
    states = [dict(expert.named_parameters()) for expert in problem.experts]
    return {name: [state[name].detach().clone() for state in states] for name in problem.layout.names}


# The merging rules, on random statistics


@pytest.mark.parametrize("normalise", [True, False])
def test_fisher_merging(problem, normalise):
    random = torch.Generator().manual_seed(0)
    fisher = torch.rand(problem.vectors.shape, generator=random, dtype=torch.float64) ** 8  # many near the floor
    fisher = fisher.to(problem.vectors) * problem.layout.inside()
    merged = merging_with_fisher_weights(
        parameters(problem),
        [{name: view.clone() for name, view in problem.layout.views(own).items()} for own in fisher],
        torch.ones(len(fisher)) / len(fisher),
        normalize_fisher_weight=normalise,
        minimal_fisher_weight=1e-6,
    )
    options = {"fisher": fisher, "normalise": normalise, "floor": 1e-6}
    found = fisher_merging(problem.theta0, problem.vectors, problem.layout, **options)
    assert_same("Fisher merging", "FusionBench", found, flat(merged, problem.layout))


@pytest.mark.parametrize("non_diagonal", [0.9, 0.1, 1.0])
def test_regmean(problem, non_diagonal):
    """Every matrix gets Gram matrices of as many inputs as features; FusionBench inverts, here one solves.

    In float32 FusionBench's inverse itself is off by rounding: it is run on the same numbers in float64.
    """
    random, grams = torch.Generator().manual_seed(0), {}
    linear = {name for name, part in problem.pretrained.named_modules() if isinstance(part, nn.Linear)}
    for name in linear:
        width = problem.pretrained.get_submodule(name).in_features
        data = torch.randn(len(problem.vectors), width, width, generator=random, dtype=torch.float64)
        grams[f"{name}.weight"] = (data.mT @ data).to(problem.vectors)
    merged = merging_with_regmean_weights(
        {name: [own.double() for own in every] for name, every in parameters(problem).items()},
        [{name: grams[f"{name}.weight"][task].double() for name in linear} for task in range(len(problem.vectors))],
        reduce_non_diagonal_ratio=non_diagonal,
    )
    arguments = (problem.theta0, problem.vectors, problem.layout)
    found = regmean(*arguments, grams=grams, non_diagonal=non_diagonal)
    assert_same("RegMean", "FusionBench", found, flat(merged, problem.layout))


# The statistics, and everything from the images on


def vit() -> nn.Module:
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    return timm.models.vision_transformer.VisionTransformer(num_classes=WIDTH, **shape)


@pytest.fixture(scope="module")
def experts():
    """Three experts of a small timm ViT in float64, the model as our code takes it, and uint8 images of each task."""
    torch.manual_seed(0)
    problem = make_problem(vit().eval(), 3, 0, torch.float64)
    images = torch.randint(0, 256, (3, IMAGES, 3, 8, 8), dtype=torch.uint8)
    return problem, FlatModel(deepcopy(problem.pretrained)), images


def batches(images: Tensor, size: int) -> DataLoader:
    """Pixels and labels as FusionBench's algorithms read them (its CLIP code looks at the images only)."""
    return DataLoader([(pixels, 0) for pixels in PREPROCESS(images).double()], batch_size=size)


@pytest.mark.parametrize("size", [1, 4])
def test_fisher_information(experts, size, monkeypatch):
    """FusionBench squares after summing over classes and over the batch, the paper and ours each class's gradient.

    Its line is `sum_labels_expectations = labels_expectations.sum(dim=-1).sum(dim=0)` in clip_fisher_merging.py. With
    batches of one image and all random signs set to +1, ours is theirs; with larger batches theirs also depends on how
    the images are batched.
    """
    problem, model, images = experts
    head = torch.randn(CLASSES, WIDTH, dtype=torch.float64)

    def logits(module, batch, task):
        return nn.functional.normalize(module(batch[0]), dim=-1) @ head.T

    algorithm = SimpleNamespace(
        clip_processor=None,
        dataloader_kwargs={"batch_size": size},
        fabric=None,
        config=SimpleNamespace(num_fisher_examples=IMAGES),
        compute_logits=logits,
    )
    theirs = FisherMergingForCLIPVisionModel.get_fisher_weights(
        algorithm, "task", deepcopy(problem.experts[0]), batches(images[0], 1).dataset, list(problem.layout.names)
    )
    theirs = flat(theirs, problem.layout)
    arguments = (model, problem.theta0 + problem.vectors[0], head, images[0], PREPROCESS)
    exact = diagonal_fisher(*arguments)
    assert error(theirs, exact) > 0.01
    monkeypatch.setattr(activations, "_combinations", lambda images, classes, *_: torch.ones(images, 1, classes))
    plus = diagonal_fisher(*arguments)
    if size == 1:
        assert_same("Fisher, signs +1", "FusionBench, batch 1", plus, theirs)
    else:
        assert error(theirs, plus) > 0.01


def test_regmean_from_the_images_on(experts):
    problem, model, images = experts

    class Trainer:  # the interface of Hugging Face's
        _train_batch_size = 4

        def __init__(self, own):
            self.own = own

        def get_train_dataloader(self):
            return [{"x": pixels} for pixels, _ in batches(self.own, 4)]

        def _prepare_inputs(self, inputs):
            return inputs

    merged = regmean_merging(
        [deepcopy(expert) for expert in problem.experts], [Trainer(own) for own in images], [], [IMAGES] * 3, 0.9
    )
    grams = [
        input_grams(model, problem.theta0 + vector, own, PREPROCESS, RUNTIME)
        for vector, own in zip(problem.vectors, images, strict=True)
    ]
    grams = {name: torch.stack([own[name] for own in grams]) for name in grams[0]}
    found = regmean(problem.theta0, problem.vectors, problem.layout, grams=grams, non_diagonal=0.9)
    assert_same("RegMean, from images", "FusionBench", found, flat(merged, problem.layout))


class PlusPlusForTimm(regmean_plusplus.RegMeanAlgorithmPlusPlus):
    """FusionBench's algorithm on a timm ViT: its CLIP class, but for where the blocks of the model are."""

    fabric = SimpleNamespace(setup=lambda layer: layer)
    get_regmean_weights = RegMeanAlgorithmForCLIPPlusPlus.get_regmean_weights

    def merge_embedding_layer(self, models_to_merge_dict):
        states = [model.state_dict() for model in models_to_merge_dict.values()]
        return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0] if "blocks" not in name}

    def get_input_for_first_layer(self, model, train_dataset):
        with torch.no_grad():
            return [model.norm_pre(model._pos_embed(model.patch_embed(pixels))) for pixels, _ in train_dataset]

    def get_layers(self, model):
        return model.blocks

    def update_merged_params_dict(self, merged_params_dict, new_merged_params, layer_idx):
        return merged_params_dict | {f"blocks.{layer_idx}.{key}": value for key, value in new_merged_params.items()}

    def layer_batches_forward(self, layer, batches_input):
        return [layer(batch).detach() for batch in batches_input]


def test_regmean_plus_plus_from_the_images_on(experts, monkeypatch):
    """All blocks and what lies before them; what follows them FusionBench leaves pre-trained, and is not compared."""
    problem, model, images = experts
    names = [str(task) for task in range(3)]
    pool = dict(zip(names, (deepcopy(expert) for expert in problem.experts), strict=True))
    loaded = SimpleNamespace(
        named_models=lambda: pool.items(),
        load_pretrained_model=lambda: deepcopy(problem.pretrained),
        load_train_dataset=lambda name: batches(images[int(name)], 4),
    )
    algorithm = PlusPlusForTimm(
        num_regmean_examples=IMAGES, exclude_param_names_regex=[], reduce_non_diagonal_ratio=0.9, weight_transpose=True
    )
    monkeypatch.setattr(regmean_plusplus, "BaseModelPool", SimpleNamespace)  # so that the pool above passes for one
    merged = dict(algorithm.run(loaded).named_parameters())

    def grams_at(task, theta, layers):
        return input_grams(model, theta, images[task], PREPROCESS, RUNTIME, layers=layers)

    found = regmean_plus_plus(
        problem.theta0, problem.vectors, problem.layout, groups=layer_groups(model), grams_at=grams_at, non_diagonal=0.9
    )
    compared = torch.zeros_like(found)
    for name, view in problem.layout.views(compared).items():
        view.fill_(float(name.startswith(("blocks", "patch_embed", "pos_embed", "cls_token"))))
    expected = flat(merged, problem.layout)
    assert_same("RegMean++, from images", "FusionBench", found * compared, expected * compared)

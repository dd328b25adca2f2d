"""Ten steps of our one loop against FusionBench's own loops: the same experts, batches and noise, the same numbers.

FusionBench's classes run as they are, on a real Lightning Fabric. Only what would read a disk is replaced, its
data loaders and its text heads, and its mask draws our noise. Compared are what is learned and every point of R^D at
which either side looked at the model, as distances from theta0. All is float64 except on the shipped tiny CLIP.
"""

from copy import deepcopy

import lightning
import pytest
import torch
from comparison import Problem, assert_same, error, flat
from comparison import problem as make_problem
from fusion_bench.method.adamerging.clip_layer_wise_adamerging import CLIPLayerWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.clip_task_wise_adamerging import CLIPTaskWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.method.concrete_subspace.clip_concrete_adamerging import (
    ConcreteLayerWiseAdaMergingForCLIP,
    ConcreteTaskWiseAdaMergingForCLIP,
)
from fusion_bench.method.concrete_subspace.clip_concrete_task_arithmetic import ConcreteTaskArithmeticAlgorithmForCLIP
from fusion_bench.models.masks import MaskModel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.fusion_bench_loop import Tower, prepare
from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.concrete.mask import rescale, sample_mask
from lib.concrete.noise import uniform
from lib.runtime.device import Runtime
from lib.runtime.rng import seed_of
from lib.vectors.flat_model import Differentiable, FlatModel
from lib.vision.models import Preprocess, load_clip
from lib.vision.objective import ImageObjective

STEPS, TASKS, BATCH, WIDTH, SEED = 10, 3, 4, 6, 5
ADAMERGING = {"task": CLIPTaskWiseAdaMergingAlgorithm, "layer": CLIPLayerWiseAdaMergingAlgorithm}
CONCRETE = {"task": ConcreteTaskWiseAdaMergingForCLIP, "layer": ConcreteLayerWiseAdaMergingForCLIP}
# The rates are larger than usual, so that ten steps go somewhere: some coefficients leave [0, 1], which is what `clamp`
# is about. FusionBench starts at 0.3 in float32 whatever the precision of the experts.
RATE, INNER_RATE, MASK_RATE, TEMPERATURE, START = 0.04, 0.4, 0.05, 0.5, torch.tensor(0.3).item()


class World:
    """Experts, heads, and the batches of every task: pixels[task][number], in the precision of the experts."""

    def __init__(self, problem: Problem, heads: list[Tensor], pixels: list[list[Tensor]]) -> None:
        self.problem, self.heads, self.pixels = problem, heads, pixels
        self.layout = problem.layout

    def double(self) -> "World":
        """The same in float64."""
        pretrained, experts = self.problem.models()
        flats = self.layout, self.problem.theta0.double(), self.problem.vectors.double()
        problem = Problem(pretrained.double(), [expert.double() for expert in experts], *flats)
        pixels = [[batch.double() for batch in own] for own in self.pixels]
        return World(problem, [head.double() for head in self.heads], pixels)

    def objective_at(self, number: int):
        """Our side's objective, by automatic differentiation through the plain module."""

        def loss_at(theta: Tensor) -> Tensor:
            views = self.layout.views(theta)
            loss = 0
            for head, own in zip(self.heads, self.pixels, strict=True):
                features = torch.func.functional_call(self.problem.pretrained, views, (own[number],))[1]
                loss = loss + entropy_loss(nn.functional.normalize(features, dim=-1) @ head.T)
            return loss

        return Differentiable(loss_at)


class Peer:
    """One of FusionBench's algorithms, ready to run on a world; `points` is where it looks at the model."""

    def __init__(self, kind: type, world: World, **config: object) -> None:
        points: list[Tensor] = []

        class Watched(kind):
            def compute_logits(self, module, images, task):
                if task == "0":
                    points.append(flat(module._merged_state_dict, world.layout) - world.problem.theta0)
                return super().compute_logits(module, images, task)

        self.world, self.points = world, points
        loop = {"lr": RATE, "base_lr": INNER_RATE, "adamerging_lr": RATE}
        loop |= dict.fromkeys(("max_steps", "max_adamerging_steps"), STEPS)
        given = *world.problem.models(), world.heads, [iter(own) for own in world.pixels]
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        self.algorithm = prepare(Watched, *given, fabric, **loop | config)

    def models(self) -> tuple[nn.Module, MaskModel]:
        """FusionBench's merged model and mask; it makes its coefficients in float32."""
        module, mask = self.algorithm.setup_models()
        for name in ("init_task_wise_weight", "init_layer_wise_weight"):
            if hasattr(self.algorithm, name):
                setattr(self.algorithm, name, getattr(self.algorithm, name).to(self.world.problem.theta0))
        return module.to(self.world.problem.theta0), mask

    def learn_mask(self) -> Tensor:
        """Run FusionBench's loop and return the logits [D]."""
        module, mask = self.models()
        self.algorithm.train_mask(module, mask)
        return flat(dict(mask.named_parameters()), self.world.layout)

    def merged(self) -> nn.Module:
        """The same without a mask, for AdaMerging."""
        name = "task_wise" if hasattr(self.algorithm, "construct_task_wise_merged_model") else "layer_wise"
        module = getattr(self.algorithm, f"construct_{name}_merged_model")(self.algorithm.modelpool)
        return module.to(self.world.problem.theta0)


def our_noise(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Let the k-th mask that FusionBench samples be drawn from the noise of our step k."""
    original, steps = MaskModel.sample_mask, iter(range(10**6))

    def sample_mask(self, *arguments, **options):
        dtype = world.problem.theta0.dtype
        named = world.layout.views(uniform(world.layout, seed_of("mask", SEED), next(steps), dtype))
        queue = iter([named[name] for name, _ in self.named_parameters()])  # the order in which it draws

        def draw(shape, **_):
            drawn = next(queue)
            assert drawn.shape == shape
            return drawn

        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", draw)
            return original(self, *arguments, **options)

    monkeypatch.setattr(MaskModel, "sample_mask", sample_mask)


class Watching:
    """Our side's objective, noting where it is asked."""

    def __init__(self, world: World, objective_at=None) -> None:
        self.world, self.objective_at, self.points = world, objective_at or world.objective_at, []

    def __call__(self, number: int):
        inner = self.objective_at(number)

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            self.points.append(theta.clone() - self.world.problem.theta0)
            return inner(theta)

        return objective


def ours(world: World, objective_at: Watching, **options: object):
    parts = objective_at, world.problem.theta0, world.problem.vectors, world.layout
    return adapt(*parts, steps=STEPS, seed=SEED, initial_coefficient=START, temperature=TEMPERATURE, **options)


def same_path(name: tuple[str, str], watching: Watching, peer: Peer, tolerance: float) -> None:
    """Every point at which the model was looked at, one by one: displacements from theta0."""
    assert len(watching.points) == len(peer.points)
    for found, expected in zip(watching.points, peer.points, strict=True):
        assert_same(*name, found, expected, tolerance)


def as_merged(module: nn.Module, clamp: bool) -> Tensor:
    """FusionBench's coefficients as it merges with them; a test of `clamp` needs some outside and some inside."""
    found = module.merge_weight.detach()
    if clamp:
        outside = (found < 0) | (found > 1)
        assert outside.any() and not outside.all()
    return found.clamp(0, 1) if clamp else found


@pytest.fixture(scope="module")
def world() -> World:
    torch.manual_seed(4)  # at which every test of `clamp` has coefficients outside and inside [0, 1]
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    problem = make_problem(Tower(VisionTransformer(num_classes=WIDTH, **shape)), TASKS, 0, torch.float64)
    classes = (3, 25, 4)  # fewer and more than the images of a batch
    heads = [2 * torch.randn(own, WIDTH, dtype=torch.float64) for own in classes]
    pixels = [[torch.randn(BATCH, 3, 8, 8, dtype=torch.float64) for _ in range(2 * STEPS)] for _ in range(TASKS)]
    return World(problem, heads, pixels)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_adamerging(world, granularity, clamp):
    peer = Peer(ADAMERGING[granularity], world, clamp_weights=clamp)
    module = peer.merged()
    peer.algorithm.test_time_adaptation(module)
    watching = Watching(world)
    found = ours(world, watching, coefficients=granularity, learning_rate=RATE, protocol=Protocol(clamp=clamp))
    name = f"AdaMerging, {granularity}", "FusionBench" + ", clamp" * clamp
    same_path(name, watching, peer, 1e-12)
    assert_same(*name, found.coefficients, as_merged(module, clamp), 1e-12)


@pytest.mark.parametrize("initial_logits", [0.0, 1.5])
def test_concrete_task_arithmetic(world, initial_logits, monkeypatch):
    our_noise(monkeypatch, world)
    peer = Peer(ConcreteTaskArithmeticAlgorithmForCLIP, world, lr=MASK_RATE, initial_logits=initial_logits)
    expected = peer.learn_mask()
    watching, protocol = Watching(world), Protocol(initial_logits=initial_logits)
    options = {"coefficients": None, "learn_mask": True, "mask_learning_rate": MASK_RATE}
    found = ours(world, watching, protocol=protocol, **options)
    inside, name = world.problem.inside, ("Concrete T. A.", "FusionBench")
    assert_same(*name, *(logits[inside] - initial_logits for logits in (found.logits, expected)), 1e-11)
    same_path(name, watching, peer, 1e-11)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_concrete_adamerging_learns_the_mask(world, granularity, clamp, monkeypatch):
    """Both levels: FusionBench's inner gradient is that of the merge it made before it reset the coefficients."""
    our_noise(monkeypatch, world)
    peer = Peer(CONCRETE[granularity], world, lr=MASK_RATE, clamp_weights=clamp)
    expected = peer.learn_mask()
    watching, protocol = Watching(world), Protocol(inner_gradient_at="previous", clamp=clamp)
    options = {"coefficients": granularity, "learn_mask": True, "mask_learning_rate": MASK_RATE}
    found = ours(world, watching, learning_rate=INNER_RATE, protocol=protocol, **options)
    name = f"Concrete, {granularity}", "FusionBench" + ", clamp" * clamp
    same_path(name, watching, peer, 1e-11)
    assert_same(*name, found.logits, expected, 1e-11)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_adaptation_inside_a_mask(world, granularity, clamp, monkeypatch):
    our_noise(monkeypatch, world)
    peer = Peer(CONCRETE[granularity], world, clamp_weights=clamp)
    module, mask = peer.models()
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.normal_()
        drawn = {name: m / m.mean() for name, m in mask.sample_mask("continuous", TEMPERATURE).items()}
    peer.algorithm.run_adamerging(module, drawn)
    logits, noise = (
        flat(mask.state_dict(), world.layout),
        uniform(world.layout, seed_of("mask", SEED), 0, torch.float64),
    )
    rescaled = rescale(sample_mask(logits, TEMPERATURE, noise, world.layout), world.layout)
    watching = Watching(world)
    options = {"coefficients": granularity, "learning_rate": RATE, "rescaled_mask": rescaled}
    found = ours(world, watching, protocol=Protocol(clamp=clamp), **options)
    name = f"In a mask, {granularity}", "FusionBench" + ", clamp" * clamp
    same_path(name, watching, peer, 1e-12)
    assert_same(*name, found.coefficients, as_merged(module, clamp), 1e-12)


def test_the_published_order_is_not_the_papers(world, monkeypatch):
    """The paper takes the inner gradient at the initial coefficients; the difference is far above any tolerance."""
    our_noise(monkeypatch, world)
    peer = Peer(CONCRETE["layer"], world, lr=MASK_RATE)
    peer.learn_mask()
    watching = Watching(world)
    options = {"coefficients": "layer", "learn_mask": True, "mask_learning_rate": MASK_RATE}
    ours(world, watching, learning_rate=INNER_RATE, protocol=Protocol(inner_gradient_at="initial"), **options)
    for number, (found, expected) in enumerate(zip(watching.points, peer.points, strict=True)):
        near = torch.allclose(found, expected, rtol=0, atol=1e-9)
        assert near == (number < 2), f"point {number}"  # the first step has no previous coefficients


def test_concrete_adamerging_on_the_shipped_clip(monkeypatch):
    """In float64, and on the study's own path in float32: flat model, one batch of all tasks, our objective.

    In float32 both are away from the float64 result, given FusionBench's entropy (which adds 1e-8 inside the logarithm)
    by about as much: 3e-5 to 1e-3 over draws of heads and images, because where a gradient nearly is zero, rounding
    decides which way Adam's first steps go. So these bounds are wide; the exact comparison is that in float64.
    """
    torch.manual_seed(0)
    clip, preprocess = load_clip(), Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    problem = make_problem(Tower(clip.visual), TASKS, 0, torch.float32)
    heads = [20 * nn.functional.normalize(torch.randn(classes, 96), dim=-1) for classes in (4, 6, 5)]
    shape = (2 * STEPS * BATCH, 3, clip.image_size, clip.image_size)
    images = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(TASKS)]
    model = FlatModel(deepcopy(problem.pretrained.encoder))
    objective = ImageObjective(model, heads, images, preprocess, Runtime(), batch=BATCH, seed=0)
    rows = [objective.rows(step) for step in range(2 * STEPS)]
    pixels = [[preprocess(own[step[task]]) for step in rows] for task, own in enumerate(images)]
    single = World(problem, heads, pixels)
    double = single.double()

    def peer_on(world: World) -> tuple[Peer, Tensor]:
        with monkeypatch.context() as patch:
            our_noise(patch, world)
            peer = Peer(CONCRETE["layer"], world, lr=1e-3, base_lr=1e-2)
            return peer, peer.learn_mask()

    options = {"coefficients": "layer", "learn_mask": True, "mask_learning_rate": 1e-3, "learning_rate": 1e-2}
    options["protocol"] = Protocol(inner_gradient_at="previous")
    peer, expected = peer_on(double)
    found = ours(double, watching := Watching(double), **options)
    name = "tiny CLIP, Concrete", "FusionBench"
    same_path(name, watching, peer, 1e-10)
    assert_same(*name, found.logits, expected, 1e-10)

    _, rounded = peer_on(single)
    monkeypatch.setattr(
        "lib.adaptation.objectives.entropy", lambda rows: torch.stack([entropy_loss(row[None]) for row in rows])
    )
    found = ours(single, watching := Watching(single, objective), **options)
    name = "tiny CLIP, Concrete", "FusionBench, float32"
    same_path(name, watching, peer, 1e-4)
    assert_same(*name, found.logits, expected, 3e-3)
    assert error(found.logits, expected) < 10 * error(rounded, expected)

"""The fast mask step against the plain reference: same noise, same merge, same gradients, same learning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lib import concrete
from lib.concrete import kernels
from lib.concrete.merge_step import MergeStep
from lib.concrete.noise import uniform
from lib.files.weights import read_weights
from lib.vectors.layout import Layout
from lib.vectors.streaming import reader

DOUBLE = torch.float64


def problem(dtype=torch.float32, tasks=3, seed=0, block=64, parts=1):
    torch.manual_seed(seed)
    parameters = {"a": torch.zeros(70, 40), "b": torch.zeros(5), "c": torch.zeros(64), "d": torch.zeros(3, 100)}
    layout = Layout.of(parameters, block=block, parts=parts)
    inside = layout.inside().to(dtype)
    theta0 = torch.randn(layout.length, dtype=dtype) * inside
    vectors = torch.randn(tasks, layout.length, dtype=dtype) * inside
    gradient = torch.randn(layout.length, dtype=dtype) * inside
    coefficients = torch.rand(tasks, layout.layers, dtype=dtype) + 0.1
    return layout, theta0, vectors, coefficients, gradient


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def reference_step(layout, theta0, vectors, coefficients, gradient, logits, step, temperature, seed):
    """One step by `lib.concrete`: mask, theta, gradients of coefficients (layer-wise) and of logits."""
    mask = concrete.sample_mask(logits, temperature, uniform(layout, seed, step, theta0.dtype), layout)
    rescaled = concrete.rescale(mask, layout)
    theta = concrete.merge(theta0, vectors, coefficients, layout, rescaled)
    by_coefficients = concrete.coefficient_gradient(gradient, vectors, layout, rescaled, layer_wise=True)
    summed = concrete.weighted_sum(vectors, coefficients, layout)
    return mask, theta, by_coefficients, concrete.logit_gradient(gradient, summed, mask, temperature, layout)


COMPILED = [("compiled", 0.5, 11), ("compiled", 2.0, 3)]  # compiling takes seconds
EAGER = [("eager", temperature, tasks) for temperature in (0.1, 0.5, 2.0) for tasks in (1, 3, 11)]


@pytest.mark.parametrize(("backend", "temperature", "tasks"), EAGER + COMPILED)
def test_steps_equal_the_reference_and_torchs_adam(backend, temperature, tasks):
    tolerance = 1e-6 if temperature >= 0.5 else 5e-6  # the temperature divides, and so multiplies rounding
    layout, theta0, vectors, coefficients, gradient = problem(tasks=tasks)
    fast = MergeStep(theta0, vectors, layout, backend=backend)
    fast.learn_mask(temperature=temperature, learning_rate=0.1, seed=7)
    logits = torch.zeros(layout.length, dtype=DOUBLE)
    adam = torch.optim.Adam([logits], lr=0.1)
    double = [tensor.double() for tensor in (theta0, vectors, coefficients, gradient)]
    for step in range(4):
        mask, theta, by_coefficients, by_logits = reference_step(layout, *double, logits, step, temperature, 7)
        mean = fast.draw(step)
        torch.testing.assert_close(mean.double(), concrete.layer_means(mask, layout), rtol=1e-5, atol=1e-6)
        assert relative(fast.merge(coefficients).double(), theta) < tolerance
        assert relative(fast.coefficient_gradient(gradient).double(), by_coefficients) < tolerance
        assert relative(fast.update_mask(gradient).double(), by_coefficients) < tolerance
        logits.grad = by_logits
        adam.step()
        moments = adam.state[logits]
        assert relative(fast.first_moment.double(), moments["exp_avg"]) < tolerance
        assert relative(fast.second_moment.double(), moments["exp_avg_sq"]) < tolerance
        clear = moments["exp_avg"].abs() > 1e-4 * moments["exp_avg"].abs().max()  # elsewhere rounding decides the sign
        assert relative(fast.logits[clear].double(), logits[clear]) < 1e-4
        fast.logits.copy_(logits)


def test_float64_agrees_to_rounding():
    layout, theta0, vectors, coefficients, gradient = problem(DOUBLE)
    fast = MergeStep(theta0, vectors, layout)
    fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=3)
    logits = torch.zeros(layout.length, dtype=DOUBLE)
    adam = torch.optim.Adam([logits], lr=0.1)
    for step in range(5):
        _, theta, by_coefficients, by_logits = reference_step(
            layout, theta0, vectors, coefficients, gradient, logits, step, 0.5, 3
        )
        fast.draw(step)
        torch.testing.assert_close(fast.merge(coefficients), theta, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast.update_mask(gradient), by_coefficients, rtol=1e-9, atol=1e-9)
        logits.grad = by_logits
        adam.step()
        torch.testing.assert_close(fast.logits, logits, rtol=1e-7, atol=1e-9)


def test_the_exponential_is_good_to_two_rounding_errors():
    x = torch.linspace(-80, 80, 400_001)
    error = (kernels.exp(x).double() / x.double().exp() - 1).abs().max()
    assert error < 2.5e-7
    assert torch.isfinite(kernels.exp(torch.tensor([-1e30, -1e4, 1e4, 1e30]))).all()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
def test_extreme_logits_stay_finite(backend, temperature):
    layout, theta0, vectors, coefficients, gradient = problem()
    fast = MergeStep(theta0, vectors, layout, backend=backend)
    fast.learn_mask(temperature=temperature, learning_rate=0.1, seed=1)
    for logit in (-1000.0, -50.0, 0.0, 50.0, 1000.0):
        fast.logits.fill_(logit)
        mean = fast.draw(0)
        assert ((mean >= 0) & (mean <= 1)).all()
        if logit:
            torch.testing.assert_close(mean, torch.full_like(mean, float(logit > 0)), rtol=0, atol=1e-2)
        assert torch.isfinite(fast.merge(coefficients)).all()
        assert torch.isfinite(fast.update_mask(gradient)).all()
        assert torch.isfinite(fast.logits).all()


@pytest.mark.parametrize(("parameters", "most"), [(87_849_216, 3_000), (304_293_888, 9_000)])
def test_without_a_compiler_an_accelerator_gets_few_launches(parameters, most):
    """Of a step of ViT-B/32 and of L/14 with eight tasks; the device "meta" is one without numbers."""
    launched = []

    class Launched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            launched.append(function)
            return function(*args, **(kwargs or {}))

    layout = Layout.of({"a": torch.empty(parameters, device="meta")})
    theta0, vectors = (torch.empty(*rows, layout.length, device="meta") for rows in ((), (8,)))
    merging = MergeStep(theta0, vectors, layout, backend="eager")
    merging.learn_mask(temperature=0.5, learning_rate=1e-3, seed=0)
    with Launched():
        merging.draw(0)
        gradient = merging.merge(torch.empty(8, 1, device="meta"))
        merging.update_mask(gradient)
    assert 100 < len(launched) < most


def test_padding_never_counts():
    layout, theta0, vectors, coefficients, gradient = problem()
    outside = layout.inside() == 0
    fast = MergeStep(theta0, vectors, layout)
    fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
    gradient = gradient + outside * 100.0  # a model's gradient is zero there; even if it were not
    for step in range(3):
        fast.draw(step)
        assert not fast.merge(coefficients)[outside].any()
        fast.update_mask(gradient)
    assert not fast.logits[outside].any()


def test_fixed_mask_and_no_mask():
    layout, theta0, vectors, coefficients, gradient = problem()
    mask = torch.rand(layout.length) * layout.inside()
    for rescaled in (mask, None):
        fast = MergeStep(theta0, vectors, layout, rescaled_mask=rescaled)
        wanted = concrete.merge(theta0, vectors, coefficients, layout, rescaled)
        torch.testing.assert_close(fast.merge(coefficients), wanted, rtol=1e-6, atol=1e-6)
        got = fast.coefficient_gradient(gradient)
        wanted = concrete.coefficient_gradient(gradient, vectors, layout, rescaled, layer_wise=True)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
        task_wise = coefficients[:, 0]
        wanted = concrete.merge(theta0, vectors, task_wise, layout, rescaled)
        torch.testing.assert_close(fast.merge(task_wise), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_task_vectors_in_half_precision_equal_their_float32_copies(dtype):
    layout, theta0, vectors, coefficients, gradient = problem()
    results = []
    for kept in (vectors.to(dtype), vectors.to(dtype).float()):
        fast = MergeStep(theta0, kept, layout)
        fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
        fast.draw(0)
        results.append((fast.merge(coefficients).clone(), fast.update_mask(gradient), fast.logits))
    for half, full in zip(*results, strict=True):
        assert torch.equal(half, full)


def test_equal_coefficients_make_the_sum_the_only_task_vector():
    """Concrete Task Arithmetic costs the same for any T: one vector stands for all."""
    layout, theta0, vectors, _, gradient = problem(tasks=11)
    logits = []
    for given in (vectors, vectors.sum(0, keepdim=True)):
        fast = MergeStep(theta0, given, layout)
        fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
        for step in range(3):
            fast.draw(step)
            fast.merge(torch.full((len(given),), 0.3))
            fast.update_mask(gradient)
        logits.append(fast.logits)
    assert (logits[0] - logits[1]).abs().median() < 1e-6


def test_a_checkpoint_restores_everything():
    layout, theta0, vectors, coefficients, gradient = problem()

    def begin():
        fast = MergeStep(theta0, vectors, layout)
        fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
        return fast

    def steps(fast, numbers):
        for step in numbers:
            fast.draw(step)
            fast.merge(coefficients)
            fast.update_mask(gradient * (step + 1))
        return fast

    straight = steps(begin(), range(4))
    stopped = steps(begin(), range(2))
    resumed = begin()
    resumed.load_state(stopped.state())
    assert torch.equal(steps(resumed, range(2, 4)).logits, straight.logits)


def test_without_a_compiler_there_is_one_warning_and_the_same_result(tmp_path):
    """In a process of its own, because what is compiled is kept."""
    program = """
import warnings
from test_merge_step import problem
from lib.concrete.merge_step import MergeStep
layout, theta0, vectors, coefficients, gradient = problem()
thetas = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for backend in ("eager", "compiled", "compiled"):
        fast = MergeStep(theta0, vectors, layout, backend=backend)
        fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
        fast.draw(0)
        thetas.append(fast.merge(coefficients))
print([bool((theta == thetas[0]).all()) for theta in thetas])
print(sum("no working compiler" in str(warning.message) for warning in caught))
"""
    paths = os.pathsep.join([".", str(Path(__file__).parent)])
    environment = os.environ | {
        "CXX": "/no/such/compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": paths,
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    equal, warned = done.stdout.split("\n")[:2]
    assert equal == "[True, True, True]", done.stderr
    assert warned == "1"


def test_theta0_may_stay_in_its_file(tmp_path):
    layout, theta0, vectors, coefficients, gradient = problem()
    save_file(layout.views(theta0), tmp_path / "theta0.safetensors")
    results = []
    for base in (theta0, reader(read_weights(tmp_path / "theta0.safetensors"), layout)):
        fast = MergeStep(base, vectors, layout)
        fast.learn_mask(temperature=0.5, learning_rate=0.1, seed=1)
        for step in range(2):
            fast.draw(step)
            theta = fast.merge(coefficients).clone()
            fast.update_mask(gradient)
        results.append((theta, fast.logits))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_bad_settings_are_named():
    layout, theta0, vectors, *_ = problem()
    with pytest.raises(ValueError, match="unknown backend 'fast'; known: auto, compiled, eager"):
        MergeStep(theta0, vectors, layout, backend="fast")
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            MergeStep(theta0, vectors, layout).learn_mask(temperature=temperature, learning_rate=1.0, seed=0)

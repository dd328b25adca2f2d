"""Sums that stream from files: the numbers of the in-memory methods, clear errors, memory that does not grow with T."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib import concrete
from lib.adaptation.loop import adapt
from lib.files.weights import fit, read_weights
from lib.fusion import task_arithmetic, weight_averaging
from lib.vectors.layout import Layout
from lib.vectors.streaming import stream_sum
from lib.vectors.task_vectors import task_vectors

SHAPES = {"scale": (), "a.weight": (7, 40), "a.bias": (7,), "b": (3, 5, 11), "empty": (0, 4)}


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def problem(folder, tasks=5, dtype=torch.float32):
    """theta0 [D], T files of theta0 plus small changes, their contents, and the layout."""
    pretrained = state(0)
    layout = Layout.of({name: tensor.to(dtype) for name, tensor in pretrained.items()}, block=16)
    experts, files = [], []
    for task in range(tasks):
        changes = state(task + 1)
        experts.append({name: (pretrained[name] + 0.01 * changes[name]).to(dtype) for name in SHAPES})
        files.append(folder / f"expert{task}.safetensors")
        save_file(experts[-1], files[-1])
    return layout.flatten(pretrained), files, experts, layout


def opened(files, layout):
    return [fit(read_weights(file), layout.views(torch.zeros(layout.length))) for file in files]


def reference(theta0, experts, layout, coefficients):
    """S in float64, written another way."""
    taus = torch.stack([layout.flatten(expert, torch.zeros(layout.length).double()) for expert in experts])
    taus -= theta0.double()
    coefficients = coefficients.double()
    per_element = layout.spread(coefficients) if coefficients.dim() == 2 else coefficients[:, None]
    return (per_element * taus).sum(0) * layout.inside()


def assert_near(found, wanted, share=1e-6):
    """Equal up to `share` of the length of the vector."""
    assert (found.double() - wanted.double()).norm() <= share * wanted.double().norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["ones", "task", "layer"])
def test_the_sum_is_rounded_once_whatever_the_experts_are_stored_as(tmp_path, dtype, granularity):
    theta0, files, experts, layout = problem(tmp_path, dtype=dtype)
    before = theta0.clone()
    coefficients = {"ones": None, "task": torch.randn(5), "layer": torch.randn(5, layout.layers)}[granularity]
    summed = stream_sum(theta0, opened(files, layout), layout, coefficients=coefficients)
    wanted = reference(theta0, experts, layout, torch.ones(5) if coefficients is None else coefficients)
    assert summed.dtype == torch.float32
    torch.testing.assert_close(summed.double(), wanted, rtol=6e-8, atol=1e-14)  # half a unit in the last place
    assert not summed[layout.inside() == 0].any()
    assert torch.equal(theta0, before)
    exact = stream_sum(theta0.double(), opened(files, layout), layout, coefficients=coefficients)
    torch.testing.assert_close(exact, wanted, rtol=1e-12, atol=1e-14)


def test_the_numbers_are_those_of_the_methods_in_memory(tmp_path):
    theta0, files, experts, layout = problem(tmp_path)
    vectors = task_vectors(theta0, experts, layout)
    summed = stream_sum(theta0, opened(files, layout), layout)[None]
    merged = task_arithmetic(theta0, summed, layout, scaling_factor=0.3)
    assert_near(merged, task_arithmetic(theta0, vectors, layout, scaling_factor=0.3))
    assert_near(weight_averaging(theta0, summed / len(files), layout), weight_averaging(theta0, vectors, layout))
    per_layer = torch.rand(5, layout.layers)
    streamed = stream_sum(theta0, opened(files, layout), layout, coefficients=per_layer)
    assert_near(streamed, concrete.weighted_sum(vectors, per_layer, layout))


def test_concrete_task_arithmetic_learns_the_same_mask_from_the_sum_alone(tmp_path):
    theta0, files, experts, layout = problem(tmp_path)
    target = theta0 + 0.01 * torch.randn(layout.length) * layout.inside()

    def learn(vectors):
        def objective(theta):
            return (theta - target).square().sum().item() / 2, theta - target

        arguments = {"steps": 20, "coefficients": None, "learn_mask": True, "mask_learning_rate": 0.05}
        return adapt(lambda step: objective, theta0, vectors, layout, **arguments)

    in_memory = learn(task_vectors(theta0, experts, layout))
    streamed = learn(stream_sum(theta0, opened(files, layout), layout)[None])
    inside = layout.inside() > 0
    torch.testing.assert_close(streamed.logits[inside], in_memory.logits[inside], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.tensor(streamed.curve["loss"]), torch.tensor(in_memory.curve["loss"]), rtol=1e-5, atol=0
    )


def test_the_order_of_files_does_not_matter(tmp_path):
    theta0, files, _, layout = problem(tmp_path, tasks=40)
    summed = stream_sum(theta0, opened(files, layout), layout)
    shuffled = [files[i] for i in torch.randperm(len(files)).tolist()]
    torch.testing.assert_close(stream_sum(theta0, opened(shuffled, layout), layout), summed, rtol=1.2e-7, atol=1e-15)


def test_one_expert_is_reached_exactly_and_theta0_itself_adds_nothing(tmp_path):
    theta0, files, experts, layout = problem(tmp_path, tasks=1)
    save_file(state(0), tmp_path / "base.safetensors")
    assert not stream_sum(theta0, opened([tmp_path / "base.safetensors"] * 3, layout), layout).any()
    summed = stream_sum(theta0.double(), opened(files, layout), layout)
    assert torch.equal((theta0.double() + summed).float(), layout.flatten(experts[0]))


def broken(case, tensors):
    """A state dict spoiled in one way."""
    changes = {
        "missing": {"a.bias": None},
        "unknown": {"more.weight": torch.zeros(3)},
        "shape": {"b": torch.zeros(3, 5, 12)},
        "integer": {"a.bias": torch.zeros(7, dtype=torch.int64)},
        "eight bits": {"a.bias": torch.zeros(7).to(torch.float8_e4m3fn)},
        "nan": {"b": torch.full((3, 5, 11), torch.nan)},
        "inf": {"scale": torch.tensor(torch.inf)},
        "cancelling inf": {"scale": torch.tensor(-torch.inf)},
    }[case]
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"expert3.safetensors: layer 'a.bias' is missing \(another size"),
        ("unknown", r"expert3.safetensors: layer 'more.weight' is not part of the pre-trained model \(was it made for"),
        ("shape", r"expert3.safetensors: layer 'b' has shape \[3, 5, 12\], expected \[3, 5, 11\]"),
        ("integer", r"expert3.safetensors: layer 'a.bias' is stored as torch.int64, which cannot be merged"),
        ("eight bits", r"expert3.safetensors: layer 'a.bias' is stored as torch.float8_e4m3fn"),
        ("nan", r"expert3.safetensors: layer 'b' holds NaN or Inf"),
        ("inf", r"expert3.safetensors: layer 'scale' holds NaN or Inf"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_its_layer(tmp_path, case, message):
    theta0, files, experts, layout = problem(tmp_path)
    save_file(broken(case, experts[3]), files[3])
    with pytest.raises(ValueError, match=message):
        stream_sum(theta0, opened(files, layout), layout, coefficients=torch.zeros(5))


def test_all_headers_are_checked_before_any_tensor_is_read(tmp_path, monkeypatch):
    theta0, files, experts, layout = problem(tmp_path)
    save_file(broken("nan", experts[0]), files[0])
    save_file(broken("shape", experts[4]), files[4])
    monkeypatch.setattr("lib.files.weights._layer", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"expert4.safetensors: layer 'b' has shape"):
        stream_sum(theta0, opened(files, layout), layout)


def test_infinities_that_cancel_and_a_bad_theta0_are_found(tmp_path):
    theta0, files, experts, layout = problem(tmp_path)
    theta0[0] = torch.nan
    with pytest.raises(ValueError, match="theta0: layer 'scale' holds NaN or Inf"):
        stream_sum(theta0, opened(files, layout), layout)
    save_file(broken("inf", experts[1]), files[1])
    save_file(broken("cancelling inf", experts[2]), files[2])
    with pytest.raises(ValueError, match=r"expert1.safetensors: layer 'scale'"):
        stream_sum(torch.zeros(layout.length), opened(files, layout), layout)


def test_integer_buffers_that_the_layout_does_not_have_are_ignored(tmp_path):
    theta0, files, experts, layout = problem(tmp_path)
    wanted = stream_sum(theta0, opened(files, layout), layout)
    buffers = {"bn.num_batches_tracked": torch.tensor(3), "causal": torch.ones(2, 2, dtype=torch.bool)}
    save_file(experts[1] | buffers, files[1])
    assert torch.equal(stream_sum(theta0, opened(files, layout), layout), wanted)


@pytest.mark.parametrize("damage", ["truncated", "cut in the header", "empty"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    theta0, files, _, layout = problem(tmp_path)
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[: {"truncated": len(whole) - 4, "cut in the header": 20, "empty": 0}[damage]])
    with pytest.raises(ValueError, match=r"expert2.safetensors is not a complete safetensors file .*again"):
        stream_sum(theta0, opened(files, layout), layout)


def test_other_bad_arguments(tmp_path):
    theta0, files, _, layout = problem(tmp_path)
    with pytest.raises(ValueError, match="T = 0"):
        stream_sum(theta0, [], layout)
    with pytest.raises(ValueError, match=r"gone.safetensors: check the path"):
        opened([tmp_path / "gone.safetensors"], layout)
    with pytest.raises(ValueError, match=r"expert 0: layer 'b' has shape \[3\], expected \[3, 5, 11\]"):
        stream_sum(theta0, [state(1) | {"b": torch.ones(3)}], layout)
    with pytest.raises(ValueError, match="expert 1: layer 'b' is missing"):
        stream_sum(theta0, [state(1), {name: own for name, own in state(1).items() if name != "b"}], layout)
    with pytest.raises(ValueError, match=r"flat vector of shape"):
        stream_sum(theta0[1:], files, layout)
    with pytest.raises(ValueError, match=r"coefficients have shape \[4\], expected \[5\] or \[5, L\]"):
        stream_sum(theta0, opened(files, layout), layout, coefficients=torch.ones(4))
    with pytest.raises(ValueError, match="coefficients hold NaN"):
        stream_sum(theta0, opened(files, layout), layout, coefficients=torch.full((5,), torch.nan))


@pytest.fixture
def large_experts(tmp_path):
    """Sixteen files of 40 MB with ten layers each; four of them are distinct, which saves disk and time."""
    files = [tmp_path / f"expert{task}.safetensors" for task in range(16)]
    for task, file in enumerate(files):
        if task < 4:
            save_file({name: torch.full((1000, 1000), float(task)) for name in "abcdefghij"}, file)
        else:
            os.link(files[task % 4], file)
    yield files
    for file in files:  # pytest keeps the folders of its last runs
        file.unlink()


PEAKS = """
import sys, torch
from pathlib import Path
from lib.files.weights import fit, read_weights
from lib.vectors.layout import Layout
from lib.vectors.streaming import stream_sum

def peak():  # in MiB; ru_maxrss would not do: it also remembers the parent process from before exec
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
layout = Layout(tuple("abcdefghij"), ((1000, 1000),) * 10)
files = [Path(name) for name in sys.argv[1:]]
start = peak()
theta0 = torch.zeros(layout.length)
experts = [fit(read_weights(file), layout.views(theta0)) for file in files]
stream_sum(theta0, experts[:4], layout)
four = peak()
stream_sum(theta0, experts, layout)
print(start, four, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of one process is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_experts(large_experts):
    call = [sys.executable, "-c", PEAKS, *map(str, large_experts)]
    out = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
    start, four, sixteen = map(float, out[-3:])
    vector = 10_000_000 * 4 / 2**20  # MiB
    # theta0 and S are 2 vectors, a layer 0.3 (mapped, and in float64); the rest is code of torch, loaded on first use.
    assert four - start < 4 * vector
    assert sixteen - four < vector / 2  # twelve further experts are twelve vectors
    assert sixteen < 1.05 * four

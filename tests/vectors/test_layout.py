"""Flat layout: round trips, per-layer sums, errors that name the layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lib.vectors.flat_model import FlatModel
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import check_task_vectors, cosine_similarity, layer_norms, sign_agreement, task_vectors

shapes = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=6)


def state_of(shapes, seed=0):
    torch.manual_seed(seed)
    return {f"layer{i}": torch.randn(shape) for i, shape in enumerate(shapes)}


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 9))
def test_flatten_and_views_are_inverse_and_padding_is_zero(shapes, block):
    state = state_of(shapes)
    layout = Layout.of(state, block)
    flat = layout.flatten(state)
    assert layout.length % block == 0
    assert all(offset % block == 0 for offset in layout.offsets)
    for name, view in layout.views(flat).items():
        assert torch.equal(view, state[name])
    assert torch.equal(flat * layout.inside(), flat)
    assert layout.inside().sum() == layout.parameters == sum(t.numel() for t in state.values())


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 9))
def test_layer_sums_equal_sums_of_the_layers(shapes, block):
    state = state_of(shapes)
    layout = Layout.of(state, block)
    flat = layout.flatten(state).double()
    expected = torch.stack([tensor.double().sum() for tensor in state.values()])
    torch.testing.assert_close(layout.layer_sums(flat), expected)
    spread = layout.spread(torch.arange(layout.layers).double())
    torch.testing.assert_close(
        layout.layer_sums(spread * layout.inside()), layout.counts(spread) * torch.arange(layout.layers)
    )


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(0, 9), st.sampled_from([(), (3,), (2, 3)]))
def test_blocks_are_added_up_in_their_order(shapes, block, seed, batch):
    """With the bits of a loop over the blocks, and by no operation that is unordered on a GPU."""
    layout = Layout.of(state_of(shapes), block)
    draw = torch.Generator().manual_seed(seed)
    size = (*batch, layout.length // block)
    per_block = torch.randn(size, generator=draw) * torch.exp(4 * torch.randn(size, generator=draw))
    called = []

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with Called():
        found = layout.add_blocks(per_block)
    assert not any(unordered in name for name in called for unordered in ("index_add", "scatter", "index_put"))
    expected = torch.zeros(*batch, layout.layers)
    for number, layer in enumerate(layout.layer_of_block().tolist()):
        expected[..., layer] += per_block[..., number]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("b"), "layer 'b' is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "layer 'extra' is not part of the pre-trained model's layout$"),
        (lambda s: s.update(a=torch.zeros(2, 3)), r"layer 'a' has shape \[2, 3\], expected \[3, 2\]"),
        (lambda s: s.update(a=torch.zeros(3, 2, dtype=torch.int64)), "layer 'a' is torch.int64"),
        (lambda s: s["a"].fill_(float("nan")), "layer 'a' holds NaN or Inf"),
    ],
)
def test_a_state_that_does_not_fit_is_named(change, message):
    state = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
    layout = Layout.of(state)
    change(state)
    with pytest.raises(ValueError, match=message):
        layout.flatten(state)
    with pytest.raises(ValueError, match="expert 0 of 1: " + message):
        task_vectors(torch.zeros(layout.length), [state], layout)


def test_integer_buffers_that_the_layout_lacks_are_ignored():
    state = state_of([(3, 2), (4,)])
    layout = Layout.of(state)
    flat = layout.flatten(state | {"num_batches_tracked": torch.tensor(3), "mask": torch.tensor([True])})
    assert torch.equal(flat, layout.flatten(state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_expert_of_another_type_is_named(dtype):
    state = state_of([(3, 2), (4,)])
    layout = Layout.of(state)
    theta0 = layout.flatten(state)
    odd = state | {"layer1": state["layer1"].to(dtype)}
    with pytest.raises(
        ValueError, match=f"expert 1 of 2: layer 'layer1' is {dtype}, the pre-trained one torch.float32"
    ):
        task_vectors(theta0, [state, odd], layout)
    # all of them in one type are taken as they are and merged in float32
    everything = {name: tensor.to(dtype) for name, tensor in state.items()}
    layout = Layout.of(everything)
    vectors = task_vectors(layout.flatten(everything), [everything], layout)
    assert vectors.dtype == torch.float32
    assert not vectors.any()


def test_layout_refuses_nothing_and_integers():
    with pytest.raises(ValueError, match="at least one parameter"):
        Layout.of({})
    with pytest.raises(ValueError, match=r"layer 'n' is torch\.int64"):
        Layout.of({"n": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ValueError, match="flat vector of shape"):
        Layout.of({"a": torch.zeros(2)}).views(torch.zeros(3))


def test_checks_of_task_vectors():
    layout = Layout.of({"a": torch.zeros(3), "b": torch.zeros(5)}, block=4)
    theta0 = torch.zeros(layout.length)
    with pytest.raises(ValueError, match="T = 0"):
        check_task_vectors(theta0, torch.zeros(0, layout.length), layout)
    with pytest.raises(ValueError, match="expected \\[T, 12\\]"):
        check_task_vectors(theta0, torch.zeros(2, 9), layout)
    with pytest.raises(ValueError, match="theta0 has shape"):
        check_task_vectors(theta0[:-1], torch.zeros(2, layout.length), layout)
    with pytest.raises(ValueError, match=r"theta0 is torch\.float64 and the task vectors are torch\.float32"):
        check_task_vectors(theta0.double(), torch.zeros(2, layout.length), layout)
    with pytest.raises(ValueError, match="expected both in float32"):
        check_task_vectors(theta0.half(), torch.zeros(2, layout.length).half(), layout)
    with pytest.raises(ValueError, match="theta0 holds NaN or Inf in layer 'a'"):
        check_task_vectors(theta0.index_fill(0, torch.tensor(2), float("nan")), torch.zeros(2, layout.length), layout)
    bad = torch.zeros(2, layout.length)
    bad[1, 5] = float("inf")
    with pytest.raises(ValueError, match="task vector 1 holds NaN or Inf in layer 'b'"):
        check_task_vectors(theta0, bad, layout)
    with pytest.raises(ValueError, match="no experts"):
        task_vectors(theta0, [], layout)


def test_similarities_of_known_vectors():
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(2)}, block=2)
    vectors = torch.tensor([[3.0, 4.0, 0.0, 1.0], [-3.0, -4.0, 0.0, 1.0]])
    torch.testing.assert_close(layer_norms(vectors, layout), torch.tensor([[5.0, 1.0], [5.0, 1.0]]))
    torch.testing.assert_close(cosine_similarity(vectors)[0, 1], torch.tensor(-24 / 26))
    torch.testing.assert_close(sign_agreement(vectors)[0, 1], torch.tensor(1 / 3))
    torch.testing.assert_close(sign_agreement(vectors, largest=0.5)[0, 1], torch.tensor(0.0))
    torch.testing.assert_close(sign_agreement(vectors).diagonal(), torch.ones(2))


def test_flat_model_moves_without_copying_and_collects_the_gradient():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    reference = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    reference.load_state_dict(module.state_dict())
    x = torch.randn(4, 3)
    model = FlatModel(module)
    theta = model.initial()
    for _ in range(2):  # the second pass must not add to the first
        model.move_to(theta)(x).square().sum().backward()
    reference(x).square().sum().backward()
    expected = model.layout.flatten({name: p.grad for name, p in reference.named_parameters()})
    torch.testing.assert_close(model.gradient, expected)
    theta.mul_(0)  # the module's parameters are views of theta
    assert all(not parameter.any() for parameter in module.parameters())

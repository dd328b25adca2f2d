"""Lengths and angles of very long vectors, where a sum in float32 is no longer what it seems."""

import torch

from lib.fusion import fisher_merging
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import cosine_similarity, inner_products, layer_norms, length, sign_agreement

LONG = 2**27  # half a GB of float32, as many as the parameters of ViT-B/16


def test_lengths_and_angles_of_a_long_vector_are_right_to_six_digits():
    """torch's own norm of it is short by parts of a percent, and its matrix product, too."""
    torch.manual_seed(0)
    part = torch.rand(2**20)
    vector = part.repeat(LONG // len(part))
    exact = part.double().norm() * (LONG // len(part)) ** 0.5
    assert abs(vector.norm() / exact - 1) > 1e-3, "otherwise this test could not fail"
    assert abs(length(vector) / exact - 1) < 1e-6
    cosine = cosine_similarity(vector.expand(2, -1))
    torch.testing.assert_close(cosine, torch.ones(2, 2), atol=1e-6, rtol=0)


def test_fisher_information_of_a_long_model_is_scaled_to_equal_lengths():
    """Task 1 has three times the information everywhere: scaled, both count the same."""
    size = LONG // 4
    layout = Layout.of({"a": torch.zeros(1).expand(size)})
    part = torch.rand(2**20)
    fisher = torch.stack([part.repeat(size // len(part)), 3 * part.repeat(size // len(part))])
    vectors = torch.zeros(2, size)
    vectors[1] = 1
    merged = fisher_merging(torch.zeros(size), vectors, layout, fisher=fisher)
    assert (merged[:: 2**10] - 0.5).abs().max() < 1e-5


def test_on_short_vectors_they_are_the_formulas():
    torch.manual_seed(1)
    vectors = torch.randn(3, 50, dtype=torch.float64)
    torch.testing.assert_close(inner_products(vectors), vectors @ vectors.T)
    torch.testing.assert_close(length(vectors[0]), vectors[0].norm())
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_similarity(vectors), unit @ unit.T)
    assert cosine_similarity(torch.zeros(2, 50)).abs().max() == 0
    signs = vectors.sign()
    share = (signs[:, None] == signs).double().mean(-1)
    torch.testing.assert_close(sign_agreement(vectors), share)


def test_vectors_in_half_precision_are_measured_in_float32():
    torch.manual_seed(2)
    layout = Layout.of({"a": torch.zeros(3000), "b": torch.zeros(50)})
    vectors = torch.randn(3, layout.length) * layout.inside()
    half = vectors.bfloat16()
    for measure in (cosine_similarity, sign_agreement, lambda these: layer_norms(these, layout)):
        torch.testing.assert_close(measure(half).float(), measure(half.float()), atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(layer_norms(half, layout), layer_norms(half.float(), layout), atol=0, rtol=1e-6)

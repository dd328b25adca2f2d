"""What a device and a precision stand for."""

import pytest
import torch

from lib.runtime.device import choose_runtime


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_float32_on_a_gpu_is_float32_in_convolutions_too(monkeypatch, precision):
    """Torch's default rounds them to TF32; under bf16 that would meet what is computed outside autocast (Fisher)."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        choose_runtime("cpu")
        assert torch.backends.cudnn.allow_tf32, "a CPU run leaves the switch alone"
        assert choose_runtime("cuda", precision).precision == precision
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)

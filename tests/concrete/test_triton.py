"""Each pass of a mask step is ONE kernel on a GPU: what `torch.compile` makes of it for an H100, without an H100.

Of ViT-L/14 with eight task vectors, whose stack has more than 2^31 elements.
"""

import importlib.util

import pytest
import torch

from lib.concrete import kernels

if importlib.util.find_spec("triton") is None:
    pytest.skip("the compiler for GPUs, Triton, is not installed", allow_module_level=True)
from triton_lowering import machine_code, triton_sources

BLOCKS, BLOCK, TASKS = 297_168, 1024, 8
REGISTERS = 128  # per thread: a quarter of the threads that an H100 can hold are then at work


def draw(new, temperature):
    keys, valid, lanes = ((2, BLOCKS, 1), (BLOCKS, 1), (BLOCK,))
    integers = [new(*shape, dtype=torch.int32) for shape in (keys, valid, lanes)]
    return kernels.Draw(new(BLOCKS, BLOCK), *integers, None if temperature == 0.5 else new(), None)


def arguments(kernel, new, temperature, dtype):
    """What `MergeStep` calls a kernel with."""
    vector, number, own = (BLOCKS, BLOCK), (BLOCKS, 1), draw(new, temperature)
    vectors, weights = new(TASKS, *vector, dtype=dtype), new(TASKS, *number)
    return {
        kernels.mask_sums: lambda: (own,),
        kernels.merge: lambda: (new(*vector), new(*vector), vectors, weights, own),
        kernels.pull: lambda: (new(*vector), vectors, own),
        kernels.pull_and_sum: lambda: (new(*vector), new(*vector), vectors, weights, own, False),
        kernels.update_logits: lambda: (own, *(new(*vector) for _ in range(4)), new(*number), new(*number), new(3)),
    }[kernel]()


CASES = [
    *((kernel, 0.5, torch.float32) for kernel in (kernels.mask_sums, kernels.update_logits)),
    *((kernel, 0.5, torch.bfloat16) for kernel in (kernels.merge, kernels.pull, kernels.pull_and_sum)),
    (kernels.merge, 0.1, torch.float32),
    (kernels.update_logits, 0.1, torch.float32),
]


@pytest.mark.parametrize(("kernel", "temperature", "dtype"), CASES)
def test_a_pass_is_one_kernel_without_spills(tmp_path, kernel, temperature, dtype):
    sources = triton_sources(kernel, lambda new: arguments(kernel, new, temperature, dtype), kernels.COMPILER)
    assert len(sources) == 1, [name for name, _ in sources]
    ((name, source),) = sources
    forms = machine_code(name, source, tmp_path)
    print(kernel.__name__, temperature, dtype, *forms, sep="\n")
    assert any(0 < form["REG"] <= REGISTERS and form["STACK"] == form["LOCAL"] == 0 for form in forms)
    stacked = kernel in (kernels.merge, kernels.pull, kernels.pull_and_sum)
    assert ("tl.int64" in source) == stacked, "places in a stack of 2.4e9 elements need 64 bits"

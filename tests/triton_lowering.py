"""What torch's compiler makes of a function for an H100, without having one: Triton sources, and sm_90 machine code.

The function is traced with fake tensors on the CPU and lowered with fake ones on "cuda"; a few questions about the card
that would go to its driver are answered here.
"""

import importlib.util
import re
import subprocess
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

CARD = {"multi_processor_count": 132, "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048}
CARD |= {"major": 9, "max_threads_per_block": 1024, "warp_size": 32}


def triton_sources(function, arguments, options):
    """The Triton kernels that a function becomes: their names, and their sources as the compiler writes them.

    Args:
        function: of tensors, and of collections of them; returns a list of tensors or None.
        arguments: called with a shape and a type of tensors that take no memory, gives the function's arguments.
        options: of the compiler, as `torch.compile` has them.
    """
    from torch._inductor import compile_fx, config

    wrappers = []

    def lowered(graph_module, inputs, **_):
        from torch._inductor.debug import DebugContext
        from torch._inductor.graph import GraphLowering
        from torch._inductor.virtualized import V

        graph = GraphLowering(graph_module, example_inputs=inputs, is_inference=True)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            wrappers.append(graph.codegen()[0].value)
        return SimpleNamespace(_boxed_call=True)

    with ExitStack() as stack:
        for place, answer in _answers().items():
            stack.enter_context(mock.patch(place, answer))
        stack.enter_context(
            config.patch(
                options | {"fx_graph_cache": False, "joint_graph_constant_folding": False, "compile_threads": 1}
            )
        )
        stack.enter_context(FakeTensorMode())
        flat, form = tree_flatten(arguments(lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype)))
        places = [number for number, part in enumerate(flat) if isinstance(part, torch.Tensor)]

        def of_tensors(*tensors):
            given = dict(zip(places, tensors, strict=True))
            parts = [given.get(number, part) for number, part in enumerate(flat)]
            return tuple(function(*tree_unflatten(parts, form)) or ())

        tensors = [flat[number] for number in places]
        traced = make_fx(of_tensors)(*tensors)
        there = [torch.empty_like(tensor, device="cuda:0") for tensor in tensors]
        compile_fx.compile_fx(traced, there, inner_compile=lowered)
    (wrapper,) = wrappers
    return re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", wrapper, flags=re.DOTALL)


def _answers():
    from torch._inductor.runtime.hints import DeviceProperties

    card, properties = SimpleNamespace(**CARD), DeviceProperties(type="cuda", index=0, cc=90, **CARD)
    return {
        "torch._inductor.runtime.hints.DeviceProperties.create": staticmethod(lambda device: properties),
        "torch._dynamo.device_interface.CudaInterface.get_device_properties": staticmethod(lambda *_: card),
        "torch._inductor.scheduler.has_triton": lambda *_: True,
        "torch._inductor.runtime.triton_helpers.set_driver_to_gpu": lambda: None,
        "torch.utils._triton.triton_hash_with_backend": lambda: "none",
        "torch.cuda.get_device_properties": lambda *_: card,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.device_count": lambda: 1,
    }


def machine_code(name, source, folder):
    """What a kernel uses, compiled for sm_90, in each form that a card would try in order to keep the fastest.

    "REG" are registers per thread, "STACK" and "LOCAL" bytes spilt.
    """
    path = folder / f"{name[:60]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as stack:
        for place, answer in _answers().items():
            stack.enter_context(mock.patch(place, answer))
        spec.loader.exec_module(module)
    tuned = getattr(module, name)
    return [_uses(tuned, config, folder / "code.cubin") for config in tuned.configs]


def _uses(tuned, config, path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = tuned.triton_meta["signature"]
    chosen = {key: value for key, value in config.kwargs.items() if key in signature}
    made = triton.compile(
        ASTSource(fn=tuned.fn, signature=signature, constexprs=tuned.triton_meta["constants"] | chosen),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    path.write_bytes(made.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)
    return chosen | {"warps": config.num_warps} | {use: int(number) for use, number in found}

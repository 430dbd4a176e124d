"""Kernels and bytes of a function and its gradient, eager and fused by inductor, without a GPU.

Nothing is computed. Eager operations are counted on fake tensors. For the fused ones inductor
compiles as it always does, but takes the CPU for an H100, and stops when it has decided what
becomes one kernel: before it writes any code. It needs neither a compiler nor Triton.

That rests on private parts of PyTorch. Compared with inductor for real CUDA tensors (stubs in
place of the driver, PyTorch 2.13): openfold3's block without dropout has 150 instead of 145
kernels forward and 259 instead of 258 backward, bytes are 1.7 % too many and the same.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from measuring import KernelCounter
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import IRNode, MultiOutput
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.scheduler import BaseSchedulerNode, NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map_only

Function = Callable[..., Any]
"""Of weights (any nesting of tensors) and further arguments; returns any nesting of tensors."""

H100 = DeviceProperties(
    type="cpu",
    index=0,
    multi_processor_count=132,
    cc=90,
    major=9,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
)


@dataclass(frozen=True)
class Traffic:
    """Kernels of one pass, and the bytes that they read and write, each tensor once a kernel."""

    kernels: int
    bytes: int


@dataclass(frozen=True)
class Counts:
    """A function, its gradient, and the bytes kept for the gradient, weights aside."""

    forward: Traffic
    backward: Traffic
    kept: int


def eager(function: Function, weights: Any, *inputs: Any) -> Counts:
    """Counts operations as PyTorch runs them one by one.

    Tensors that the function makes once and remembers must exist before, or they will be fake.
    Only shapes, types and `requires_grad` of tensors matter.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights, inputs = tree_map_only(Tensor, mode.from_tensor, (weights, inputs))
        with KernelCounter() as forward:
            outputs, kept = _run(function, weights, inputs)
        with KernelCounter() as backward:
            _backward(outputs)
    passes = (Traffic(counter.count, counter.bytes) for counter in (forward, backward))
    return Counts(*passes, kept)


def fused(function: Function, weights: Any, *inputs: Any) -> Counts:
    """Counts what `torch.compile` launches on a GPU, matrix products and own operators included.

    Raises:
        torch._dynamo.exc.Unsupported: the function cannot be compiled as a whole.
    """
    passes = {True: Traffic(0, 0), False: Traffic(0, 0)}  # by whether it is the backward one
    torch.compiler.reset()  # a function that was compiled before would not be again
    try:
        with _inductor_for_h100(passes):
            compiled = torch.compile(function, fullgraph=True, dynamic=False)
            outputs, kept = _run(compiled, weights, inputs)
            _backward(outputs)
    finally:
        torch.compiler.reset()  # what was compiled here computes nothing
    return Counts(passes[False], passes[True], kept)


def _run(function: Function, weights: Any, inputs: tuple[Any, ...]) -> tuple[list[Tensor], int]:
    """Outputs that have a gradient, and the bytes that are kept for it."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = function(weights, *inputs)
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    for weight in filter(torch.is_tensor, tree_leaves(weights)):
        storages.pop(weight.untyped_storage()._cdata, None)
    differentiable = [output for output in tree_leaves(outputs) if output.requires_grad]
    return differentiable, sum(storages.values())


def _backward(outputs: list[Tensor]) -> None:
    torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])


@contextmanager
def _inductor_for_h100(passes: dict[bool, Traffic]) -> Iterator[None]:
    """Has inductor decide as for a GPU, and counts its kernels instead of writing them.

    The properties of the device decide which sums take two kernels; a CPU's would depend on the
    machine. Inductor keeps the results of exp and sigmoid on a CPU, but computes them again on a
    GPU, where it also fuses layer norms' two sums in different directions.
    """
    settings = {
        "cpu_backend": "triton",  # its rules of fusion; Triton itself is never called
        "force_pointwise_cat": True,
        "fx_graph_cache": False,
        "compile_threads": 1,
    }

    def count(graph: GraphLowering) -> SimpleNamespace:
        graph.init_wrapper_code()
        graph._update_scheduler()
        kernels = [node for node in graph.scheduler.nodes if _launches(node)]
        moved = sum(node.get_read_write_buffers_sizes() for node in kernels)
        passes[graph.is_backward] = Traffic(len(kernels), moved)
        return SimpleNamespace(call=functools.partial(_nothing, graph))

    with (
        config.patch(settings),
        functorch_config.patch(enable_autograd_cache=False),
        mock.patch.object(DeviceProperties, "create", return_value=H100),
        mock.patch("torch._inductor.ir.is_cpu", return_value=False),
        mock.patch("torch._inductor.scheduler._is_gpu_triton_backend", return_value=True),
        mock.patch.object(GraphLowering, "compile_to_module", count),
    ):
        yield


def _nothing(graph: GraphLowering, arguments: list[Any]) -> list[Tensor | None]:
    """Results of the right shapes, some of them views of arguments, without the computation."""
    held = dict(zip(graph.graph_input_names, arguments, strict=True))

    def empty(result: IRNode) -> Tensor | None:
        if not result.has_tensor_output():
            return None
        name, layout = result.get_name(), result.get_layout()
        if name not in held:
            whole = graph.get_buffer(name).get_layout()
            held[name] = torch.empty_strided(
                _ints(whole.size), _ints(whole.stride), dtype=whole.dtype
            )
        return held[name].as_strided(_ints(layout.size), _ints(layout.stride), int(layout.offset))

    return [empty(result) for result in graph.graph_outputs]


def _ints(numbers: Iterable[Any]) -> list[int]:
    return [int(number) for number in numbers]


def _launches(node: BaseSchedulerNode) -> bool:
    """Whether something is launched for it: not for views, nor for one of an operator's results."""
    return not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, MultiOutput)

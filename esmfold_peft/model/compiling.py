"""Compiled functions: for training, whose crops all have one length, and for inference."""

import functools
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import _StopRecomputationError

from esmfold_peft.devices import is_out_of_memory

P = ParamSpec("P")
T = TypeVar("T")

VARIANTS = 64
"""Graphs that a function may have: with and without gradients, for each number of chains at a time.
PyTorch's own limit of 8 is for functions that are compiled by mistake."""

_LOG = logging.getLogger(__name__)


def compiled_for_training(function: Callable[P, T]) -> Callable[P, T]:
    """A function of tensors as one compiled graph for each set of shapes, backward pass included.

    It must draw no random numbers and read only its arguments and constants. If it cannot be
    compiled, a warning says why, and the function runs as it is from then on.
    """
    return _compiled(function, dynamic=False)


def compiled_for_inference(function: Callable[P, T]) -> Callable[P, T]:
    """The same without gradients, as one graph for all lengths and numbers of chains.

    PyTorch makes another graph if a size is 1. The function's weights must be parameters or
    come from `constant_sizes`.
    """
    return _compiled(function, dynamic=True)


def _compiled(function: Callable[P, T], *, dynamic: bool) -> Callable[P, T]:
    _prepare()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    works = True

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        nonlocal works
        if works:
            try:
                return compiled(*arguments, **named)
            # Compilers and drivers raise errors of many kinds; if the arguments are at fault, the
            # plain call below raises it again.
            except Exception as error:
                # Two errors are no fault of the compiler: recomputing ends with one as soon as the
                # backward pass has what it needs, and a CUDA graph may fail while it is captured.
                ends = isinstance(error, _StopRecomputationError)
                capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
                if is_out_of_memory(error) or ends or capturing:
                    raise
                works = False
                _LOG.warning(
                    f"torch.compile: {function.__qualname__} is not compiled:"
                    f" {type(error).__name__}: {' '.join(str(error).split())[-300:]}. It runs"
                    " uncompiled, which is slower."
                )
        return function(*arguments, **named)

    return call


def compile_for_training(module: nn.Module) -> None:
    """Compiles the forward pass of a module in training mode; its hooks and names stay."""
    compiled = compiled_for_training(type(module).forward)
    _dispatch(module, compiled, lambda training, _: training)


def compile_for_inference(module: nn.Module) -> None:
    """Compiles the forward pass outside training, if all arguments are tensors or None.

    Calls with an adapter for each chain stay plain: each set of adapters would be another graph.
    """
    compiled = compiled_for_inference(type(module).forward)

    def suits(training: bool, given: list[Any]) -> bool:
        return not training and all(one is None or isinstance(one, Tensor) for one in given)

    _dispatch(module, compiled, suits)


def _dispatch(
    module: nn.Module, compiled: Callable[..., Any], suits: Callable[[bool, list[Any]], bool]
) -> None:
    """Makes a module run `compiled` instead of its forward pass in the calls that suit."""
    before = cast(Any, module.forward).__func__

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        suited = suits(self.training, [*arguments, *named.values()])
        return (compiled if suited else before)(self, *arguments, **named)

    # Bound, so that a deep copy of the module runs on its own parameters.
    cast(Any, module).forward = MethodType(forward, module)


def constant_sizes(tensors: T) -> T:
    """Makes the sizes of tensors, in any nesting, constants for the compiler, like parameters'."""
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            torch._dynamo.mark_static(tensor)
    return tensors


@functools.cache
def _prepare() -> None:
    """Settings of PyTorch's compiler for this process."""
    import torch._dynamo.config as dynamo
    import torch._functorch.config as autograd

    dynamo.cache_size_limit = VARIANTS
    # DDP would cut graphs where a bucket of gradients ends. Here gradients are reduced once a step,
    # when all of them are there.
    dynamo.optimize_ddp = False
    # Compiles the backward pass in the first call too, where the plain function can still step in.
    if hasattr(autograd, "force_non_lazy_backward_lowering"):
        autograd.force_non_lazy_backward_lowering = True
    # PyTorch warns that recomputed code must change nothing in place; compiled code does not.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(
        lambda record: "context_fn is passed" not in record.getMessage()
    )

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
"""Graphs that a function may have: with and without gradients, of each number of chains at a time.
PyTorch's own limit of 8 is for functions that are compiled by mistake."""

_LOG = logging.getLogger(__name__)


def compiled_for_training(function: Callable[P, T]) -> Callable[P, T]:
    """A function of tensors as one compiled graph for each set of shapes, backward pass included.

    Where it cannot be compiled, a warning says why, and the function runs as it is from then on.

    Args:
        function: draws no random numbers, and reads only its arguments and constants.
    """
    return _compiled(function, dynamic=False)


def compiled_for_inference(function: Callable[P, T]) -> Callable[P, T]:
    """The same without gradients, as one graph for all lengths and numbers of chains but 1.

    PyTorch makes another graph where a size is 1.

    Args:
        function: see `compiled_for_training`. Its weights are parameters, or of `constant_sizes`.
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
            # Compilers and drivers raise errors of many kinds; a fault of the arguments is raised
            # once more below.
            except Exception as error:
                if is_out_of_memory(error) or _is_no_fault(error):
                    raise
                works = False
                _LOG.warning(
                    f"torch.compile: {function.__qualname__} is not compiled:"
                    f" {type(error).__name__}: {' '.join(str(error).split())[-300:]}. It runs"
                    " without; this is slower."
                )
        return function(*arguments, **named)

    return call


def compile_for_training(module: nn.Module) -> None:
    """Makes the forward pass of a module compiled while the module is in training mode.

    Its calls stay calls of the module, with all hooks; names of parameters stay.
    """
    plain = type(module).forward
    _dispatch(module, compiled_for_training(plain), lambda training, _: training)


def compile_for_inference(module: nn.Module) -> None:
    """Makes it compiled outside training, in calls whose arguments are tensors or None.

    An adapter for each chain is another graph for each set of adapters: it is not compiled.
    """
    compiled = compiled_for_inference(type(module).forward)

    def suits(training: bool, given: list[Any]) -> bool:
        return not training and all(one is None or isinstance(one, Tensor) for one in given)

    _dispatch(module, compiled, suits)


def _dispatch(
    module: nn.Module, compiled: Callable[..., Any], suits: Callable[[bool, list[Any]], bool]
) -> None:
    """Makes a module run a function instead of its forward pass in the calls that suit."""
    before = cast(Any, module.forward).__func__

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        suited = suits(self.training, [*arguments, *named.values()])
        return (compiled if suited else before)(self, *arguments, **named)

    # Bound, so that a deep copy of the module runs on its own parameters.
    cast(Any, module).forward = MethodType(forward, module)


def constant_sizes(tensors: T) -> T:
    """Any nesting of tensors, whose sizes a compiler takes as constants, as those of parameters."""
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
    # DDP would have graphs cut where a bucket of its gradients ends; gradients are reduced once a
    # step, after all of them are there.
    dynamo.optimize_ddp = False
    # The backward pass is compiled in the first call too, where a fault can still be helped.
    if hasattr(autograd, "force_non_lazy_backward_lowering"):
        autograd.force_non_lazy_backward_lowering = True
    # It warns of changes in place in what is computed again; compiled code has none.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(
        lambda record: "context_fn is passed" not in record.getMessage()
    )


def _is_no_fault(error: Exception) -> bool:
    """Whether an error says nothing about the compiler.

    Recomputing ends by one when it has what the backward pass asked for; others come from a CUDA
    graph that is being made.
    """
    if isinstance(error, _StopRecomputationError):
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

"""Finds operations that make the host wait for a GPU, without a GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}
FROM_HOST = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default}
READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}


class WaitError(AssertionError):
    """An operation would make the host wait."""


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if (reason := _reason(op, args, tensors)) is not None:
            raise WaitError(f"{op}: {reason}")
        result = op(*args, **kwargs)
        # A number in an operation of tensors is a tensor without axes, which is not copied.
        devices = {tensor.device for tensor in tensors if tensor.ndim}
        devices |= {leaf.device for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        if len(devices) > 1:
            raise WaitError(f"{op}: copies between devices")
        return result


def _reason(op: Any, args: tuple, tensors: list[Tensor]) -> str | None:
    if op in READ:
        return "reads a value"
    if op in FROM_HOST:
        return "copies numbers of Python to the device"
    if op in INDEXING:
        kinds = {index.dtype for index in args[1] if index is not None}
        return "counts a mask" if kinds & {torch.bool, torch.uint8} else None
    if torch.Tag.dynamic_output_shape in op.tags or torch.Tag.data_dependent_output in op.tags:
        return "its shape depends on values"
    return None


@contextmanager
def no_waits() -> Iterator[None]:
    """Raises `WaitError` where code would make the host wait if its tensors were on a GPU.

    Among these are numbers and lists of Python that become tensors: they are copied to the GPU.
    Run the code twice: on "cpu" it is seen when a list becomes a tensor, but not when tensors are
    read by `tolist` or `numpy`, nor when they are made on the wrong device; on "meta" these are,
    some of them as errors of PyTorch.
    """
    with (
        _NoWaits(),
        mock.patch("torch.autocast", _autocast),
        mock.patch("torch.is_autocast_enabled", _is_autocast_enabled),
    ):
        yield


_ENABLED = torch.is_autocast_enabled


def _is_autocast_enabled(device: str) -> bool:
    return device != "meta" and _ENABLED(device)


def _autocast(device: str, *arguments: Any, **options: Any) -> AbstractContextManager:
    """Autocast, which knows no device "meta"."""
    return nullcontext() if device == "meta" else torch.amp.autocast(device, *arguments, **options)

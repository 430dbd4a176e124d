"""Dataclasses of padded tensors, moved and cut as one."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound="Padded")


class Padded:
    """Tensors of several chains: their first axis is the chain, their second one is padded."""

    def to(self: P, device: torch.device | str, non_blocking: bool = False) -> P:
        """The same on another device; no dtype changes."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: P) -> P:
        """The same in page-locked memory (called by PyTorch's loader)."""
        return map_tensors(self, Tensor.pin_memory)

    def rows(self: P, part: slice, length: int) -> P:
        """Views of some of the chains.

        Args:
            part: which chains.
            length: residues that are left of each, no less than the longest of these chains has.
        """
        return map_tensors(self, lambda t: t[part] if t.ndim == 1 else t[part, :length])


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies `change` to a tensor, or to all of a dataclass and of the dataclasses in it."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **parts)
    return value

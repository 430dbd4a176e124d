"""The stretch of a parameter that a process holds, and making tensors whole from stretches.

Plainly and under DDP every process holds all of a parameter. ZeRO stage 3 flattens it and gives
each process an equal stretch, padded at the end; under stages 1 and 2 that is true of Adam's
moments only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 2**26  # numbers that a collective handles at a time: 256 MiB


@dataclass(frozen=True)
class Shard:
    """What this process holds of a tensor.

    Attributes:
        values: the stretch, flat; it may be empty.
        start: place of its first number in the flattened tensor.
        shape: shape of the whole tensor.
        spread: whether other processes hold the rest. It is the same in all processes.
    """

    values: Tensor
    start: int
    shape: torch.Size
    spread: bool

    def cut(self, whole: Tensor) -> Tensor:
        """The numbers of a whole tensor that belong here, flat, in float32 and on its device."""
        end = self.start + self.values.numel()
        return whole.detach().flatten()[self.start : end].to(self.values.device, torch.float32)


def held(tensor: Tensor) -> Tensor:
    """What this process keeps of a parameter or buffer for good: its shard under ZeRO stage 3.

    That shard is flat and may be padded.
    """
    return getattr(tensor, "ds_tensor", tensor).detach()


def shard(tensor: Any, values: Tensor | None = None) -> Shard:
    """What this process holds of a parameter or buffer.

    Args:
        tensor: the parameter or buffer.
        values: numbers laid out like `held(tensor)` to take instead.
    """
    flat = held(tensor if values is None else values).flatten()
    if not hasattr(tensor, "ds_tensor"):
        return Shard(flat, 0, tensor.shape, spread=False)
    start = dist.get_rank(tensor.ds_process_group) * flat.numel()
    real = max(0, min(flat.numel(), tensor.ds_numel - start))
    return Shard(flat[:real], start, tensor.ds_shape, spread=True)


def assemble(shards: Mapping[str, Shard], device: torch.device) -> dict[str, Tensor]:
    """Makes tensors whole.

    Collective: every process gives the same names.

    Args:
        shards: by the names of the tensors.
        device: that of this process, where its collectives work.

    Returns:
        In process 0 copies on the CPU, floating point numbers in float32; in others nothing.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole = {}
    for name, part in shards.items():
        if first and not part.spread:
            whole[name] = _on_cpu(part.values).view(part.shape)
    for bucket in _buckets({name: part for name, part in shards.items() if part.spread}):
        numbers = _reduced(list(bucket.values()), device)
        if first:
            pieces = numbers.cpu().split([part.shape.numel() for part in bucket.values()])
            for (name, part), piece in zip(bucket.items(), pieces, strict=True):
                whole[name] = piece.clone().view(part.shape)
    return {name: whole[name] for name in shards if name in whole}


def _on_cpu(values: Tensor) -> Tensor:
    return (values.float() if values.is_floating_point() else values).cpu().clone()


def _buckets(shards: Mapping[str, Shard]) -> Iterator[dict[str, Shard]]:
    """Shares out tensors so that few are whole on a device at the same time."""
    bucket, size = {}, 0
    for name, part in shards.items():
        numel = part.shape.numel()
        if bucket and size + numel > _BUCKET:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = part
        size += numel
    if bucket:
        yield bucket


def _reduced(shards: list[Shard], device: torch.device) -> Tensor:
    """The whole tensors behind one another, flat, in process 0; of no meaning in others."""
    sizes = [part.shape.numel() for part in shards]
    buffer = torch.zeros(sum(sizes), device=device)
    for part, place in zip(shards, buffer.split(sizes), strict=True):
        place[part.start : part.start + part.values.numel()] = part.values
    # Every number comes from one process, and the others add 0. As integers that is exact for
    # every bit, that of -0.0 too.
    dist.reduce(buffer.view(torch.int32), dst=0)
    return buffer

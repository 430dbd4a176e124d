"""What a process holds of parameters, moments and gradients under DeepSpeed's ZeRO.

Plainly and under DDP a process holds all of a parameter. ZeRO stage 3 flattens it and gives each
process an equal stretch, padded at the end; stages 1 and 2 do so with Adam's moments only.

This file alone knows DeepSpeed's insides, those of DeepSpeed 0.19. ZeRO joins the parameters of a
group of torch's optimizer to one flat tensor, of which each process has a stretch; torch's Adam
steps on these flat tensors. ZeRO stage 0 is torch's optimizer itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim


@dataclass(frozen=True)
class Shard:
    """What this process holds of a tensor.

    Attributes:
        values: a stretch of it, flat; it may be empty.
        start: place of the first value in the flattened tensor.
        shape: shape of the whole tensor.
        spread: whether other processes hold the rest; the same in all processes.
    """

    values: Tensor
    start: int
    shape: torch.Size
    spread: bool

    def cut(self, whole: Tensor) -> Tensor:
        """The same stretch of a whole tensor, flat, in float32 and on this process's device."""
        end = self.start + self.values.numel()
        return whole.detach().flatten()[self.start : end].to(self.values.device, torch.float32)


@dataclass(frozen=True)
class Place:
    """Where this process's stretch of a parameter lies in a tensor of Adam's.

    Attributes:
        tensor: what Adam takes for a parameter.
        offset: place of the stretch in that tensor, flattened.
        start: place of the stretch in the parameter, flattened.
        numel: length of the stretch; 0 if other processes have all of the parameter.
    """

    tensor: Tensor
    offset: int
    start: int
    numel: int


def held(tensor: Tensor) -> Tensor:
    """What this process keeps of a parameter or buffer: under stage 3 a flat stretch, padded."""
    return getattr(tensor, "ds_tensor", tensor).detach()


def shard(tensor: Any, values: Tensor | None = None) -> Shard:
    """What this process holds of a parameter, or of `values` that are laid out like `held`."""
    flat = held(tensor if values is None else values).flatten()
    if not hasattr(tensor, "ds_tensor"):
        return Shard(flat, 0, tensor.shape, spread=False)
    start = dist.get_rank(tensor.ds_process_group) * flat.numel()
    real = max(0, min(flat.numel(), tensor.ds_numel - start))
    return Shard(flat[:real], start, tensor.ds_shape, spread=True)


def zero_optimizer(trainer: pl.Trainer) -> Any | None:
    """DeepSpeed's optimizer of ZeRO stages 1 to 3; None where torch's own steps."""
    optimizer = trainer.optimizers[0]
    return None if isinstance(optimizer, optim.Optimizer) else optimizer


def adam(trainer: pl.Trainer) -> optim.Optimizer:
    """The Adam that steps, on parameters or on ZeRO's flat tensors."""
    zero = zero_optimizer(trainer)
    return trainer.optimizers[0] if zero is None else zero.optimizer


def places(trainer: pl.Trainer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Place]:
    """Where the parameters lie in Adam's tensors, by the given names."""
    zero = zero_optimizer(trainer)
    if zero is None:
        return {name: Place(p, 0, 0, p.numel()) for name, p in parameters.items()}
    if _is_stage_3(zero):
        return {name: _place_in_stage_3(zero, p) for name, p in parameters.items()}
    flats = zero.single_partition_of_fp32_groups
    flat_of = {p: flats[i] for i, group in enumerate(zero.bit16_groups) for p in group}
    return {name: _place_in_stage_1_or_2(flat_of[p], p) for name, p in parameters.items()}


def _place_in_stage_1_or_2(flat: Tensor, parameter: Any) -> Place:
    # DeepSpeed's own functions for whole moments fail for all groups but the first: they look for
    # the states once, at a time when only the first group has one.
    mapping = parameter._hp_mapping
    if mapping is None:
        return Place(flat, 0, 0, 0)
    there = mapping.hp_fragment_address
    return Place(flat, there.start, mapping.lp_fragment_address.start, there.numel)


def _place_in_stage_3(zero: Any, parameter: nn.Parameter) -> Place:
    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
    part = shard(parameter)
    return Place(zero.fp32_partitioned_groups_flat[group], offset, part.start, part.values.numel())


def gradients(trainer: pl.Trainer) -> list[tuple[str, list[Tensor]]]:
    """This process's part of the averaged gradients, by the names of the optimizer's groups."""
    zero, groups = zero_optimizer(trainer), adam(trainer).param_groups
    if zero is None:
        return [(g["name"], [p.grad for p in g["params"] if p.grad is not None]) for g in groups]
    flats, names = _flat_tensors(zero), [group["name"] for group in groups]
    if _is_stage_3(zero):
        names = [names[zero.sub_group_to_group_id[i]] for i in range(len(flats))]
    if _offloads(zero):
        _wait_for_copies(zero)
        return [(names[i], [flat.grad]) for i, flat in enumerate(flats)]
    return [(name, list(zero.averaged_gradients[i])) for i, name in enumerate(names)]


def discard(zero: Any) -> None:
    """Makes ZeRO skip the coming step, as it does, in all processes alike, for a norm that is NaN.

    It also clears what ZeRO would keep of the gradient: a parameter that has no part in the next
    loss would find it there.
    """
    if _offloads(zero):
        _wait_for_copies(zero)
        norms = zero.norm_for_param_grads
        zero.norm_for_param_grads = {key: torch.full_like(norms[key], torch.nan) for key in norms}
        for flat in _flat_tensors(zero):
            flat.grad.zero_()
    else:
        first, *others = zero.averaged_gradients[0]
        zero.averaged_gradients[0] = [torch.full_like(first, torch.nan), *others]
    if _is_stage_3(zero):
        zero.grad_partitions_flat_buffer.zero_()


def release_gathered(trainer: pl.Trainer) -> None:
    """Frees the small parameters that stage 3 keeps whole, so that it gathers them anew."""
    zero = zero_optimizer(trainer)
    if zero is not None and _is_stage_3(zero):
        zero.empty_partition_cache()


@contextmanager
def whole(trainer: pl.Trainer, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole, which stage 3 spreads (collective)."""
    zero = zero_optimizer(trainer)
    if zero is None or not _is_stage_3(zero):
        yield
        return
    from deepspeed import zero as stage_3

    with stage_3.GatheredParameters([*parameters]):
        yield


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _offloads(zero: Any) -> bool:
    """Whether gradients and moments are kept in the CPU's memory."""
    return zero.offload_optimizer if _is_stage_3(zero) else zero.cpu_offload


def _wait_for_copies(zero: Any) -> None:
    """Waits until the gradients are in the CPU's memory; stage 3 has done that already."""
    if not _is_stage_3(zero):
        zero._wait_for_offload_copies()


def _flat_tensors(zero: Any) -> list[Any]:
    if _is_stage_3(zero):
        return zero.fp32_partitioned_groups_flat
    return zero.single_partition_of_fp32_groups

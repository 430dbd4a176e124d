"""Parameters and Adam's moments as whole tensors by name, the same for every engine.

One process, DDP and DeepSpeed's ZeRO 0 to 3 give and take the same tensors, so that a training can
resume with another engine or another number of processes.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esmfold_peft.runs.checkpoint import AdamMoments
from esmfold_peft.training.engines.zero import Place, Shard, adam, places, shard, zero_optimizer

_BUCKET = 2**26
"""Numbers that a collective handles at a time: 256 MiB."""


def read_parameters(trainer: pl.Trainer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole parameters or buffers by name, trained or frozen; see `assemble` (collective)."""
    shards = {name: shard(parameter) for name, parameter in parameters.items()}
    return assemble(shards, trainer.strategy.root_device)


def read_adam(
    trainer: pl.Trainer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, AdamMoments]:
    """Adam's moments by name, of the parameters that have made a step (collective).

    They are whole and on the CPU in process 0; other processes get nothing.
    """
    state = adam(trainer).state
    # Every process has made the same steps and has part of every flat tensor: all find the same.
    found = {n: place for n, place in places(trainer, parameters).items() if place.tensor in state}
    spread = zero_optimizer(trainer) is not None

    def moment(name: str, key: str) -> Shard:
        place = found[name]
        values = state[place.tensor][key].flatten()[place.offset : place.offset + place.numel]
        return Shard(values, place.start, shard(parameters[name]).shape, spread)

    first, second = (
        assemble({name: moment(name, key) for name in found}, trainer.strategy.root_device)
        for key in ("exp_avg", "exp_avg_sq")
    )
    return {
        name: AdamMoments(first[name], second[name], int(state[found[name].tensor]["step"]))
        for name in first
    }


def write_adam(
    trainer: pl.Trainer, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, AdamMoments]
) -> None:
    """Gives Adam these moments, the same in every process, as if it had come to them here.

    `parameters` are all that the optimizer has. ZeRO joins them to flat tensors with one count of
    steps each, the highest of its members. A member without moments then starts from zero.
    """
    members: dict[Tensor, list[tuple[Place, AdamMoments]]] = defaultdict(list)
    for name, place in places(trainer, parameters).items():
        members[place.tensor] += [(place, moments[name])] if name in moments else []
    optimizer = adam(trainer)
    for tensor, known in members.items():
        optimizer.state.pop(tensor, None)
        if known:
            optimizer.state[tensor] = _adam_state(tensor, known)


def _adam_state(tensor: Tensor, members: list[tuple[Place, AdamMoments]]) -> dict[str, Tensor]:
    """What torch's Adam keeps of a tensor with these members."""
    count = float(max(moments.step for _, moments in members))
    # A fused Adam counts on the parameter's device.
    state = {"step": torch.tensor(count, device=tensor.device)}
    for key in ("exp_avg", "exp_avg_sq"):
        flat = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        for place, moments in members:
            whole = getattr(moments, key).flatten()
            stretch = whole[place.start : place.start + place.numel]
            flat[place.offset : place.offset + place.numel] = stretch.to(flat)
        state[key] = flat.view(tensor.shape)
    return state


def assemble(shards: Mapping[str, Shard], device: torch.device) -> dict[str, Tensor]:
    """Makes tensors whole; every process gives the same names (collective).

    `device` is that of this process's collectives. Process 0 gets copies on the CPU, floating point
    numbers in float32; the others get nothing.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole = {}
    for name, part in shards.items():
        if first and not part.spread:
            values = part.values.float() if part.values.is_floating_point() else part.values
            whole[name] = values.cpu().clone().view(part.shape)
    for bucket in _buckets({name: part for name, part in shards.items() if part.spread}):
        numbers = _reduced(list(bucket.values()), device)
        if first:
            pieces = numbers.cpu().split([part.shape.numel() for part in bucket.values()])
            for (name, part), piece in zip(bucket.items(), pieces, strict=True):
                whole[name] = piece.clone().view(part.shape)
    return {name: whole[name] for name in shards if name in whole}


def _buckets(shards: Mapping[str, Shard]) -> Iterator[dict[str, Shard]]:
    """Groups tensors so that few are whole on a device at the same time."""
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
    """The whole tensors one after another, flat, in process 0; meaningless in others."""
    sizes = [part.shape.numel() for part in shards]
    buffer = torch.zeros(sum(sizes), device=device)
    for part, place in zip(shards, buffer.split(sizes), strict=True):
        place[part.start : part.start + part.values.numel()] = part.values
    # Every number comes from one process, and the others add 0. As integers that is exact for
    # every bit, that of -0.0 too.
    dist.reduce(buffer.view(torch.int32), dst=0)
    return buffer

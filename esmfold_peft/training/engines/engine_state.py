"""Parameters and Adam's moments as whole tensors by name, whatever engine trains.

One process, DDP and DeepSpeed's ZeRO 0 to 3 give and take the same tensors, so that a training can
go on with another engine or another number of processes.
"""

from collections import defaultdict
from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from esmfold_peft.runs.adam_moments import AdamMoments
from esmfold_peft.training.engines.shards import Shard, assemble, shard
from esmfold_peft.training.engines.zero import Place, adam, places, zero_optimizer


def read_parameters(trainer: pl.Trainer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole parameters (collective).

    Args:
        trainer: whose strategy is set up.
        parameters: by name: trained ones, frozen ones or buffers.

    Returns:
        In process 0 copies on the CPU, floating point numbers in float32; in others nothing.
    """
    shards = {name: shard(parameter) for name, parameter in parameters.items()}
    return assemble(shards, trainer.strategy.root_device)


def read_adam(
    trainer: pl.Trainer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, AdamMoments]:
    """What Adam remembers (collective).

    Args:
        trainer: whose strategy is set up.
        parameters: trained ones, by name.

    Returns:
        In process 0 whole moments on the CPU of the parameters that have made a step; in others
        nothing.
    """
    state = adam(trainer).state
    # Every process has made the same steps and has part of every flat tensor: all find the same.
    found = {n: place for n, place in places(trainer, parameters).items() if place.tensor in state}
    first, second = (
        assemble(
            {n: _moment(trainer, place, key, parameters[n]) for n, place in found.items()},
            trainer.strategy.root_device,
        )
        for key in ("exp_avg", "exp_avg_sq")
    )
    return {
        name: AdamMoments(first[name], second[name], int(state[found[name].tensor]["step"]))
        for name in first
    }


def _moment(trainer: pl.Trainer, place: Place, key: str, parameter: nn.Parameter) -> Shard:
    flat = adam(trainer).state[place.tensor][key].flatten()
    values = flat[place.offset : place.offset + place.numel]
    shape = shard(parameter).shape
    return Shard(values, place.start, shape, spread=zero_optimizer(trainer) is not None)


def write_adam(
    trainer: pl.Trainer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, AdamMoments],
) -> None:
    """Lets Adam go on from given moments, as if it had come to them here.

    ZeRO joins parameters to flat tensors, with one count of steps each: the highest of its members.
    A member without moments then starts from zero.

    Args:
        trainer: whose strategy is set up.
        parameters: all that the optimizer has, by name.
        moments: by the same names, the same in every process; one that is absent has made no step.
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
    """What torch's Adam keeps of a tensor that these are in."""
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

"""The gradient of the coming optimizer step: its norms, and leaving the step out.

For `on_before_optimizer_step`, when the gradient is summed over micro-batches, averaged over
processes and not yet clipped.
"""

from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn, optim

from esmfold_peft.training import zero
from esmfold_peft.training.zero import adam, zero_optimizer


def step_is_due(trainer: pl.Trainer) -> bool:
    """Whether the optimizer steps after this micro-batch.

    With DeepSpeed Lightning calls `on_before_optimizer_step` at every micro-batch.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy):
        return True
    engine: Any = strategy.deepspeed_engine
    return engine.is_gradient_accumulation_boundary()


def gradient_norms(trainer: pl.Trainer) -> dict[str, float]:
    """L2 norms of the gradient over all processes (collective).

    Returns:
        By the `name` of the optimizer's groups, those of the same name together, and their `total`.
        A gradient that is not finite in one process makes norms not finite in all.
    """
    members, device = defaultdict(list), trainer.strategy.root_device
    for name, tensors in _gradients(trainer):
        # Offloaded gradients have their norm on the CPU, and so have groups without any.
        members[name].append(nn.utils.get_total_norm(tensors).to(device))
    # In float64 the square of every norm that float32 can hold is finite.
    squares = torch.stack(
        [torch.stack(norms).double().square().sum() for norms in members.values()]
    )
    if zero_optimizer(trainer) is not None:
        dist.all_reduce(squares)
    norms = torch.cat((squares, squares.sum(0, keepdim=True))).sqrt().tolist()
    return dict(zip((*members, "total"), norms, strict=True))


def discard_step(trainer: pl.Trainer) -> None:
    """Lets the coming optimizer step change neither parameters nor Adam's moments and count.

    The learning rate and Lightning's count of steps go on. Every process must call it.
    """
    sharded = zero_optimizer(trainer)
    if sharded is not None:
        zero.discard(sharded)
    elif isinstance(trainer.strategy, DeepSpeedStrategy):
        _forget_in_step(adam(trainer))
    else:
        _forget(adam(trainer))


def _forget(optimizer: optim.Optimizer) -> None:
    """Takes the gradients away; Adam passes over parameters without one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _forget_in_step(optimizer: optim.Optimizer) -> None:
    """Does so when the step comes: ZeRO stage 0 clips before it, and fails without gradients."""
    stepping: Any = optimizer
    step = stepping.step

    def left_out(*_: object) -> None:
        stepping.step = step
        _forget(optimizer)

    stepping.step = left_out


def _gradients(trainer: pl.Trainer) -> list[tuple[str, list[Tensor]]]:
    """What this process has of the gradients, by the names of the optimizer's groups."""
    sharded = zero_optimizer(trainer)
    if sharded is not None:
        return zero.gradients(sharded)
    return [
        (group["name"], [p.grad for p in group["params"] if p.grad is not None])
        for group in adam(trainer).param_groups
    ]

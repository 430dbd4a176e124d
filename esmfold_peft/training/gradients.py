"""The gradient of an optimizer step: summed over micro-batches, measured, applied."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from jaxtyping import Float
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from esmfold_peft.training.engines import zero
from esmfold_peft.training.engines.zero import adam, zero_optimizer


class GradientSum:
    """Adds up the gradients that micro-batches have at some tensors, in float32.

    Micro-batches take their gradients by `torch.autograd.grad`, which no engine sees. One backward
    pass then hands their sum to the engine, so that processes exchange it only once.

    Args:
        track: of all chains; a micro-batch has some of its rows.
        tensors: shared by all micro-batches: parameters, or tensors made from them once a step.
    """

    def __init__(self, track: Float[Tensor, "b n c"], tensors: Sequence[Tensor]) -> None:
        self._tensors = (track, *tensors)
        self._sums: list[Tensor | None] = [None] * len(self._tensors)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters among the tensors that have a gradient."""
        return [t for t, _ in self._found() if isinstance(t, nn.Parameter)]

    def add(
        self, place: slice, of_track: Tensor | None, gradients: Sequence[Tensor | None]
    ) -> None:
        """Adds the gradients of a micro-batch; None where the loss does not depend on a tensor.

        `place` are its chains' rows in the track. The padding of `of_track` may have been cut.
        `gradients` are those of the shared tensors, in their order.
        """
        if of_track is not None:
            if self._sums[0] is None:
                self._sums[0] = torch.zeros_like(self._tensors[0], dtype=torch.float32)
            self._sums[0][place, : of_track.shape[1]] = of_track
        for number, gradient in enumerate(gradients, 1):
            known = self._sums[number]
            if gradient is not None and known is None:
                # Copied: the next replay of a CUDA graph overwrites its results.
                self._sums[number] = gradient.to(torch.float32, copy=True)
            elif gradient is not None and known is not None:
                known += gradient

    def as_loss(self) -> Tensor:
        """A scalar whose backward pass gives the tensors these gradients; its value is 0."""
        tensors, sums = zip(*self._found(), strict=True)
        return _WithGradients.apply(sums, *tensors)

    def _found(self) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self._tensors, self._sums, strict=True)
        return [(tensor, own) for tensor, own in pairs if own is not None]


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:  # pyright: ignore
        ctx.gradients = gradients
        return gradients[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        # No engine scales a loss here: there is no float16, and one backward pass a step.
        return None, *ctx.gradients


def gradient_norms(trainer: pl.Trainer) -> dict[str, Tensor]:
    """L2 norms of the gradient over all processes (collective), before clipping, in float64.

    There is one for each `name` among the optimizer's groups, and the `total`. A gradient that is
    not finite in one process makes the norms not finite in all.
    """
    members, device = defaultdict(list), trainer.strategy.root_device
    for name, tensors in zero.gradients(trainer):
        # Offloaded gradients and groups without any have their norm on the CPU.
        members[name].append(nn.utils.get_total_norm(tensors).to(device))
    # In float64 the square of every norm that float32 can hold is finite.
    squares = torch.stack(
        [torch.stack(norms).double().square().sum() for norms in members.values()]
    )
    if zero_optimizer(trainer) is not None:
        dist.all_reduce(squares)
    norms = torch.cat((squares, squares.sum(0, keepdim=True))).sqrt()
    return dict(zip((*members, "total"), norms.unbind(), strict=True))


def apply_gradient(trainer: pl.Trainer, optimizer: Any, total: Tensor, clip_norm: float) -> None:
    """Clips the gradient and steps Adam (collective); a NaN changes no parameter and no moment.

    ZeRO clips by itself, and waits for the device to know whether the gradient is finite. With the
    other engines the host does not wait. Lightning's `optimizer` counts the steps; `total` is the
    norm of the gradient; a `clip_norm` of 0 does not clip.
    """
    sharded = zero_optimizer(trainer)
    if sharded is not None:
        if not total.isfinite():
            zero.discard(sharded)
    else:
        stepping: Any = adam(trainer)
        # As PyTorch's loss scaler does: the fused Adam skips a step with this set.
        stepping.found_inf = (~total.isfinite()).float()
        if clip_norm and not isinstance(trainer.strategy, DeepSpeedStrategy):
            parameters = [p for group in stepping.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, total.float())
    optimizer.step()
    optimizer.zero_grad()

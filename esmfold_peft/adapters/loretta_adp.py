"""LoReTTA-adp: bottlenecks of tensor trains behind matrices (Yang et al. 2024).

y + s · (tanh(y · Down + b_down) · Up + b_up) for the outputs y of each adapted matrix. As published
it stands behind the attention block and behind the feed-forward block of every layer: targets
output and fc2. It is not linear, so it cannot be merged.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    AdaptedModel,
    Adapter,
    AttentionShape,
    Factors,
    Group,
    MergedPart,
    per_token,
    uniform,
)
from esmfold_peft.adapters.loretta_rep import longest_bond, set_trains, trains
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.errors import UserError


class LoReTTAAdp(Adapter):
    """A bottleneck of width r for every layer l and adapted matrix, o its outputs.

    Attributes:
        a0_output, ...: cores of Down (o, r), as LoReTTA-rep's A.
        b0_output, ...: cores of Up (r, o), as LoReTTA-rep's B.
        down_output, ...: b_down (l, r), zero at the start; with init "paper" uniform in ±1/√r.
        up_output, ...: b_up (l, o), zero at the start; with init "paper" uniform in ±1/√o.
    """

    may_stay_zero: ClassVar[tuple[str, ...]] = ("down", "up")

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            width = shape.fan_out(target)
            set_trains(self, target, width, width)
            for name, size in (("down", config.rank), ("up", width)):
                bound = size**-0.5 if config.init == "paper" else 0.0
                self.set_factor(name, target, uniform(bound, shape.layers, size))

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: the bonds; a bottleneck may have any width."""
        fans = [self.shape.fan_out(target) for target in self.targets]
        return {"tt_rank": max(longest_bond(fan, self.config.rank) for fan in fans)}

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`: Down, b_down, Up and b_up of each member, scale in the last two."""
        return tuple(
            tuple(t.to(dtype) for target in self.members(group) for t in self._bottleneck(target))
            for group in self.groups()
        )

    def _bottleneck(self, target: Target) -> tuple[Tensor, ...]:
        assert self.scale is not None
        width = self.shape.fan_out(target)
        down, up = trains(self, target, width, width)
        b_down, b_up = self.factor("down", target), self.factor("up", target)
        return down, b_down, self.scale * up, self.scale * b_up

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`."""
        outputs = list(y.unflatten(-1, (len(group), -1)).unbind(1))
        for n, target in enumerate(self.members(group)):
            i = group.index(target)
            outputs[i] = outputs[i] + _added(outputs[i], *factors[4 * n : 4 * n + 4])
        return torch.stack(outputs, dim=1)

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`: it cannot be merged."""
        raise UserError("loretta_adp cannot be merged: it is not linear; use it unmerged")


def _added(
    y: Float[Tensor, "t o"],
    down: Float[Tensor, "*b o r"],
    b_down: Float[Tensor, "*b r"],
    up: Float[Tensor, "*b r o"],
    b_up: Float[Tensor, "*b o"],
) -> Float[Tensor, "t o"]:
    """The output of a bottleneck; each of b sequences has its own, its tokens in one block."""
    tokens = len(y)
    blocks = y.unflatten(0, (-1, tokens // (len(down) if down.ndim == 3 else 1)))
    inner = torch.tanh((blocks @ down).flatten(0, 1) + per_token(b_down, tokens))
    outer = inner.unflatten(0, blocks.shape[:2]) @ up
    return outer.flatten(0, 1) + per_token(b_up, tokens)

"""LoReTTA-adp: bottlenecks behind matrices, made of tensor trains (Yang et al. 2024).

y + s · (tanh(y · Down + b_down) · Up + b_up) for the outputs y of each adapted matrix. As published
it stands behind the attention block and behind the feed-forward block of every layer: targets
output and fc2. It is not linear, so that it cannot be merged.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    Adaptation,
    AdaptedModel,
    Adapter,
    AttentionShape,
    Group,
    MergedPart,
    by_layer,
    per_token,
)
from esmfold_peft.adapters.loretta_rep import longest_bond, set_trains, trains
from esmfold_peft.config import AdapterConfig
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
                self.set_factor(
                    name, target, torch.empty(shape.layers, size).uniform_(-bound, bound)
                )

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: the bonds; a bottleneck may be as wide as one likes."""
        fans = [self.shape.fan_out(target) for target in self.targets]
        return {"tt_rank": max(longest_bond(fan, self.config.rank) for fan in fans)}

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: Down, b_down, Up and b_up of each target, scale in the last two."""
        assert self.scale is not None
        folded: list[Tensor] = []
        for target in self.targets:
            width = self.shape.fan_out(target)
            down, up = trains(self, target, width, width)
            folded += [down, self.factor("down", target)]
            folded += [self.scale * up, self.scale * self.factor("up", target)]
        return tuple(tensor.to(dtype) for tensor in folded)

    def adaptation(self, folded: tuple[Tensor, ...]) -> Adaptation:
        """See `Adapter`."""
        split = [by_layer(tensor, self.shape.layers) for tensor in folded]
        bottlenecks = {target: split[4 * i : 4 * i + 4] for i, target in enumerate(self.targets)}
        return _Bottlenecks(bottlenecks)

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`: it cannot be merged.

        Raises:
            UserError: always.
        """
        raise UserError("loretta_adp cannot be merged: it is not linear")


class _Bottlenecks(Adaptation):
    """Down, b_down, Up and b_up of every target, one tensor a layer."""

    def __init__(self, bottlenecks: dict[str, list[tuple[Tensor, ...]]]) -> None:
        self.bottlenecks = bottlenecks

    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """See `Adaptation`."""
        outputs = list(y.unflatten(-1, (len(group), -1)).unbind(1))
        for i, target in enumerate(group):
            if target in self.bottlenecks:
                factors = [tensors[layer] for tensors in self.bottlenecks[target]]
                outputs[i] = outputs[i] + _bottleneck(outputs[i], *factors)
        return torch.stack(outputs, dim=1)


def _bottleneck(
    y: Float[Tensor, "t o"],
    down: Float[Tensor, "*b o r"],
    b_down: Float[Tensor, "*b r"],
    up: Float[Tensor, "*b r o"],
    b_up: Float[Tensor, "*b o"],
) -> Float[Tensor, "t o"]:
    """What a bottleneck adds; each of b sequences has its own, its tokens in one block."""
    tokens = len(y)
    blocks = y.unflatten(0, (-1, tokens // (len(down) if down.ndim == 3 else 1)))
    inner = torch.tanh((blocks @ down).flatten(0, 1) + per_token(b_down, tokens))
    outer = inner.unflatten(0, blocks.shape[:2]) @ up
    return outer.flatten(0, 1) + per_token(b_up, tokens)

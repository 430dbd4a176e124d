"""IA³: activations multiplied by learned vectors (Liu et al. 2022, arXiv 2205.05638).

The outputs of a matrix, bias included, are multiplied by a vector; for fc2 its inputs are, which
are the activations inside the feed-forward block. As published: targets key, value and fc2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    FC2,
    AdaptedModel,
    Adapter,
    AttentionShape,
    Factors,
    Group,
    MergedPart,
    per_token,
    wide,
)
from esmfold_peft.config import AdapterConfig


class IA3(Adapter):
    """A vector for every layer l and adapted matrix.

    Attributes:
        l_key, ...: the factors of the outputs (l, o), 1 at the start.
        l_fc2: the factors of fc2's inputs (l, i), 1 at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            width = shape.fan_in(target) if target == "fc2" else shape.fan_out(target)
            self.set_factor("l", target, torch.ones(shape.layers, width))

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`: one vector (L, w)."""
        return tuple((self.side_by_side("l", group, 1.0).to(dtype),) for group in self.groups())

    def change_input(self, group: Group, factors: Factors, x: Tensor) -> Tensor:
        """See `Adapter`."""
        return x * per_token(factors[0], len(x)) if group == FC2 else x

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`."""
        y = y if group == FC2 else y * per_token(factors[0], len(y))
        return y.unflatten(-1, (len(group), -1))

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`."""
        for layer, target in self.matrices():
            vector = self.factor("l", target)[layer]
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            if target == "fc2":
                yield MergedPart(layer, target, weight * vector, bias)
            else:
                yield MergedPart(layer, target, weight * vector[:, None], bias * vector)

"""IA³: activations multiplied by learned vectors (Liu et al. 2022, arXiv 2205.05638).

The outputs of a matrix, bias included, are multiplied by a vector; for fc2 its inputs are, which
are the activations inside the feed-forward block. As published: targets key, value and fc2.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    FC2,
    Adaptation,
    AdaptedModel,
    Adapter,
    AttentionShape,
    Group,
    MergedPart,
    by_layer,
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

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: one vector (L, w) for each adapted group."""
        return tuple(self.side_by_side("l", group, 1.0).to(dtype) for group in self.groups())

    def adaptation(self, folded: tuple[Tensor, ...]) -> Adaptation:
        """See `Adapter`."""
        vectors = (by_layer(tensor, self.shape.layers) for tensor in folded)
        return _Gains(dict(zip(self.groups(), vectors, strict=True)))

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`."""
        for layer, target in self.matrices():
            vector = self.factor("l", target)[layer]
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            if target == "fc2":
                yield MergedPart(layer, target, weight * vector, bias)
            else:
                yield MergedPart(layer, target, weight * vector[:, None], bias * vector)


class _Gains(Adaptation):
    """One vector for each layer and adapted group."""

    def __init__(self, vectors: dict[Group, tuple[Tensor, ...]]) -> None:
        self.vectors = vectors

    def input(self, layer: int, group: Group, x: Float[Tensor, "t i"]) -> Float[Tensor, "t i"]:
        """See `Adaptation`."""
        if group != FC2 or group not in self.vectors:
            return x
        return x * per_token(self.vectors[group][layer], len(x))

    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """See `Adaptation`."""
        if group != FC2 and group in self.vectors:
            y = y * per_token(self.vectors[group][layer], len(y))
        return y.unflatten(-1, (len(group), -1))

"""BitFit: only biases are trained (Ben Zaken et al. 2021, arXiv 2106.10199).

What is trained is the change of each bias, so that the language model's own stay as they are. With
`norms` the biases of a layer's two layer norms change as well: all 11 d biases of a layer.
"""

from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    FC1,
    INPUTS,
    TARGETS,
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
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.errors import UserError

NORMS: dict[str, Group] = {"attention": INPUTS, "feed_forward": FC1}
"""The layer norms of a layer and the matrices that read them."""


class BitFit(Adapter):
    """A vector for every layer l and adapted matrix, and with `norms` two more.

    Attributes:
        bias_query, ...: changes of the biases (l, o), zero at the start.
        norm_attention: changes of the biases of the norm before the attention (l, d).
        norm_feed_forward: the same of the norm before the feed-forward block.
    """

    may_stay_zero: ClassVar[tuple[str, ...]] = ("bias", *(f"norm_{name}" for name in NORMS))

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            self.set_factor("bias", target, torch.zeros(shape.layers, shape.fan_out(target)))
        if config.norms:
            for name in NORMS:
                zeros = torch.zeros(shape.layers, shape.width)
                self.register_parameter(f"norm_{name}", nn.Parameter(zeros))

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """See `Adapter`: a norm is adapted only together with all matrices that read it."""
        super().check(config)
        missing = [target for target in TARGETS if target not in config.targets]
        if config.norms and missing:
            raise UserError(f"adapter.norms: needs all six targets, {missing[0]} is missing")

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: (L, w) for each adapted group, and (L, d) for each norm."""
        folded = [self.side_by_side("bias", group, 0.0) for group in self.groups()]
        if self.config.norms:
            folded += [self._norm(name) for name in NORMS]
        return tuple(tensor.to(dtype) for tensor in folded)

    def adaptation(self, folded: tuple[Tensor, ...]) -> Adaptation:
        """See `Adapter`."""
        split = [by_layer(tensor, self.shape.layers) for tensor in folded]
        groups = self.groups()
        outputs = dict(zip(groups, split, strict=False))
        return _Shifts(dict(zip(NORMS.values(), split[len(groups) :], strict=False)), outputs)

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`: a norm's change goes through the matrix into its bias."""
        for layer, target in self.matrices():
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            bias = bias + self.factor("bias", target)[layer]
            if self.config.norms:
                bias = bias + self._through(layer, target, weight)
            yield MergedPart(layer, target, weight, bias)

    def _norm(self, name: str) -> Float[Tensor, "l d"]:
        return wide(cast(Tensor, getattr(self, f"norm_{name}")))

    def _through(
        self, layer: int, target: Target, weight: Float[Tensor, "o i"]
    ) -> Float[Tensor, "o"]:
        """What the change of the norm that a matrix reads adds to its outputs."""
        for name, group in NORMS.items():
            if target in group:
                return weight @ self._norm(name)[layer]
        return weight.new_zeros(len(weight))


class _Shifts(Adaptation):
    """Vectors to add to inputs and outputs of groups, one for each layer."""

    def __init__(
        self, inputs: dict[Group, tuple[Tensor, ...]], outputs: dict[Group, tuple[Tensor, ...]]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs

    def input(self, layer: int, group: Group, x: Float[Tensor, "t i"]) -> Float[Tensor, "t i"]:
        """See `Adaptation`."""
        if group not in self.inputs:
            return x
        return x + per_token(self.inputs[group][layer], len(x))

    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """See `Adaptation`."""
        if group in self.outputs:
            y = y + per_token(self.outputs[group][layer], len(y))
        return y.unflatten(-1, (len(group), -1))

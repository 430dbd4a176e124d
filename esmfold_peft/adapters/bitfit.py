"""BitFit: only biases are trained (Ben Zaken et al. 2021, arXiv 2106.10199).

The change of each bias is trained, and the language model's own biases stay as they are. With
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
from esmfold_peft.errors import UserError

NORMS: dict[Group, str] = {INPUTS: "attention", FC1: "feed_forward"}
"""Matrices that read a layer norm, and the norm's name."""


class BitFit(Adapter):
    """A vector for every layer l and adapted matrix, and with `norms` two more.

    Attributes:
        bias_query, ...: changes of the biases (l, o), zero at the start.
        norm_attention: changes of the biases of the norm before the attention (l, d).
        norm_feed_forward: the same of the norm before the feed-forward block.
    """

    may_stay_zero: ClassVar[tuple[str, ...]] = ("bias", "norm_attention", "norm_feed_forward")

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            self.set_factor("bias", target, torch.zeros(shape.layers, shape.fan_out(target)))
        if config.norms:
            for name in NORMS.values():
                zeros = torch.zeros(shape.layers, shape.width)
                self.register_parameter(f"norm_{name}", nn.Parameter(zeros))

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """See `Adapter`: a norm is adapted only together with all matrices that read it."""
        super().check(config)
        missing = [target for target in TARGETS if target not in config.targets]
        if config.norms and missing:
            raise UserError(f"adapter.norms: needs all six targets, {missing[0]} is missing")

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`: (L, w), and (L, d) of the norm that the group reads if it is adapted."""
        return tuple(
            tuple(
                vector.to(dtype)
                for vector in (self.side_by_side("bias", group, 0.0), self._norm(group))
                if vector is not None
            )
            for group in self.groups()
        )

    def change_input(self, group: Group, factors: Factors, x: Tensor) -> Tensor:
        """See `Adapter`."""
        _, *norm = factors
        return x + per_token(norm[0], len(x)) if norm else x

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`."""
        return (y + per_token(factors[0], len(y))).unflatten(-1, (len(group), -1))

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`: a norm's change goes through the matrix into its bias."""
        group_of = {target: group for group in self.groups() for target in group}
        for layer, target in self.matrices():
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            bias = bias + self.factor("bias", target)[layer]
            if (norm := self._norm(group_of[target])) is not None:
                bias = bias + weight @ norm[layer]
            yield MergedPart(layer, target, weight, bias)

    def _norm(self, group: Group) -> Float[Tensor, "l d"] | None:
        """The change of the norm that a group reads; None if it changes or reads none."""
        if not self.config.norms or group not in NORMS:
            return None
        return wide(cast(Tensor, getattr(self, f"norm_{NORMS[group]}")))

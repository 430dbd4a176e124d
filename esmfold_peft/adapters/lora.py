"""LoRA: a low-rank update of its own for every matrix (Hu et al. 2021, arXiv 2106.09685).

ΔW = s · B · A for each layer and matrix, B zero at the start. The factors of one matrix in all
layers are one parameter, so that the optimizer sees two tensors for a target, not for a layer.
"""

import torch

from esmfold_peft.adapters.base import AttentionShape, uniform
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import AdapterConfig, Target


class LoRA(LowRankAdapter):
    """Two factors for every layer l and adapted matrix, i to o.

    Attributes:
        a_query, ...: A of each matrix, shape (l, r, i), uniform in ±1/√i at the start.
        b_query, ...: B of each matrix, shape (l, o, r), zero at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            fan_in, fan_out = shape.fan_in(target), shape.fan_out(target)
            self.set_factor("a", target, uniform(fan_in**-0.5, shape.layers, config.rank, fan_in))
            self.set_factor("b", target, torch.zeros(shape.layers, fan_out, config.rank))

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: the rank of a matrix; where A is frozen, its rows must span the inputs."""
        useful = [
            min(self.shape.fan_in(target), self.shape.fan_out(target))
            if self.get_parameter(f"a_{target}").requires_grad
            else self.shape.fan_in(target)
            for target in self.targets
        ]
        return {"rank": max(useful)}

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        return {
            target: Pair(
                self.factor("a", target).transpose(1, 2),
                self.scale * self.factor("b", target).transpose(1, 2),
            )
            for target in self.targets
        }


class LoRAFA(LoRA):
    """LoRA-FA: A stays as it was drawn (Zhang et al. 2023, arXiv 2308.03303).

    Half of LoRA's parameters train. Of the adapter's input only x·Aᵀ, r numbers a token, is kept
    for the backward pass.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            self.get_parameter(f"a_{target}").requires_grad_(False)

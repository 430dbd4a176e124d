"""VeRA: two trained vectors between frozen random matrices (Kopiczko et al. 2023, 2310.11454).

ΔW = diag(b) · B · diag(d) · A with A and B drawn once for the whole model. They are kept with the
adapter: a file that named a seed instead would depend on the generator of a PyTorch version.
"""

from typing import cast

import torch
from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape, Group, uniform, wide
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import AdapterConfig, Target

D_INITIAL = 0.1


class VeRA(LowRankAdapter):
    """Two vectors for every layer l and adapted matrix, i to o.

    Attributes:
        projection_a: A (r, widest i), frozen, uniform with variance 2/i; matrices with fewer inputs
            take its first columns.
        projection_b: B (widest o, r), frozen, uniform with variance 2/r; likewise its first rows.
        d_query, ...: d (l, r), 0.1 at the start.
        b_query, ...: b (l, o), zero at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        rank = config.rank
        widest_in = max(shape.fan_in(target) for target in self.targets)
        widest_out = max(shape.fan_out(target) for target in self.targets)
        self.register_buffer("projection_a", uniform((6 / widest_in) ** 0.5, rank, widest_in))
        self.register_buffer("projection_b", uniform((6 / rank) ** 0.5, widest_out, rank))
        for target in self.targets:
            self.set_factor("d", target, torch.full((shape.layers, rank), D_INITIAL))
            self.set_factor("b", target, torch.zeros(shape.layers, shape.fan_out(target)))

    def shares_input(self, group: Group) -> bool:
        """See `LowRankAdapter`: A is the same for all matrices with equally many inputs."""
        return True

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        a, b = wide(cast(Tensor, self.projection_a)), wide(cast(Tensor, self.projection_b))
        pairs = {}
        for target in self.targets:
            fan_in, fan_out = self.shape.fan_in(target), self.shape.fan_out(target)
            left, right = self.factor("d", target), self.factor("b", target)
            g = left[:, :, None] * b[:fan_out].T * right[:, None]
            pairs[target] = Pair(a[:, :fan_in].T[None], g)
        return pairs

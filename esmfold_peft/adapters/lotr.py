"""LoTR: all updates as one Tucker-2 tensor (Bershatsky et al. 2024, arXiv 2402.01376)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from esmfold_peft.adapters.base import ATTENTION, AttentionShape, Group, uniform, wide
from esmfold_peft.adapters.shared_factors import SharedFactorAdapter
from esmfold_peft.config import AdapterConfig


class LoTR(SharedFactorAdapter):
    """x·ΔW = s · x · rhs · mid · lhs, in the authors' names.

    Attributes:
        rhs: (d, r), uniform in ±1/√d as LoRA's A; with init "paper" standard normal.
        mid: (L, matrices, r, r), zero at the start.
        lhs: (r, d), normal of variance 1/r, so that the first step is as large as LoRA's; with init
            "paper" standard normal.
    """

    allowed: ClassVar[Group] = ATTENTION

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        width, rank = shape.width, config.rank
        paper = config.init == "paper"
        self.rhs = nn.Parameter(
            torch.randn(width, rank) if paper else uniform(width**-0.5, width, rank)
        )
        self.mid = nn.Parameter(torch.zeros(shape.layers, len(self.targets), rank, rank))
        self.lhs = nn.Parameter(torch.randn(rank, width) * (1.0 if paper else rank**-0.5))

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `SharedFactorAdapter`."""
        return wide(self.rhs), wide(self.mid), wide(self.lhs)

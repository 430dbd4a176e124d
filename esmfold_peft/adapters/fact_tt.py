"""FacT-TT: all updates as one tensor train (Jie & Deng 2023, arXiv 2212.03145).

The authors scale by a constant (scaling "constant") and adapt all twelve d x d blocks of a layer
(all six targets).
"""

import torch
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape, uniform, wide
from esmfold_peft.adapters.shared_factors import SharedFactorAdapter
from esmfold_peft.config import AdapterConfig


class FacTTT(SharedFactorAdapter):
    """x·ΔW = s · x · U · Σ · V.

    Attributes:
        u: U (d, r), uniform in ±1/√d.
        sigma: Σ (L, blocks, r, r), uniform in ±1/√r; those of fc2, which the authors hold as one
            layer of 4 r inputs, in ±1/(2√r).
        v: V (r, d), zero at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        width, rank = shape.width, config.rank
        blocks = self.blocks(*self.targets)
        self.u = nn.Parameter(uniform(width**-0.5, width, rank))
        sigma = uniform(rank**-0.5, shape.layers, blocks, rank, rank)
        if "fc2" in self.targets:  # the last of them
            sigma[:, -self.blocks("fc2") :] /= 2
        self.sigma = nn.Parameter(sigma)
        self.v = nn.Parameter(torch.zeros(rank, width))

    def useful_ranks(self) -> dict[str, int]:
        """See `SharedFactorAdapter`: where Σ is frozen, one wider than d reaches further."""
        return super().useful_ranks() if self.sigma.requires_grad else {}

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `SharedFactorAdapter`."""
        return wide(self.u), wide(self.sigma), wide(self.v)

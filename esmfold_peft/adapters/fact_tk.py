"""FacT-TK: all updates as one Tucker-3 tensor (Jie & Deng 2023, arXiv 2212.03145).

Scale and blocks are those of FacT-TT.

DISCREPANCY: a block of d x d has one slice Σ, as in the paper, in fc1 and fc2 too. The authors'
program reshapes the four slices of fc1 from (r, r, 4) to (r, 4 r): column m of block k is column
(k r + m) // 4 of slice (k r + m) % 4, so that a block mixes all four, and for fc2 it transposes
them besides. The paper is followed: there a core is the third mode's for every r.
"""

import torch
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape, uniform, wide
from esmfold_peft.adapters.shared_factors import SharedFactorAdapter
from esmfold_peft.config import AdapterConfig


class FacTTK(SharedFactorAdapter):
    """x·ΔW = s · x · U · Σ · V with Σ = Σ_c P[l, b, c] · C[:, :, c].

    Attributes:
        u: U (d, r), uniform in ±1/√d.
        core: C (r, r, r), Xavier uniform.
        p: P (L, blocks, r), Xavier uniform as the matrix (r, L · blocks).
        v: V (r, d), zero at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        width, rank = shape.width, config.rank
        blocks = self.blocks(*self.targets)
        self.u = nn.Parameter(uniform(width**-0.5, width, rank))
        self.core = nn.Parameter(uniform(3**0.5 / rank, rank, rank, rank))
        bound = (6 / (rank + shape.layers * blocks)) ** 0.5
        self.p = nn.Parameter(uniform(bound, shape.layers, blocks, rank))
        self.v = nn.Parameter(torch.zeros(rank, width))

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: r is the rank of U and V, and of P; a frozen C has no such limit."""
        if not self.core.requires_grad:
            return {}
        return {"rank": max(self.shape.width, self.shape.layers * self.p.shape[1])}

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `SharedFactorAdapter`."""
        cores = torch.einsum("ijc,lbc->lbij", wide(self.core), wide(self.p))
        return wide(self.u), cores, wide(self.v)

"""Adapters whose outer factors are shared by all layers and matrices, with a small core for each.

x·ΔW = s · x · U · Σ · V with U (d, r) and V (r, d) for the whole model and Σ (r, r) for each block:
the Tucker-2 and tensor-train forms of a stack of matrices. A feed-forward matrix is four blocks of
d x d, as in FacT, side by side (fc1) or one below the other (fc2).
"""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import Group
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import Target


class SharedFactorAdapter(LowRankAdapter):
    """A low-rank adapter with two outer factors in all."""

    @abstractmethod
    def parts(
        self,
    ) -> tuple[Float[Tensor, "d r"], Float[Tensor, "l b r r"], Float[Tensor, "r d"]]:
        """U, Σ of every layer and block, and V; in float32."""

    def blocks(self, *targets: Target) -> int:
        """Blocks of d x d in matrices."""
        return sum(4 if target in ("fc1", "fc2") else 1 for target in targets)

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: U and V have at most d independent columns and rows."""
        return {"rank": self.shape.width}

    def shares_input(self, group: Group) -> bool:
        """See `LowRankAdapter`: they read x·U; fc2, which does not, is a group of its own."""
        return True

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        u, cores, v = self.parts()
        split = (self.scale * cores).split([self.blocks(target) for target in self.targets], dim=1)
        pairs = {}
        for target, blocks in zip(self.targets, split, strict=True):
            if target == "fc2":
                stacked = (u @ blocks).flatten(1, 2)
                pairs[target] = Pair(stacked, v.expand(len(blocks), -1, -1))
            else:
                pairs[target] = Pair(u[None], (blocks @ v).transpose(1, 2).flatten(2))
        return pairs

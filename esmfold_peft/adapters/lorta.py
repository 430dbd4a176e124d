"""LoRTA: all adapted matrices as one tensor of low rank (Hounie et al. 2024, arXiv 2410.04060).

The update of head h of matrix m in layer l is the paper's

    ΔW_lmh = s · A · diag(C_L[l] ∘ C_M[m] ∘ C_H[h]) · Bᵀ        (width d × head width d_h),

applied as X·ΔW to query, key and value and transposed to output: A always faces the residual
stream, B and the heads always face head space. ΔW is never formed in training: everything small,
s included, is folded into one G (r, d) for each layer and matrix; a layer costs a few thin
products.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import GROUPS, OUTPUT, Adapter, AttentionShape, Group
from esmfold_peft.config import AdapterConfig, Target


@dataclass(frozen=True, eq=False)
class LoRTADeltas:
    """LoRTA folded for one forward pass.

    Attributes:
        a: the factor of the residual stream.
        factors: for each group and layer the G of its adapted matrices side by side.
        members: the adapted matrices of each group.
    """

    a: Float[Tensor, "d r"]
    factors: dict[Group, tuple[Float[Tensor, "r _"], ...]]
    members: dict[Group, Group]

    def __call__(
        self, layer: int, group: Group, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"] | None, ...]:
        """See `Deltas`: one product with A serves all matrices of the group."""
        members = self.members[group]
        if not members:
            return (None,) * len(group)
        g = self.factors[group][layer]
        if group == OUTPUT:
            return ((x @ g.T) @ self.a.T,)
        added = ((x @ self.a) @ g).chunk(len(members), dim=-1)
        by_name = dict(zip(members, added, strict=True))
        return tuple(by_name.get(target) for target in group)


class LoRTA(Adapter):
    """Five factors, shared by all layers, heads and matrices.

    Attributes:
        a: A, the residual stream's factor.
        b: B, the channels of a head; zero at the start.
        c_h: C_H, one row a head.
        c_l: C_L, one row a layer.
        c_m: C_M, one row for each adapted matrix, in the order of `targets`.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        rank = config.rank
        self.a = nn.Parameter(torch.empty(shape.width, rank))
        self.b = nn.Parameter(torch.zeros(shape.head_width, rank))
        self.c_h = nn.Parameter(torch.empty(shape.heads, rank))
        self.c_l = nn.Parameter(torch.empty(shape.layers, rank))
        # DISCREPANCY: the authors' code always has four rows here; a row of a matrix that is not
        # adapted would never have a gradient.
        self.c_m = nn.Parameter(torch.empty(len(self.targets), rank))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all factors but B.

        "unit": mode factors of random sign, A uniform in ±1/√d as in LoRA, so that a scale of 1
        suits every rank. "paper": the authors' Kaiming bounds, which see the rank as fan-in: ±1/√r
        for A and ±√(6/r) for the modes (their init_scale = 0).
        """
        modes = (self.c_h, self.c_l, self.c_m)
        if self.config.init == "unit":
            _uniform(self.a, self.shape.width**-0.5)
            for mode in modes:
                mode.copy_(2.0 * torch.randint(0, 2, mode.shape) - 1.0)
        else:
            _uniform(self.a, self.config.rank**-0.5)
            for mode in modes:
                _uniform(mode, (6 / self.config.rank) ** 0.5)

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: A and G, elementwise products only, so that autocast cannot round it."""
        return self.a.to(dtype), self._factors().to(dtype)

    def deltas(self, folded: tuple[Tensor, ...]) -> LoRTADeltas:
        """See `Adapter`."""
        members = {group: self.members(group) for group in GROUPS}
        sizes = [len(members[group]) for group in GROUPS]
        a, g = folded
        by_group = g.split(sizes, dim=2)
        # unbind, not indexing: its gradient is one stack instead of one zero-filled tensor a layer.
        factors = {group: g.flatten(2).unbind(0) for group, g in zip(GROUPS, by_group, strict=True)}
        return LoRTADeltas(a, factors, members)

    def delta_weight(self, layer: int, target: Target) -> Float[Tensor, "d d"]:
        """See `Adapter`: A spans the columns of ΔW as torch stores it, the rows for output."""
        g = self._factors()[layer, :, self.targets.index(target)]
        dense = self.a.float() @ g
        return dense if target == "output" else dense.T

    def _factors(self) -> Float[Tensor, "l r m d"]:
        """G[l, :, m, h·d_h + j] = s · C_L[l] ∘ C_M[m] ∘ C_H[h] ∘ B[j] in float32."""
        c_l = self.scale * self.c_l.float()[:, :, None, None, None]
        c_m = self.c_m.float().T[:, :, None, None]
        c_h = self.c_h.float().T[:, None, :, None]
        b = self.b.float().T[:, None, None, :]
        return (c_l * c_m * c_h * b).flatten(3)


def _uniform(factor: Tensor, bound: float) -> None:
    nn.init.uniform_(factor, -bound, bound)

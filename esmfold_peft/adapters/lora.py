"""LoRA: a low-rank update of its own for every matrix (Hu et al. 2021, arXiv 2106.09685).

ΔW = s · B · A for each layer and matrix, B zero at the start. The factors of all matrices are two
stacked parameters: two tensors for the optimizer, and one product with A for a group of matrices.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import GROUPS, Adapter, AttentionShape, Group
from esmfold_peft.config import AdapterConfig, Target


@dataclass(frozen=True, eq=False)
class LoRADeltas:
    """LoRA folded for one forward pass.

    Attributes:
        a: for each group and layer the A of its adapted matrices, stacked.
        b: for each group and layer their B, scale included.
        members: the adapted matrices of each group.
    """

    a: dict[Group, tuple[Float[Tensor, "_ d"], ...]]
    b: dict[Group, tuple[Float[Tensor, "m d r"], ...]]
    members: dict[Group, Group]

    def __call__(
        self, layer: int, group: Group, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"] | None, ...]:
        """See `Deltas`: one product with the stacked A, then one with each B."""
        members = self.members[group]
        if not members:
            return (None,) * len(group)
        z = (x @ self.a[group][layer].T).chunk(len(members), dim=-1)
        b = self.b[group][layer].unbind(0)
        added = {name: z[i] @ b[i].T for i, name in enumerate(members)}
        return tuple(added.get(target) for target in group)


class LoRA(Adapter):
    """Two factors for every layer l and adapted matrix m.

    Attributes:
        a: A of each matrix, shape (l, m, r, d), uniform in ±1/√d at the start.
        b: B of each matrix, shape (l, m, d, r), zero at the start.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        stack = (shape.layers, len(self.targets))
        bound = shape.width**-0.5
        self.a = nn.Parameter(torch.empty(*stack, config.rank, shape.width).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(*stack, shape.width, config.rank))

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: A, and B with the scale."""
        return self.a.to(dtype), (self.scale * self.b.float()).to(dtype)

    def deltas(self, folded: tuple[Tensor, ...]) -> LoRADeltas:
        """See `Adapter`."""
        members = {group: self.members(group) for group in GROUPS}
        sizes = [len(members[group]) for group in GROUPS]
        a, b = (factor.split(sizes, dim=1) for factor in folded)
        # unbind, not indexing: its gradient is one stack instead of one zero-filled tensor a layer.
        return LoRADeltas(
            {group: t.flatten(1, 2).unbind(0) for group, t in zip(GROUPS, a, strict=True)},
            {group: t.unbind(0) for group, t in zip(GROUPS, b, strict=True)},
            members,
        )

    def delta_weight(self, layer: int, target: Target) -> Float[Tensor, "d d"]:
        """See `Adapter`."""
        matrix = self.targets.index(target)
        return self.scale * (self.b[layer, matrix].float() @ self.a[layer, matrix].float())

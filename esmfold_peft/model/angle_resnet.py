"""Torsion angles from the single track (AF2 Suppl. Alg. 20 lines 11 to 14)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.model.linear import linear

TORSIONS = 7


class AngleResnet(nn.Module):
    """A residual network that gives (sin, cos) of ω, φ, ψ, χ1 to χ4.

    Args:
        c_s: channels of the single track.
        hidden: width of the residual blocks.
        blocks: number of residual blocks.
    """

    def __init__(self, c_s: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.linear_in = linear(c_s, hidden)
        self.linear_initial = linear(c_s, hidden)
        self.layers = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.linear_out = linear(hidden, 2 * TORSIONS)

    def forward(
        self, s: Float[Tensor, "k b n c_s"], s_initial: Float[Tensor, "b n c_s"]
    ) -> tuple[Float[Tensor, "k b n 7 2"], Float[Tensor, "k b n 7 2"]]:
        """Predicts the torsions of all layers of the structure module.

        Args:
            s: single track after each layer.
            s_initial: single track before the first layer.

        Returns:
            Torsions of unit length, and before normalisation (for the angle-norm loss).
        """
        # DISCREPANCY: the supplement has no ReLU on these inputs; AlphaFold 2's code and weights
        # do.
        a = self.linear_in(s.relu()) + self.linear_initial(s_initial.relu())
        for layer in self.layers:
            a = layer(a)
        raw = self.linear_out(a.relu()).unflatten(-1, (TORSIONS, 2))
        norm = torch.sqrt((raw * raw).sum(-1, keepdim=True).clamp(min=1e-8))
        return raw / norm, raw


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1 = linear(hidden, hidden, init="relu")
        self.linear_2 = linear(hidden, hidden, init="zero")

    def forward(self, a: Float[Tensor, "k b n hidden"]) -> Float[Tensor, "k b n hidden"]:
        return a + self.linear_2(self.linear_1(a.relu()).relu())

"""Heads that read distances and confidence from the folding model's tracks."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.model.linear import linear
from esmfold_peft.protein.residues import ATOM37

Head = Literal["distogram", "plddt", "resolved", "pae"]
"""The heads by name. The loss of a head has the same name."""

HEADS: tuple[Head, ...] = get_args(Head)


class DistogramHead(nn.Module):
    """Symmetric logits over distance bins (AF2 Suppl. 1.9.8); starts uniform.

    They are the sum of both directions, as in AF2's code, or their mean, as in ESMFold.
    """

    def __init__(self, c_z: int, bins: int, *, mean: bool = False) -> None:
        super().__init__()
        self.linear = linear(c_z, bins, init="zero")
        self.mean = mean

    def forward(self, z: Float[Tensor, "b n n c_z"]) -> Float[Tensor, "b n n bins"]:
        """Reads the pair track."""
        logits = self.linear(z)
        total = logits + logits.transpose(1, 2)
        return total / 2 if self.mean else total


class PLDDTHead(nn.Module):
    """Logits over bins of lDDT-Cα from 0 to 1 (AF2 Suppl. Alg. 29); starts uniform."""

    def __init__(self, c_s: int, width: int, bins: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(c_s),
            linear(c_s, width, init="relu"),
            nn.ReLU(),
            linear(width, width, init="relu"),
            nn.ReLU(),
            linear(width, bins, init="zero"),
        )

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n bins"]:
        """Reads the structure module's single track."""
        return self.layers(s)


class AtomPLDDTHead(nn.Module):
    """ESMFold's logits over bins of the lDDT of each of the 37 atoms; starts uniform."""

    def __init__(self, c_s: int, width: int, bins: int) -> None:
        super().__init__()
        # DISCREPANCY with AF2: the released model has nothing between its linear layers.
        self.layers = nn.Sequential(
            nn.LayerNorm(c_s),
            nn.Linear(c_s, width),
            nn.Linear(width, width),
            linear(width, len(ATOM37) * bins, init="zero"),
        )

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n 37 bins"]:
        """Reads the structure module's single track."""
        return self.layers(s).unflatten(-1, (len(ATOM37), -1))


class LinearHead(nn.Module):
    """Logits that start at zero, of resolved atoms or aligned errors (AF2 Suppl. 1.9.10, 1.9.7)."""

    def __init__(self, channels: int, logits: int) -> None:
        super().__init__()
        self.linear = linear(channels, logits, init="zero")

    def forward(self, track: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch logits"]:
        """Reads the trunk's single track or the pair track."""
        return self.linear(track)

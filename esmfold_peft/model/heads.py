"""Heads that read distances and confidence from the folding model's tracks."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.model.linear import linear
from esmfold_peft.protein.residues import ATOM37

Head = Literal["distogram", "plddt", "resolved", "pae"]
"""The heads by name, which is also that of their loss."""

HEADS: tuple[Head, ...] = get_args(Head)


class DistogramHead(nn.Module):
    """Symmetric logits over distance bins (AF2 Suppl. 1.9.8); starts uniform.

    Args:
        c_z: channels of the pair track.
        bins: distance bins.
        mean: take the mean of both directions, as ESMFold does, and not their sum, as AF2's code.
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
    """Logits over bins of lDDT-Cα (AF2 Suppl. Alg. 29); starts uniform.

    Args:
        c_s: channels of the single track.
        hidden: width of the two hidden layers.
        bins: bins of lDDT-Cα from 0 to 1.
    """

    def __init__(self, c_s: int, hidden: int, bins: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(c_s),
            linear(c_s, hidden, init="relu"),
            nn.ReLU(),
            linear(hidden, hidden, init="relu"),
            nn.ReLU(),
            linear(hidden, bins, init="zero"),
        )

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n bins"]:
        """Reads the structure module's single track."""
        return self.layers(s)


class AtomPLDDTHead(nn.Module):
    """ESMFold's logits over bins of the lDDT of each of the 37 atoms; starts uniform.

    Args:
        c_s: channels of the single track.
        hidden: width of the two hidden layers.
        bins: bins of lDDT from 0 to 1.
    """

    def __init__(self, c_s: int, hidden: int, bins: int) -> None:
        super().__init__()
        # DISCREPANCY with AF2: the released model has nothing between its linear layers.
        self.layers = nn.Sequential(
            nn.LayerNorm(c_s),
            nn.Linear(c_s, hidden),
            nn.Linear(hidden, hidden),
            linear(hidden, len(ATOM37) * bins, init="zero"),
        )

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n 37 bins"]:
        """Reads the structure module's single track."""
        return self.layers(s).unflatten(-1, (len(ATOM37), -1))


class ResolvedHead(nn.Module):
    """Logits of each of the 37 atoms being resolved (AF2 Suppl. 1.9.10); starts undecided.

    Args:
        c_s: channels of the single track.
    """

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear = linear(c_s, len(ATOM37), init="zero")

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n 37"]:
        """Reads the trunk's single track."""
        return self.linear(s)


class PAEHead(nn.Module):
    """Logits over bins of the aligned error (AF2 Suppl. 1.9.7); starts uniform.

    Args:
        c_z: channels of the pair track.
        bins: bins of the error, the last one open.
    """

    def __init__(self, c_z: int, bins: int) -> None:
        super().__init__()
        self.linear = linear(c_z, bins, init="zero")

    def forward(self, z: Float[Tensor, "b n n c_z"]) -> Float[Tensor, "b n n bins"]:
        """Reads the pair track; entry (i, j) is the error of j seen from i."""
        return self.linear(z)

"""Heads that read confidence and distances from the folding model's tracks."""

from jaxtyping import Float
from torch import Tensor, nn


class DistogramHead(nn.Module):
    """Symmetric logits over distance bins (AF2 Suppl. 1.9.8); starts uniform.

    Args:
        c_z: channels of the pair track.
        bins: distance bins.
    """

    def __init__(self, c_z: int, bins: int) -> None:
        super().__init__()
        self.linear = _zero(nn.Linear(c_z, bins))

    def forward(self, z: Float[Tensor, "b n n c_z"]) -> Float[Tensor, "b n n bins"]:
        """Reads the pair track."""
        logits = self.linear(z)
        return logits + logits.transpose(1, 2)


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
            nn.Linear(c_s, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            _zero(nn.Linear(hidden, bins)),
        )

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n bins"]:
        """Reads the structure module's single track."""
        return self.layers(s)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear

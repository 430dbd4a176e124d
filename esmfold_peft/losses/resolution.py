"""Which chains are resolved well enough to teach the confidence heads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def within_range(
    resolution: Float[Tensor, "b"], resolution_range: tuple[float, float] | None
) -> Bool[Tensor, "b"]:
    """Whether each chain counts in a loss that needs an experiment of known quality.

    Args:
        resolution: Å; NaN if unknown, which is within no range.
        resolution_range: lowest and highest resolution that counts, in Å, limits included; None:
            every chain.
    """
    if resolution_range is None:
        return torch.ones_like(resolution, dtype=torch.bool)
    return (resolution >= resolution_range[0]) & (resolution <= resolution_range[1])

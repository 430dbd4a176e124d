"""Distances between all pairs of points."""

import torch
from jaxtyping import Float
from torch import Tensor


def pairwise_distances(
    points: Float[Tensor, "b n 3"], others: Float[Tensor, "b m 3"]
) -> Float[Tensor, "b n m"]:
    """Distances from every point to every other, in the unit of the coordinates.

    Computed from differences: torch.cdist's matrix product loses digits to cancellation, by an
    amount that depends on the number of points, so on padding.
    """
    return torch.linalg.vector_norm(points[:, :, None] - others[:, None], dim=-1)

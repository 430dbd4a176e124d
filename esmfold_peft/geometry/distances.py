"""Distances between all pairs of points."""

import torch
from jaxtyping import Float
from torch import Tensor


def pairwise_distances(
    points: Float[Tensor, "b n 3"], others: Float[Tensor, "b m 3"]
) -> Float[Tensor, "b n m"]:
    """Distances from every point to every other, in the unit of the coordinates.

    Computed from differences: a matrix product loses digits to cancellation, and torch.cdist
    chooses one by the number of points, so by padding.
    """
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")

"""Distances between all pairs of points."""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def pairwise_distances(
    points: Float[Tensor, "b n 3"], others: Float[Tensor, "b m 3"]
) -> Float[Tensor, "b n m"]:
    """Distances from every point to every other, in the unit of the coordinates; no gradient.

    Computed from differences: a matrix product loses digits to cancellation. Not by torch.cdist,
    which takes 2 ms a call on an H100 and cannot be fused with what follows.
    """
    # One coordinate after the other, in place: on a CPU rows of three numbers take several times
    # as long.
    rows, columns = (each.mT.contiguous().unbind(1) for each in (points, others))
    x, y, z = (row[:, :, None] - column[:, None] for row, column in zip(rows, columns, strict=True))
    return x.mul_(x).addcmul_(y, y).addcmul_(z, z).sqrt_()

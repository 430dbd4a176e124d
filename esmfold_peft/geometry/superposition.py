"""Optimal superposition of points."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid


def superpose(
    mobile: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"]
) -> Rigid:
    """The rigid motion of least squared distance, without reflection (Kabsch 1976, Umeyama 1991).

    Gradients through it are undefined where two singular values are equal: use it for measuring,
    not for losses.

    Args:
        mobile: points to be moved, in Å.
        target: where they should go, in Å.
        mask: which points count. A chain without any is left where it is.

    Returns:
        Frames of shape (b,) that move `mobile` onto `target` by `apply`.
    """
    with torch.autocast(mobile.device.type, enabled=False):
        mobile, target = mobile.float(), target.float()
        weight = mask.unsqueeze(-1).float()
        mobile_center, target_center = _center(mobile, weight), _center(target, weight)
        covariance = ((target - target_center) * weight).mT @ (mobile - mobile_center)
        u, _, vh = torch.linalg.svd(covariance)
        # A product of determinant -1 is a reflection: turn the least important axis around.
        sign = torch.ones_like(u[:, 0])
        sign[:, 2] = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0)
        rotation = (u * sign.unsqueeze(1)) @ vh
        center = (rotation @ mobile_center.mT).squeeze(-1)
        return Rigid(rotation, target_center.squeeze(1) - center)


def rmsd(
    mobile: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    """Root mean square distance in Å after superposition, NaN for a chain without any point.

    Args:
        mobile: points in Å.
        target: points in Å.
        mask: which points count.
    """
    moved = superpose(mobile, target, mask).unsqueeze(-1).apply(mobile.float())
    square = ((moved - target) ** 2).sum(-1) * mask
    return torch.sqrt(square.sum(-1) / mask.sum(-1))


def _center(
    points: Float[Tensor, "b n 3"], weight: Float[Tensor, "b n 1"]
) -> Float[Tensor, "b 1 3"]:
    return (points * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)

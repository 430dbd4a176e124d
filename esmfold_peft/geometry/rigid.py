"""Rigid frames: a rotation and a translation, x -> R x + t."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import register_dataclass


@dataclass(frozen=True, eq=False)
class Rigid:
    """A batch of rigid frames.

    Attributes:
        rotation: (..., 3, 3) orthonormal matrices.
        translation: (..., 3), in Å unless a function names another unit.
    """

    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]

    @property
    def shape(self) -> torch.Size:
        """The shape of the batch of frames."""
        return self.translation.shape[:-1]

    @staticmethod
    def identity(*shape: int, device: torch.device | None = None) -> "Rigid":
        """Frames that move nothing, in float32."""
        rotation = torch.eye(3, device=device).expand(*shape, 3, 3)
        return Rigid(rotation, torch.zeros(*shape, 3, device=device))

    @staticmethod
    def from_three_points(
        negative_x: Float[Tensor, "*batch 3"],
        origin: Float[Tensor, "*batch 3"],
        xy: Float[Tensor, "*batch 3"],
    ) -> "Rigid":
        """Gram-Schmidt frames (AF2 Suppl. Alg. 21, in the convention of its implementation).

        The x axis points from `negative_x` to `origin`, and `xy` lies in the x-y plane with y > 0.
        Degenerate points give a finite frame that is not orthonormal: mask it.
        """
        x = _unit(origin - negative_x)
        in_plane = xy - origin
        y = _unit(in_plane - (x * in_plane).sum(-1, keepdim=True) * x)
        return Rigid(torch.stack((x, y, torch.linalg.cross(x, y)), dim=-1), origin)

    @staticmethod
    def stack(frames: "list[Rigid]", dim: int = 0) -> "Rigid":
        """Stacks frames of one shape along a new axis; `dim` counts from the front."""
        return Rigid(
            torch.stack([frame.rotation for frame in frames], dim),
            torch.stack([frame.translation for frame in frames], dim),
        )

    def __getitem__(self, index: Any) -> "Rigid":
        """Selects frames by their batch axes; use an ellipsis only in front of them."""
        index = index if isinstance(index, tuple) else (index,)
        return Rigid(
            self.rotation[(*index, slice(None), slice(None))],
            self.translation[(*index, slice(None))],
        )

    def flatten(self, first: int, last: int) -> "Rigid":
        """Makes one axis of the batch axes from `first` to `last`, counted from the front."""
        return Rigid(self.rotation.flatten(first, last), self.translation.flatten(first, last))

    def compose(self, inner: "Rigid") -> "Rigid":
        """The frame that applies `inner` first and this one after it."""
        return Rigid(self.rotation @ inner.rotation, self.apply(inner.translation))

    def apply(self, points: Float[Tensor, "*points 3"]) -> Float[Tensor, "*result 3"]:
        """Moves points out of the frame: R x + t. Batch axes broadcast."""
        return (self.rotation @ points.unsqueeze(-1)).squeeze(-1) + self.translation

    def apply_inverse(self, points: Float[Tensor, "*points 3"]) -> Float[Tensor, "*result 3"]:
        """Moves points into the frame: Rᵀ (x - t). Batch axes broadcast."""
        return (self.rotation.mT @ (points - self.translation).unsqueeze(-1)).squeeze(-1)

    def float(self) -> "Rigid":
        """The frames in float32."""
        return Rigid(self.rotation.float(), self.translation.float())


register_dataclass(Rigid)  # CUDA graphs look for tensors in it


def rotation_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions, real part first, of any length but zero."""
    w, x, y, z = _unit(quaternion).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), -1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), -1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, -2)


def _unit(vector: Tensor, eps: float = 1e-12) -> Tensor:
    return vector / torch.sqrt((vector * vector).sum(-1, keepdim=True) + eps)

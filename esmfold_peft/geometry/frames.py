"""Atoms to rigid frames, torsions to frames, frames to atoms.

The eight groups of a residue are, in order, backbone, ω before the residue, φ, ψ, χ1 to χ4
(`protein.rigid_groups`). Everything is computed in float32, also under autocast.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.tables import tables
from esmfold_peft.protein.rigid_groups import BACKBONE, CHI1, GROUPS


def backbone_frames(
    positions: Float[Tensor, "b n 14 3"], atom_mask: Bool[Tensor, "b n 14"]
) -> tuple[Rigid, Bool[Tensor, "b n"]]:
    """Frames with origin CA, x axis towards C and N in the upper half of the x-y plane.

    Coordinates may be anything finite where an atom is absent.

    Returns:
        Frames of shape (b, n), and where N, CA and C are present; the identity elsewhere.
    """
    mask = atom_mask[:, :, :3].all(-1)
    axes = tables(mask.device).group_axes[BACKBONE]
    return _frames_of_points(positions[:, :, :3].flip(2), mask, axes), mask  # C, CA, N


def rigid_group_frames(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> tuple[Rigid, Bool[Tensor, "b n 8"]]:
    """Frames of the rigid groups from their atoms, in the convention of `frames_from_torsions`.

    Coordinates may be anything finite where an atom is absent.

    Returns:
        Frames of shape (b, n, 8), and which of them exist and have their three atoms; the identity
        elsewhere. ω and φ have no frame, since no heavy atom of the residue turns with them.
    """
    table = tables(aatype.device)
    index = table.group_atoms[aatype].flatten(2)
    points = positions.take_along_dim(index.unsqueeze(-1), dim=2).unflatten(2, (GROUPS, 3))
    mask = atom_mask.take_along_dim(index, dim=2).unflatten(2, (GROUPS, 3)).all(-1)
    mask = mask & table.group_exists[aatype]
    return _frames_of_points(points, mask, table.group_axes), mask


def frames_from_torsions(
    backbone: Rigid, torsions: Float[Tensor, "b n 7 2"], aatype: Int[Tensor, "b n"]
) -> Rigid:
    """Places the eight rigid groups of each residue by its torsions (AF2 Suppl. Alg. 24).

    Args:
        backbone: frames of shape (b, n) in Å.
        torsions: (sin, cos) of ω, φ, ψ, χ1 to χ4, of unit length.
        aatype: 0 to 20.

    Returns:
        Frames of shape (b, n, 8) in Å. A χ that the residue lacks turns about the origin of the χ
        before it.
    """
    table = tables(aatype.device)
    default = Rigid(table.default_rotation[aatype], table.default_translation[aatype])
    with torch.autocast(torsions.device.type, enabled=False):
        turn = _rotation_about_x(torsions.float())
        turned = Rigid(
            torch.cat((default.rotation[:, :, :1], default.rotation[:, :, 1:] @ turn), dim=2),
            default.translation,
        )
        groups = [turned[:, :, group] for group in range(CHI1 + 1)]
        for group in range(CHI1 + 1, GROUPS):
            groups.append(groups[-1].compose(turned[:, :, group]))
        return backbone.float()[..., None].compose(Rigid.stack(groups, dim=2))


def atom14_from_frames(frames: Rigid, aatype: Int[Tensor, "b n"]) -> Float[Tensor, "b n 14 3"]:
    """Puts the atoms of ideal geometry into their rigid groups (AF2 Suppl. Alg. 24 line 11).

    The frames have the shape (b, n, 8). Both are in Å; 0 where the residue has no such atom.
    """
    table = tables(aatype.device)
    group = table.atom14_group[aatype][..., None].expand(-1, -1, -1, 3)
    # Compiled, `take_along_dim` would be for one length.
    of_atom = Rigid(
        frames.rotation.gather(2, group[..., None].expand(-1, -1, -1, -1, 3)),
        frames.translation.gather(2, group),
    )
    with torch.autocast(aatype.device.type, enabled=False):
        positions = of_atom.float().apply(table.literature_positions[aatype])
    return torch.where(table.atom14_mask[aatype].unsqueeze(-1), positions, 0.0)


def _frames_of_points(
    points: Float[Tensor, "*batch 3 3"],
    mask: Bool[Tensor, "*batch"],
    axes: Float[Tensor, "*axes 3"],
) -> Rigid:
    """Frames of (point of the x axis, origin, point with y > 0), their axes times `axes`."""
    points = torch.where(mask[..., None, None], points.float(), tables(mask.device).corner)
    frames = Rigid.from_three_points(*points.unbind(-2))
    rotation = frames.rotation * axes.unsqueeze(-2)
    identity = torch.eye(3, device=points.device)
    return Rigid(torch.where(mask[..., None, None], rotation, identity), frames.translation)


def _rotation_about_x(sin_cos: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3 3"]:
    sin, cos = sin_cos.unbind(-1)
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    rows = (
        torch.stack((one, zero, zero), -1),
        torch.stack((zero, cos, -sin), -1),
        torch.stack((zero, sin, cos), -1),
    )
    return torch.stack(rows, -2)

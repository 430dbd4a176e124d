"""Torsion angles as the structure module predicts them: (sin, cos) of ω, φ, ψ, χ1 to χ4."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.tables import tables
from esmfold_peft.protein.rigid_groups import PSI


def torsion_angles(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    residue_index: Int[Tensor, "b n"],
) -> tuple[Float[Tensor, "b n 7 2"], Bool[Tensor, "b n 7"]]:
    """Measures the seven torsions of each residue (AF2 Suppl. section 1.8.1).

    ω is that of the bond before the residue, so ω and φ need the neighbour whose `residue_index` is
    one less. ψ is measured from O and turned by π, which is what `frames_from_torsions` expects
    and, up to the small distortion of the carbonyl, the ψ of the next N. Signs follow IUPAC.
    Coordinates may be anything finite where an atom is absent.

    Returns:
        (sin, cos), and which torsions exist and have their four atoms. The others are (0, 1).
    """
    table = tables(aatype.device)
    atoms, present = _with_previous(positions.float(), atom_mask, residue_index)
    index = table.torsion_atoms[aatype].flatten(2)
    points = atoms.take_along_dim(index.unsqueeze(-1), dim=2).unflatten(2, (7, 4))
    mask = present.take_along_dim(index, dim=2).unflatten(2, (7, 4)).all(-1)
    mask = mask & table.torsion_exists[aatype]
    points = torch.where(mask[..., None, None], points, table.cis)
    sin, cos = _sin_cos(points)
    of_psi = torch.arange(1, 8, device=mask.device) == PSI
    sign = torch.where(of_psi, -1.0, 1.0)  # half a turn, from the ψ of O to that of the next N
    # Not the torsion of the atoms of `cis`: it is rounded and, for ψ, has the other sign.
    sin, cos = (sign * sin).masked_fill(~mask, 0.0), (sign * cos).masked_fill(~mask, 1.0)
    return torch.stack((sin, cos), -1), mask


def alternative_torsions(
    aatype: Int[Tensor, "b n"], torsions: Float[Tensor, "b n 7 2"]
) -> Float[Tensor, "b n 7 2"]:
    """Turns every χ with a symmetric end by π (AF2 Suppl. Alg. 27): the same atoms, renamed."""
    periodic = tables(aatype.device).chi_is_pi_periodic[aatype].unsqueeze(-1)
    chi = torsions[:, :, 3:]
    return torch.cat((torsions[:, :, :3], torch.where(periodic, -chi, chi)), dim=2)


def _with_previous(
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    residue_index: Int[Tensor, "b n"],
) -> tuple[Float[Tensor, "b n 28 3"], Bool[Tensor, "b n 28"]]:
    """Atoms of the previous residue, masked unless it is the neighbour, then those of this one."""
    follows = residue_index == residue_index.roll(1, dims=1) + 1
    follows[:, :1] = False
    previous_mask = atom_mask.roll(1, dims=1) & follows.unsqueeze(-1)
    return (
        torch.cat((positions.roll(1, dims=1), positions), dim=2),
        torch.cat((previous_mask, atom_mask), dim=2),
    )


def _sin_cos(
    points: Float[Tensor, "*batch 4 3"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The fourth atom, seen along the middle bond with the first atom upwards."""
    first, second, third, fourth = points.unbind(-2)
    with torch.autocast(points.device.type, enabled=False):
        seen = Rigid.from_three_points(second, third, first).apply_inverse(fourth)
    y, z = seen[..., 1], seen[..., 2]
    norm = torch.sqrt(y * y + z * z + 1e-12)
    return z / norm, y / norm

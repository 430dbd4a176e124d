"""Layouts of atoms, names that may be swapped, and the virtual Cβ."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.tables import tables


def virtual_cb(positions: Float[Tensor, "*batch 14 3"]) -> Float[Tensor, "*batch 3"]:
    """Cβ of ideal geometry from N, CA and C (Å), for glycine and X too.

    The constants are those of ESMFold and ProteinMPNN. The result means nothing where N, CA or C is
    absent.
    """
    n, ca, c = positions[..., 0, :], positions[..., 1, :], positions[..., 2, :]
    first, second = ca - n, c - ca
    normal = torch.linalg.cross(first, second)
    return ca - 0.58273431 * normal + 0.56802827 * first - 0.54067466 * second


def atom14_to_atom37(
    aatype: Int[Tensor, "b n"], positions: Float[Tensor, "b n 14 3"]
) -> Float[Tensor, "b n 37 3"]:
    """Spreads coordinates over one column per atom name; 0 where the residue has no such atom."""
    table = tables(aatype.device)
    column = table.atom37_to_atom14[aatype].unsqueeze(-1)
    exists = table.atom37_mask[aatype].unsqueeze(-1)
    return torch.where(exists, positions.take_along_dim(column, dim=2), 0.0)


def atom14_to_atom37_mask(
    aatype: Int[Tensor, "b n"], atom_mask: Bool[Tensor, "b n 14"]
) -> Bool[Tensor, "b n 37"]:
    """Spreads an atom14 mask over one column per atom name."""
    table = tables(aatype.device)
    column = table.atom37_to_atom14[aatype]
    return atom_mask.take_along_dim(column, dim=2) & table.atom37_mask[aatype]


def swap_ambiguous_atoms(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> tuple[Float[Tensor, "b n 14 3"], Bool[Tensor, "b n 14"]]:
    """Exchanges the ambiguous pairs of ASP, GLU, PHE and TYR (AF2 Suppl. table 3 and Alg. 26)."""
    column = tables(aatype.device).ambiguous_swap[aatype]
    return (
        positions.take_along_dim(column.unsqueeze(-1), dim=2),
        atom_mask.take_along_dim(column, dim=2),
    )


def is_ambiguous(aatype: Int[Tensor, "b n"]) -> Bool[Tensor, "b n 14"]:
    """Which atoms have a name that may be exchanged with another's."""
    column = tables(aatype.device).ambiguous_swap[aatype]
    return column != torch.arange(14, device=aatype.device)

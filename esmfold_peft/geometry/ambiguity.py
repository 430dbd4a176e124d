"""Atoms of ASP, GLU, PHE and TYR that may swap names (AF2 Suppl. table 3)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.tables import tables


def swap_ambiguous_atoms(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> tuple[Float[Tensor, "b n 14 3"], Bool[Tensor, "b n 14"]]:
    """The same structure under the other naming, as AF2 Suppl. Alg. 26 needs it.

    Args:
        aatype: 0 to 20.
        positions: atom14 coordinates in Å.
        atom_mask: which atoms are present.

    Returns:
        Positions and mask with the ambiguous pairs exchanged; residues without such pairs are
        unchanged.
    """
    column = tables(aatype.device).ambiguous_swap[aatype]
    return (
        positions.take_along_dim(column.unsqueeze(-1), dim=2),
        atom_mask.take_along_dim(column, dim=2),
    )


def is_ambiguous(aatype: Int[Tensor, "b n"]) -> Bool[Tensor, "b n 14"]:
    """Which atoms have a name that may be exchanged with another's."""
    column = tables(aatype.device).ambiguous_swap[aatype]
    return column != torch.arange(14, device=aatype.device)

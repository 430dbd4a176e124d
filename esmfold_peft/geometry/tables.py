"""The residue tables of `protein` as tensors, kept on each device they were used on."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from esmfold_peft.protein import residues, rigid_groups, stereochemistry


@dataclass(frozen=True, eq=False)
class Tables:
    """Arrays of `protein`, one row per `aatype`; the last three have no such rows.

    Attributes:
        peptide_bounds: mean and deviation of the length C-N and of the cosines of CA-C-N and
            C-N-CA, by the residue of N.
        group_axes: axes of each rigid group as factors. They turn the backbone's by π about y: its
            x axis points from CA to C, not away from C.
        corner: three atoms of the identity frame. They stand in for absent atoms, so that values
            and gradients stay finite.
        cis: four atoms of torsion 0, for the same purpose.
    """

    atom14_mask: Bool[Tensor, "21 14"]
    atom37_to_atom14: Int[Tensor, "21 37"]
    atom37_mask: Bool[Tensor, "21 37"]
    atom14_group: Int[Tensor, "21 14"]
    literature_positions: Float32[Tensor, "21 14 3"]
    default_rotation: Float32[Tensor, "21 8 3 3"]
    default_translation: Float32[Tensor, "21 8 3"]
    group_atoms: Int[Tensor, "21 8 3"]
    group_exists: Bool[Tensor, "21 8"]
    torsion_atoms: Int[Tensor, "21 7 4"]
    torsion_exists: Bool[Tensor, "21 7"]
    chi_is_pi_periodic: Bool[Tensor, "21 4"]
    ambiguous_swap: Int[Tensor, "21 14"]
    atom14_radius: Float32[Tensor, "21 14"]
    distance_lower: Float32[Tensor, "21 14 14"]
    distance_upper: Float32[Tensor, "21 14 14"]
    peptide_bounds: Float32[Tensor, "21 3 2"]
    group_axes: Float32[Tensor, "8 3"]
    corner: Float32[Tensor, "3 3"]
    cis: Float32[Tensor, "4 3"]


def tables(device: torch.device) -> Tables:
    """All tables on one device, copied there once; constants of compiled code."""
    return _tables(device)


# Compiled code holds the tables as constants and does not make them again. This is what
# `torch.compiler.assume_constant_result` does; importing that takes two seconds.
vars(tables)["_dynamo_marked_constant"] = True


@cache
def _tables(device: torch.device) -> Tables:
    atom37_to_atom14, atom37_mask = _atom37_columns()
    arrays = {
        "atom14_mask": residues.ATOM14_MASK,
        "atom37_to_atom14": atom37_to_atom14,
        "atom37_mask": atom37_mask,
        "atom14_group": rigid_groups.ATOM14_GROUP,
        "literature_positions": rigid_groups.ATOM14_LITERATURE_POSITIONS,
        "default_rotation": rigid_groups.DEFAULT_ROTATION,
        "default_translation": rigid_groups.DEFAULT_TRANSLATION,
        "group_atoms": rigid_groups.GROUP_ATOMS,
        "group_exists": rigid_groups.GROUP_EXISTS,
        "torsion_atoms": rigid_groups.TORSION_ATOMS,
        "torsion_exists": rigid_groups.TORSION_EXISTS,
        "chi_is_pi_periodic": rigid_groups.CHI_IS_PI_PERIODIC,
        "ambiguous_swap": rigid_groups.AMBIGUOUS_SWAP,
        "atom14_radius": stereochemistry.ATOM14_RADIUS,
        "distance_lower": stereochemistry.DISTANCE_LOWER,
        "distance_upper": stereochemistry.DISTANCE_UPPER,
        "peptide_bounds": _peptide_bounds(),
        "group_axes": _group_axes(),
        "corner": ((-1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        "cis": ((-1.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    }
    # A first call from validation must not leave inference tensors here: training could not save
    # them for backward.
    with torch.inference_mode(False):
        return Tables(
            **{name: torch.tensor(array, device=device) for name, array in arrays.items()}
        )


def _peptide_bounds() -> np.ndarray:
    bounds = np.empty((len(residues.RESIDUES_X), 3, 2), np.float32)
    bounds[:, 0] = stereochemistry.C_N_LENGTH
    bounds[residues.AATYPE["P"], 0] = stereochemistry.C_N_LENGTH_PROLINE
    bounds[:, 1:] = stereochemistry.COS_CA_C_N, stereochemistry.COS_C_N_CA
    return bounds


def _group_axes() -> np.ndarray:
    axes = np.ones((rigid_groups.GROUPS, 3), np.float32)
    axes[rigid_groups.BACKBONE] = -1.0, 1.0, -1.0
    return axes


def _atom37_columns() -> tuple[np.ndarray, np.ndarray]:
    columns = np.zeros((len(residues.RESIDUES_X), len(residues.ATOM37)), dtype=np.int64)
    mask = np.zeros(columns.shape, dtype=bool)
    for aatype in range(len(residues.RESIDUES_X)):
        present = np.flatnonzero(residues.ATOM14_MASK[aatype])
        columns[aatype, residues.ATOM14_TO_ATOM37[aatype, present]] = present
        mask[aatype, residues.ATOM14_TO_ATOM37[aatype, present]] = True
    return columns, mask

"""Violations of stereochemistry: peptide bonds, distances within residues, and clashes.

Bounds are flat: twelve standard deviations for lengths and angles, 1.5 Å of overlap for atoms
without a bond (AF2 Suppl. 1.9.11; `protein.stereochemistry` has the values).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esmfold_peft.devices import lists_pairs
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.geometry.tables import tables
from esmfold_peft.protein.residues import AATYPE, UNKNOWN
from esmfold_peft.protein.stereochemistry import OVERLAP, TOLERANCE, VAN_DER_WAALS_RADIUS

_N, _CA, _C, _SG = 0, 1, 2, 5
"""Columns of atom14; the last is SG in cysteine."""

_PEPTIDE_EPS = 1e-6
_CLASH_EPS = 1e-10
"""Added to squared lengths and errors (Å²), as in AF2's code: gradients stay finite at 0."""

_LONGEST_CLASH = 2 * max(VAN_DER_WAALS_RADIUS.values()) - OVERLAP
_ROUNDING = 0.1
"""Å; far more than float32 loses on any coordinate of a protein."""

_BLOCK = 8192
"""Pairs of residues searched for clashes at once: 20 MB."""

_DENSE = 2**24
"""Pairs of atoms looked at together where all are: 64 MB for each of some ten tensors."""


@dataclass(frozen=True, eq=False)
class ViolationCounts:
    """How many violations each chain has, which is where its loss is above 0.

    Attributes:
        bonds: peptide bonds C-N of wrong length.
        angles: wrong angles at peptide bonds, CA-C-N and C-N-CA.
        clashes: pairs of atoms of two residues that overlap too much.
        within_residues: pairs of atoms of one residue that are too near or, one or two bonds apart,
            too far.

    All are NaN where a coordinate of the chain is not finite.
    """

    bonds: Float[Tensor, "b"]
    angles: Float[Tensor, "b"]
    clashes: Float[Tensor, "b"]
    within_residues: Float[Tensor, "b"]


def violation_loss(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """Loss of structural violations (AF2 Suppl. 1.9.11, eq. 44 to 47).

    The mean excess of the peptide bonds' lengths (Å) and of the cosines of the two angles at each,
    and the excess of all other distances (Å) over the number of atoms. It needs no true structure.
    0 for a chain without violations; NaN if a coordinate of the chain is not finite.

    Args:
        positions: predicted atoms in Å; every atom of a residue counts, resolved or not.
        aatype: 0 to 20; X has no atoms here, as in AF2.
        residue_index: a residue is bound to the next in the array if it rises by 1 from one to the
            other; residues of the same index do not clash.
        mask: which residues exist.
    """
    positions, mask = _at_least_float32(positions), _with_atoms(aatype, mask)
    with torch.autocast(positions.device.type, enabled=False):
        linked = _linked(residue_index, mask)
        peptide = (_peptide_excess(positions, aatype) * linked[..., None]).sum((1, 2))
        within = (_within_excess(positions, aatype) * mask[..., None, None]).sum((1, 2, 3))
        if lists_pairs(mask.device):
            chain, overlap = _clashes(positions, aatype, residue_index, mask)
            clashes = torch.zeros_like(within).index_add(0, chain, overlap)
        else:
            clashes = _summed_clashes(positions, aatype, residue_index, mask)
        atoms = _atom_mask(aatype, mask).sum((1, 2)).clamp(min=1)
        # DISCREPANCY: eq. 46 sums over pairs. AF2's code, followed here, divides by the number of
        # atoms and adds the loss of a pair up for both: between residues a pair counts twice, and
        # within a residue four times, since `within` is over ordered pairs.
        loss = peptide / linked.sum(-1).clamp(min=1) + 2 * (clashes + within) / atoms
    return _nan_if_broken(loss, positions)


@torch.no_grad()
def count_violations(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> ViolationCounts:
    """Counts the violations that `violation_loss` adds up; the arguments are the same."""
    positions, mask = _at_least_float32(positions), _with_atoms(aatype, mask)
    with torch.autocast(positions.device.type, enabled=False):
        wrong = (_peptide_excess(positions, aatype) > 0) & _linked(residue_index, mask)[..., None]
        within = (_within_excess(positions, aatype) > 0) & mask[..., None, None]
        chain, _ = _clashes(positions, aatype, residue_index, mask)
    counts = {
        "bonds": wrong[..., 0].sum(1),
        "angles": wrong[..., 1:].sum((1, 2)),
        "clashes": chain.bincount(minlength=len(positions)),
        "within_residues": within.sum((1, 2, 3)) / 2,
    }
    return ViolationCounts(
        **{name: _nan_if_broken(count.float(), positions) for name, count in counts.items()}
    )


def _at_least_float32(positions: Float[Tensor, "b n 14 3"]) -> Float[Tensor, "b n 14 3"]:
    return positions.to(torch.promote_types(positions.dtype, torch.float32))


def _nan_if_broken(
    value: Float[Tensor, "b"], positions: Float[Tensor, "b n 14 3"]
) -> Float[Tensor, "b"]:
    # A NaN is in no clash and within every bound: only an explicit look makes it heard.
    return value.masked_fill(~positions.isfinite().flatten(1).all(1), torch.nan)


def _with_atoms(aatype: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """Which residues have atoms: X, whose atoms nobody knows, is predicted as alanine."""
    return mask & (aatype != UNKNOWN)


def _atom_mask(aatype: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n 14"]:
    return tables(aatype.device).atom14_mask[aatype] & mask[..., None]


def _linked(residue_index: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n-1"]:
    """Which residues have a peptide bond to the next one."""
    return mask[:, :-1] & mask[:, 1:] & (residue_index[:, :-1] + 1 == residue_index[:, 1:])


def _peptide_excess(
    positions: Float[Tensor, "b n 14 3"], aatype: Int[Tensor, "b n"]
) -> Float[Tensor, "b n-1 3"]:
    """By how much C-N (Å) and the cosines of CA-C-N and C-N-CA miss their bounds."""
    ca, c = positions[:, :-1, _CA], positions[:, :-1, _C]
    next_n, next_ca = positions[:, 1:, _N], positions[:, 1:, _CA]
    to_ca, _ = _direction(ca - c)
    to_n, length = _direction(next_n - c)
    onward, _ = _direction(next_ca - next_n)
    cosines = (to_ca * to_n).sum(-1), -(to_n * onward).sum(-1)
    # DISCREPANCY: the code of AF2 until 2025, and OpenFold's, bounds the cosine of CA-C-N by the
    # deviation of the length C-N, 0.014; AF2 has corrected that to the 0.0311 of the supplement.
    bounds = tables(aatype.device).peptide_bounds
    mean, deviation = bounds[aatype[:, 1:]].to(positions.dtype).unbind(-1)
    error = (torch.stack((length, *cosines), -1) - mean).square()
    return (torch.sqrt(error + _PEPTIDE_EPS) - TOLERANCE * deviation).relu()


def _direction(
    vector: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    length = torch.sqrt(vector.square().sum(-1) + _PEPTIDE_EPS)
    return vector / length[..., None], length


def _within_excess(
    positions: Float[Tensor, "b n 14 3"], aatype: Int[Tensor, "b n"]
) -> Float[Tensor, "b n 14 14"]:
    """By how much distances within residues miss their bounds, in Å; every pair is in it twice."""
    table = tables(aatype.device)
    distance = _distance(positions[:, :, :, None], positions[:, :, None])
    too_near = (table.distance_lower[aatype] - distance).relu()
    return too_near + (distance - table.distance_upper[aatype]).relu()


def _clashes(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> tuple[Int[Tensor, "p"], Float[Tensor, "p"]]:
    """Chain, and overlap beyond the tolerance in Å, of each clashing pair of two residues."""
    one, two = _clashing_atoms(positions, aatype, residue_index, mask).unbind(-1)
    radius = tables(aatype.device).atom14_radius[aatype].flatten()
    points = positions.flatten(0, 2)
    overlap = radius[one] + radius[two] - OVERLAP - _distance(points[one], points[two])
    return one // (14 * aatype.shape[1]), overlap


@torch.no_grad()
def _clashing_atoms(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> Int[Tensor, "p 2"]:
    """Pairs of atoms of different residues that clash, as places in the flattened batch.

    They are few, and only they need a gradient. Measured at 384 residues on one core, the loss
    takes 38 MB and 0.05 s with its backward pass, where all (14 n)² distances are 116 MB; all atoms
    of a chain in one place, the worst case, take 360 MB and 1.5 s.
    """
    atom_mask = _atom_mask(aatype, mask)
    radius = tables(aatype.device).atom14_radius[aatype].masked_fill(~atom_mask, -torch.inf)
    near = _near_residues(positions, residue_index, atom_mask)
    flat = positions.flatten(0, 1), radius.flatten(0, 1), residue_index.flatten(), aatype.flatten()
    return torch.cat([_clashing_of(pairs, *flat) for pairs in near.split(_BLOCK)])


def _near_residues(
    positions: Float[Tensor, "b n 14 3"],
    residue_index: Int[Tensor, "b n"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> Int[Tensor, "q 2"]:
    """Pairs of residues that can clash, as places in the flattened batch, the earlier one first.

    No atom is farther from its Cα than the radius of its residue, so none of the others can.
    """
    n, ca = residue_index.shape[1], positions[:, :, _CA]
    # The radius of a residue that does not exist is -inf: it reaches no other.
    radius = _distance(positions, ca[:, :, None]).masked_fill(~atom_mask, -torch.inf).amax(-1)
    reach = radius[:, :, None] + radius[:, None] + _LONGEST_CLASH + _ROUNDING
    earlier = residue_index[:, :, None] < residue_index[:, None]
    chain, one, two = (earlier & (pairwise_distances(ca, ca) < reach)).nonzero().unbind(-1)
    return torch.stack((n * chain + one, n * chain + two), -1)


def _clashing_of(
    pairs: Int[Tensor, "q 2"],
    positions: Float[Tensor, "r 14 3"],
    radius: Float[Tensor, "r 14"],
    residue_index: Int[Tensor, "r"],
    aatype: Int[Tensor, "r"],
) -> Int[Tensor, "p 2"]:
    one, two = pairs.unbind(-1)
    nearest = radius[one][:, :, None] + radius[two][:, None] - OVERLAP
    # One coordinate after the other: rows of three numbers take several times as long.
    x, y, z = (row[one][:, :, None] - row[two][:, None] for row in positions.unbind(-1))
    clash = torch.sqrt(x * x + y * y + z * z + _CLASH_EPS) < nearest
    clash[:, _C, _N] &= residue_index[one] + 1 != residue_index[two]
    # DISCREPANCY: only the SG of two cysteines may be bonded. AF2's code and OpenFold's let the
    # sixth atoms of any two residues off, such as CG of two leucines.
    cysteine = aatype == AATYPE["C"]
    clash[:, _SG, _SG] &= ~(cysteine[one] & cysteine[two])
    pair, column, other = clash.nonzero().unbind(-1)
    return torch.stack((14 * one[pair] + column, 14 * two[pair] + other), -1)


def _summed_clashes(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """The overlaps that `_clashes` finds, summed by chain, in shapes that depend on no value.

    All (14 n)² distances are made, some rows at a time, and again in the backward pass.
    """
    radius = tables(aatype.device).atom14_radius[aatype]
    radius = radius.masked_fill(~_atom_mask(aatype, mask), -torch.inf).flatten(1)
    points = positions.flatten(1, 2)
    residue = residue_index[..., None].expand(-1, -1, 14).flatten(1)
    # An atom without bonds to other residues has one number as a row and another as a column.
    columns = points.detach(), radius, residue, _bonds(aatype, residue_index, -2)
    rows = points, radius, residue, _bonds(aatype, residue_index, -3)
    size = max(1, _DENSE // max(1, radius.numel()))
    twice = torch.zeros_like(positions[:, 0, 0, 0])
    for part in zip(*(row.split(size, 1) for row in rows), strict=True):
        twice = twice + checkpoint(
            _overlap, part, columns, use_reentrant=False, preserve_rng_state=False
        )
    # Each pair is in the sum twice, with a gradient for the atom of its row: that is the value of
    # two pairs and the gradient of one.
    return twice - twice.detach() / 2


def _bonds(
    aatype: Int[Tensor, "b n"], residue_index: Int[Tensor, "b n"], other: int
) -> Int[Tensor, "b p"]:
    """A number of each atom that those which may be bonded to another residue's share with it."""
    column = torch.arange(14, device=aatype.device)
    index, cysteine = residue_index[..., None], (aatype == AATYPE["C"])[..., None]
    bond = torch.where(column == _N, index, torch.where(column == _C, index + 1, other))
    return torch.where(cysteine & (column == _SG), -1, bond).flatten(1)


def _overlap(rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Float[Tensor, "b"]:
    """Overlap beyond the tolerance in Å of every row with all columns, summed by chain."""
    (point, *rest), (other_point, *other_rest) = rows, columns
    radius, residue, bond = (row[:, :, None] for row in rest)
    other_radius, other_residue, other_bond = (column[:, None] for column in other_rest)
    apart = (residue != other_residue) & (bond != other_bond)
    # One coordinate after the other: rows of three numbers take several times as long.
    x, y, z = (
        row[:, :, None] - column[:, None]
        for row, column in zip(point.unbind(-1), other_point.unbind(-1), strict=True)
    )
    distance = torch.sqrt(x * x + y * y + z * z + _CLASH_EPS)
    overlap = (radius + other_radius - OVERLAP - distance).relu()
    return torch.where(apart, overlap, 0.0).sum((1, 2))


def _distance(
    one: Float[Tensor, "*#batch 3"], two: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch"]:
    return torch.sqrt((one - two).square().sum(-1) + _CLASH_EPS)

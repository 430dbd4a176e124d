"""Violations of stereochemistry: peptide bonds, distances within residues, and clashes.

Bounds are flat: twelve standard deviations for lengths and angles, 1.5 Å of overlap for atoms
without a bond (AF2 Suppl. 1.9.11; `protein.stereochemistry` has the values).
"""

from dataclasses import dataclass
from typing import NamedTuple

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
"""Pairs of atoms at once if all are compared: 64 MB for each of some ten tensors."""


@dataclass(frozen=True, eq=False)
class ViolationCounts:
    """How many violations each chain has; NaN if a coordinate of the chain is not finite.

    Attributes:
        bonds: peptide bonds C-N of wrong length.
        angles: wrong angles at peptide bonds, CA-C-N and C-N-CA.
        clashes: pairs of atoms of two residues that overlap too much.
        within_residues: pairs of atoms of one residue that are too near or, one or two bonds apart,
            too far.
    """

    bonds: Float[Tensor, "b"]
    angles: Float[Tensor, "b"]
    clashes: Float[Tensor, "b"]
    within_residues: Float[Tensor, "b"]


class _Chains(NamedTuple):
    """Predicted chains, positions in at least float32, `mask` without X."""

    positions: Float[Tensor, "b n 14 3"]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]

    @property
    def atom_mask(self) -> Bool[Tensor, "b n 14"]:
        return tables(self.aatype.device).atom14_mask[self.aatype] & self.mask[..., None]

    @property
    def radius(self) -> Float[Tensor, "b n 14"]:
        """Radius of each atom in Å; -inf, which reaches no other, where there is none."""
        radius = tables(self.aatype.device).atom14_radius[self.aatype]
        return radius.masked_fill(~self.atom_mask, -torch.inf)

    @property
    def linked(self) -> Bool[Tensor, "b links"]:
        """Which residues have a peptide bond to the next one."""
        index, mask = self.residue_index, self.mask
        return mask[:, :-1] & mask[:, 1:] & (index[:, :-1] + 1 == index[:, 1:])

    def nan_if_broken(self, value: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        # A NaN makes no clash and breaks no bound, so it needs a check of its own.
        return value.masked_fill(~self.positions.isfinite().flatten(1).all(1), torch.nan)


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
        residue_index: a residue is bound to the next in the array if the index rises by 1;
            residues of the same index do not clash.
        mask: which residues exist.
    """
    chains = _chains(positions, aatype, residue_index, mask)
    with torch.autocast(positions.device.type, enabled=False):
        linked = chains.linked
        peptide = (_peptide_excess(chains) * linked[..., None]).sum((1, 2))
        within = (_within_excess(chains) * chains.mask[..., None, None]).sum((1, 2, 3))
        if lists_pairs(mask.device):
            chain, overlap = _clashes(chains)
            clashes = torch.zeros_like(within).index_add(0, chain, overlap)
        else:
            clashes = _summed_clashes(chains)
        atoms = chains.atom_mask.sum((1, 2)).clamp(min=1)
        # DISCREPANCY: eq. 46 sums over pairs. AF2's code, followed here, divides by the number of
        # atoms and counts the loss of a pair for both of its atoms: twice between residues and four
        # times within a residue, since `within` is over ordered pairs.
        loss = peptide / linked.sum(-1).clamp(min=1) + 2 * (clashes + within) / atoms
    return chains.nan_if_broken(loss)


@torch.no_grad()
def count_violations(
    positions: Float[Tensor, "b n 14 3"],
    aatype: Int[Tensor, "b n"],
    residue_index: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
) -> ViolationCounts:
    """Counts the violations that `violation_loss` adds up; the arguments are the same."""
    chains = _chains(positions, aatype, residue_index, mask)
    with torch.autocast(positions.device.type, enabled=False):
        wrong = (_peptide_excess(chains) > 0) & chains.linked[..., None]
        within = (_within_excess(chains) > 0) & chains.mask[..., None, None]
        chain, _ = _clashes(chains)
    counts = (
        wrong[..., 0].sum(1),
        wrong[..., 1:].sum((1, 2)),
        chain.bincount(minlength=len(positions)),
        within.sum((1, 2, 3)) / 2,
    )
    return ViolationCounts(*(chains.nan_if_broken(count.float()) for count in counts))


def _chains(positions: Tensor, aatype: Tensor, residue_index: Tensor, mask: Tensor) -> _Chains:
    exact = positions.to(torch.promote_types(positions.dtype, torch.float32))
    # X is predicted as alanine, but nobody knows its atoms.
    return _Chains(exact, aatype, residue_index, mask & (aatype != UNKNOWN))


def _peptide_excess(chains: _Chains) -> Float[Tensor, "b links 3"]:
    """By how much C-N (Å) and the cosines of CA-C-N and C-N-CA miss their bounds."""
    positions = chains.positions
    ca, c = positions[:, :-1, _CA], positions[:, :-1, _C]
    next_n, next_ca = positions[:, 1:, _N], positions[:, 1:, _CA]
    to_ca, _ = _direction(ca - c)
    to_n, length = _direction(next_n - c)
    onward, _ = _direction(next_ca - next_n)
    cosines = (to_ca * to_n).sum(-1), -(to_n * onward).sum(-1)
    # DISCREPANCY: the code of AF2 until 2025, and OpenFold's, bounds the cosine of CA-C-N by the
    # deviation of the length C-N, 0.014; AF2 has corrected that to the 0.0311 of the supplement.
    bounds = tables(positions.device).peptide_bounds[chains.aatype[:, 1:]]
    mean, deviation = bounds.to(positions.dtype).unbind(-1)
    error = (torch.stack((length, *cosines), -1) - mean).square()
    return (torch.sqrt(error + _PEPTIDE_EPS) - TOLERANCE * deviation).relu()


def _direction(
    vector: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    length = torch.sqrt(vector.square().sum(-1) + _PEPTIDE_EPS)
    return vector / length[..., None], length


def _within_excess(chains: _Chains) -> Float[Tensor, "b n 14 14"]:
    """By how much distances within residues miss their bounds, in Å; every pair is in it twice."""
    positions, aatype, *_ = chains
    table = tables(aatype.device)
    distance = _distance(positions[:, :, :, None], positions[:, :, None])
    too_near = (table.distance_lower[aatype] - distance).relu()
    return too_near + (distance - table.distance_upper[aatype]).relu()


def _clashes(chains: _Chains) -> tuple[Int[Tensor, "p"], Float[Tensor, "p"]]:
    """Chain, and overlap beyond the tolerance in Å, of each clashing pair of two residues.

    Clashing pairs are few, and only they need a gradient. Measured at 384 residues on one core, the
    loss takes 38 MB and 0.05 s with its backward pass, where all (14 n)² distances are 116 MB; all
    atoms of a chain in one place, the worst case, take 360 MB and 1.5 s.
    """
    radius = chains.radius.flatten(0, 1)
    with torch.no_grad():
        near = _near_residues(chains).split(_BLOCK)
        one, two = torch.cat([_clashing_of(pairs, chains, radius) for pairs in near]).unbind(-1)
    radius, points = radius.flatten(), chains.positions.flatten(0, 2)
    overlap = radius[one] + radius[two] - OVERLAP - _distance(points[one], points[two])
    return one // (14 * chains.aatype.shape[1]), overlap


def _near_residues(chains: _Chains) -> Int[Tensor, "q 2"]:
    """Pairs of residues that can clash, as places in the flattened batch, the earlier one first.

    No atom is farther from its Cα than the radius of its residue, so other pairs cannot.
    """
    positions, _, residue_index, _ = chains
    n, ca = residue_index.shape[1], positions[:, :, _CA]
    # The radius of a residue that does not exist is -inf: it reaches no other.
    radius = _distance(positions, ca[:, :, None]).masked_fill(~chains.atom_mask, -torch.inf)
    radius = radius.amax(-1)
    reach = radius[:, :, None] + radius[:, None] + _LONGEST_CLASH + _ROUNDING
    earlier = residue_index[:, :, None] < residue_index[:, None]
    chain, one, two = (earlier & (pairwise_distances(ca, ca) < reach)).nonzero().unbind(-1)
    return torch.stack((n * chain + one, n * chain + two), -1)


def _clashing_of(
    pairs: Int[Tensor, "q 2"], chains: _Chains, radius: Float[Tensor, "r 14"]
) -> Int[Tensor, "p 2"]:
    """Clashing pairs of atoms of the given residues, as places in the flattened batch."""
    one, two = pairs.unbind(-1)
    index = chains.residue_index.flatten()
    nearest = radius[one][:, :, None] + radius[two][:, None] - OVERLAP
    # One coordinate after the other: rows of three numbers take several times as long.
    rows = chains.positions.flatten(0, 1).unbind(-1)
    x, y, z = (row[one][:, :, None] - row[two][:, None] for row in rows)
    clash = torch.sqrt(x * x + y * y + z * z + _CLASH_EPS) < nearest
    clash[:, _C, _N] &= index[one] + 1 != index[two]
    # DISCREPANCY: only the SG of two cysteines may be bonded. AF2's code and OpenFold's exempt
    # the sixth atoms of any two residues, such as CG of two leucines.
    cysteine = chains.aatype.flatten() == AATYPE["C"]
    clash[:, _SG, _SG] &= ~(cysteine[one] & cysteine[two])
    pair, column, other = clash.nonzero().unbind(-1)
    return torch.stack((14 * one[pair] + column, 14 * two[pair] + other), -1)


def _summed_clashes(chains: _Chains) -> Float[Tensor, "b"]:
    """The overlaps that `_clashes` finds, summed by chain, in shapes that depend on no value.

    All (14 n)² distances are made, some rows at a time, and again in the backward pass.
    """
    radius, points = chains.radius.flatten(1), chains.positions.flatten(1, 2)
    residue = chains.residue_index[..., None].expand(-1, -1, 14).flatten(1)
    # An atom without bonds to other residues has one number as a row and another as a column.
    columns = points.detach(), radius, residue, _bonds(chains, -2)
    rows = points, radius, residue, _bonds(chains, -3)
    size = max(1, _DENSE // max(1, radius.numel()))
    twice = points.new_zeros(len(points))
    for part in zip(*(row.split(size, 1) for row in rows), strict=True):
        twice = twice + checkpoint(
            _overlap, part, columns, use_reentrant=False, preserve_rng_state=False
        )
    # The sum has each pair twice, with a gradient for the atom of its row only: twice the value,
    # but once the gradient.
    return twice - twice.detach() / 2


def _bonds(chains: _Chains, other: int) -> Int[Tensor, "b p"]:
    """A number for each atom; atoms of two residues that may be bonded have the same one."""
    column = torch.arange(14, device=chains.aatype.device)
    index, cysteine = chains.residue_index[..., None], (chains.aatype == AATYPE["C"])[..., None]
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

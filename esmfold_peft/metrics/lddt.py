"""The local distance difference test: one definition for training, validation and commands."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.ambiguity import is_ambiguous, swap_ambiguous_atoms
from esmfold_peft.geometry.distances import pairwise_distances

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""A pair of atoms is preserved at each of these deviations of its distance, in Å."""

CUTOFF = 15.0
"""Pairs count whose reference distance is at most this, in Å."""

_CA = 1

_BLOCK = 2**19
"""Pairs of atoms scored at once when all atoms count: at most 75 MB in double precision."""


@dataclass(frozen=True, eq=False)
class LDDT:
    """Scores of a batch of predictions, 0 to 1.

    Attributes:
        per_residue: mean over the pairs of each residue; NaN without pairs and where the reference
            has no atom.
        per_chain: mean over all pairs of the chain (the published score); NaN without pairs.
        pairs: reference pairs i < j within the cutoff.
    """

    per_residue: Float[Tensor, "b n"]
    per_chain: Float[Tensor, "b"]
    pairs: Int[Tensor, "b"]

    @property
    def mean_per_residue(self) -> Float[Tensor, "b"]:
        """Mean of the residues' scores, which weighs crowded residues less; NaN without pairs."""
        return self.per_residue.nanmean(-1)


@dataclass(frozen=True, eq=False)
class AllAtomLDDT(LDDT):
    """Scores over all heavy atoms; that of a residue is the mean over the pairs of its atoms.

    Attributes:
        per_atom: mean over the pairs of each atom, in the column that the prediction gives it; NaN
            without pairs and where the reference has no such atom.
    """

    per_atom: Float[Tensor, "b n 14"]


@torch.no_grad()
def lddt(
    predicted: Float[Tensor, "b n 3"],
    true: Float[Tensor, "b n 3"],
    mask: Bool[Tensor, "b n"],
    *,
    predicted_mask: Bool[Tensor, "b n"] | None = None,
    cutoff: float = CUTOFF,
) -> LDDT:
    """Scores one atom of each residue (lDDT, Mariani et al. 2013) as OpenStructure and biotite do.

    Every pair of atoms present in the reference counts, neighbours in sequence too, if its
    reference distance is at most `cutoff`. The score is the share of pairs whose distance is
    preserved within 0.5, 1, 2 and 4 Å (limits included), averaged over the four. An atom that is
    missing in the prediction, or not finite, loses all its pairs. Stereochemistry is not checked.
    No gradient; the dtype is that of the coordinates.

    Args:
        predicted: coordinates of the prediction in Å.
        true: coordinates of the reference in Å; anything where masked.
        mask: atoms present in the reference.
        predicted_mask: atoms present in the prediction; None if all are.
        cutoff: inclusion radius in Å.
    """
    # DISCREPANCY: AF2 counts distances below the cutoff and deviations below the thresholds, and
    # gives a residue without pairs the score 1; the published metric includes the limits, and such
    # a residue has no score.
    found = torch.ones_like(mask) if predicted_mask is None else predicted_mask
    residue = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    atoms = _Atoms(predicted, true, mask, found, residue)
    kept, pairs = _tally(atoms, atoms, cutoff)
    # 0 / 0 is the NaN that says "no score".
    return LDDT(kept / pairs, kept.sum(-1) / pairs.sum(-1), pairs.sum(-1) // 2)


def lddt_ca(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    *,
    predicted_atom_mask: Bool[Tensor, "b n 14"] | None = None,
) -> LDDT:
    """Computes lDDT-Cα in float64, for evaluation.

    Args:
        predicted: predicted atom14 coordinates in Å.
        true: reference atom14 coordinates in Å.
        atom_mask: atoms present in the reference.
        predicted_atom_mask: atoms present in the prediction; None if all are.
    """
    found = None if predicted_atom_mask is None else predicted_atom_mask[:, :, _CA]
    ca, true_ca = predicted[:, :, _CA].double(), true[:, :, _CA].double()
    return lddt(ca, true_ca, atom_mask[:, :, _CA], predicted_mask=found)


@torch.no_grad()
def lddt_all_atom(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    *,
    aatype: Int[Tensor, "b n"],
    predicted_atom_mask: Bool[Tensor, "b n 14"] | None = None,
) -> AllAtomLDDT:
    """Scores all heavy atoms (lDDT, Mariani et al. 2013), as `lddt` does.

    Pairs of atoms within one residue do not count (as in OpenStructure and biotite). Atoms that
    differ by name alone may be named as the prediction names them: of the two namings of an ASP,
    GLU, PHE or TYR, the one counts that keeps more distances from its ambiguous atoms to the
    chain's unambiguous ones; the reference's own if they keep as many. No gradient; the dtype is
    that of the coordinates, so pass doubles to evaluate. Memory grows with the atoms, not with
    their pairs.

    Args:
        predicted: coordinates of the prediction in Å.
        true: coordinates of the reference in Å; anything where masked.
        atom_mask: atoms present in the reference.
        aatype: 0 to 20; X, in particular, has no ambiguous atoms.
        predicted_atom_mask: atoms present in the prediction; None if all are.
    """
    # DISCREPANCY: OpenStructure chooses names in the same way, but also those of ARG NH1 and NH2,
    # LEU CD1 and CD2 and VAL CG1 and CG2. As AF2, we take the first as fixed when a file is read,
    # and the others tell a mirror image of the residue.
    found = torch.ones_like(atom_mask) if predicted_atom_mask is None else predicted_atom_mask
    true, atom_mask = _named_as_predicted(predicted, true, atom_mask, found, aatype)
    atoms = _flatten(predicted, true, atom_mask, found)
    kept, pairs = _tally_in_blocks(atoms, atoms.known, atoms.known)
    kept, pairs = kept.view(atom_mask.shape), pairs.view(atom_mask.shape)
    return AllAtomLDDT(
        per_atom=kept / pairs,
        per_residue=kept.sum(-1) / pairs.sum(-1),
        per_chain=kept.sum((1, 2)) / pairs.sum((1, 2)),
        pairs=pairs.sum((1, 2)) // 2,
    )


@dataclass(frozen=True, eq=False)
class _Atoms:
    """Atoms in both structures.

    Attributes:
        predicted: Å.
        true: Å; anything where not known.
        known: present in the reference.
        found: present in the prediction.
        residue: atoms of one residue make no pair.
    """

    predicted: Float[Tensor, "b p 3"]
    true: Float[Tensor, "b p 3"]
    known: Bool[Tensor, "b p"]
    found: Bool[Tensor, "b p"]
    residue: Int[Tensor, "b p"]

    def select(self, chain: int, atoms: Int[Tensor, "q"]) -> "_Atoms":
        """Some atoms of one chain, as a batch of one."""
        return _Atoms(
            self.predicted[chain, atoms][None],
            self.true[chain, atoms][None],
            self.known[chain, atoms][None],
            self.found[chain, atoms][None],
            self.residue[chain, atoms][None],
        )


def _flatten(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    known: Bool[Tensor, "b n 14"],
    found: Bool[Tensor, "b n 14"],
) -> _Atoms:
    residue = torch.arange(known.shape[1], device=known.device)[:, None].expand(known.shape)
    return _Atoms(
        predicted.flatten(1, 2),
        true.flatten(1, 2),
        known.flatten(1),
        found.flatten(1),
        residue.flatten(1),
    )


def _tally(
    rows: _Atoms, columns: _Atoms, cutoff: float
) -> tuple[Float[Tensor, "b r"], Int[Tensor, "b r"]]:
    """For every row, its score summed over its pairs with the columns, and how many they are."""
    true_distance = pairwise_distances(rows.true, columns.true)
    counted = rows.known[:, :, None] & columns.known[:, None] & (true_distance <= cutoff)
    counted &= rows.residue[:, :, None] != columns.residue[:, None]
    found = counted & rows.found[:, :, None] & columns.found[:, None]
    deviation = (pairwise_distances(rows.predicted, columns.predicted) - true_distance).abs()
    preserved = sum((deviation <= threshold).to(deviation.dtype) for threshold in THRESHOLDS)
    return (preserved * found).sum(-1) / len(THRESHOLDS), counted.sum(-1)


def _tally_in_blocks(
    atoms: _Atoms, rows: Bool[Tensor, "b p"], columns: Bool[Tensor, "b p"]
) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b p"]]:
    """The same between chosen atoms, a chain and a block of rows at a time; 0 in other rows."""
    kept = atoms.true.new_zeros(rows.shape)
    pairs = torch.zeros_like(rows, dtype=torch.long)
    for chain in range(len(rows)):
        partners = atoms.select(chain, columns[chain].nonzero()[:, 0])
        size = max(1, _BLOCK // max(1, partners.known.numel()))
        for block in rows[chain].nonzero()[:, 0].split(size):
            block_kept, block_pairs = _tally(atoms.select(chain, block), partners, CUTOFF)
            kept[chain, block], pairs[chain, block] = block_kept[0], block_pairs[0]
    return kept, pairs


def _named_as_predicted(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    known: Bool[Tensor, "b n 14"],
    found: Bool[Tensor, "b n 14"],
    aatype: Int[Tensor, "b n"],
) -> tuple[Float[Tensor, "b n 14 3"], Bool[Tensor, "b n 14"]]:
    """The reference, each residue under the naming whose ambiguous atoms score better."""
    # Not the distance misfit of AF2 Alg. 26 (`losses.truth`): it cannot weigh a naming under which
    # an atom is missing in the prediction, and need not find the better score.
    ambiguous = is_ambiguous(aatype)
    namings = (true, known), swap_ambiguous_atoms(aatype, true, known)
    given, other = (
        _kept_by_residue(_flatten(predicted, *naming, found), ambiguous) for naming in namings
    )
    swap = (other > given)[..., None]
    (true, known), (other_true, other_known) = namings
    return torch.where(swap[..., None], other_true, true), torch.where(swap, other_known, known)


def _kept_by_residue(atoms: _Atoms, ambiguous: Bool[Tensor, "b n 14"]) -> Float[Tensor, "b n"]:
    rows = ambiguous.flatten(1)
    kept, _ = _tally_in_blocks(atoms, atoms.known & rows, atoms.known & ~rows)
    return kept.view(ambiguous.shape).sum(-1)

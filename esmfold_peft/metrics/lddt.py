"""The local distance difference test: one definition for training, validation and commands."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.devices import lists_pairs
from esmfold_peft.geometry.tables import tables
from esmfold_peft.metrics.lddt_pairs import Atoms, tally_in_rows, tally_near
from esmfold_peft.protein.residues import AATYPE, ATOM14

Naming = Literal["af2", "openstructure"]
"""Atoms that may be named either way: the oxygens of ASP and GLU and the ring atoms of PHE and TYR;
or these, NH1 and NH2 of ARG, CD1 and CD2 of LEU, and CG1 and CG2 of VAL."""

CUTOFF = 15.0
"""Å; pairs count up to this distance in the reference."""

_CA = 1

_MIRRORED = {"R": ("NH1", "NH2"), "L": ("CD1", "CD2"), "V": ("CG1", "CG2")}
"""Names that OpenStructure allows to be exchanged, but AF2 does not."""

_BLOCK = 2**19
"""Pairs in memory at once on a CPU: at most 75 MB in double precision."""

_DENSE = 2**23
"""Pairs in memory at once elsewhere: 700 MB in double precision; one atom of each residue of 32
crops of 384 residues stays in one piece."""

_SHORT = 128
"""Atoms; up to this number a CPU compares all pairs as fast as it searches for the near ones."""


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
    missing in the prediction, or not finite, preserves no distance. Stereochemistry is not checked.
    No gradient; the dtype is that of the coordinates. Memory grows with the atoms, not with their
    pairs; nothing waits for a GPU.

    Args:
        predicted: coordinates in Å.
        true: coordinates of the reference in Å; anything where masked.
        mask: atoms present in the reference.
        predicted_mask: atoms present in the prediction; None for all.
        cutoff: inclusion radius in Å.
    """
    # DISCREPANCY: AF2 counts distances below the cutoff and deviations below the thresholds, and
    # gives a residue without pairs the score 1; the published metric includes the limits, and such
    # a residue has no score.
    found = torch.ones_like(mask) if predicted_mask is None else predicted_mask
    residue = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    atoms = Atoms(predicted, true, mask, found, residue)
    kept, pairs = _tally(atoms, mask, cutoff=cutoff)
    # 0 / 0 is NaN, which means "no score".
    return LDDT(kept / pairs, kept.sum(-1) / pairs.sum(-1), pairs.sum(-1) // 2)


def lddt_ca(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    *,
    predicted_atom_mask: Bool[Tensor, "b n 14"] | None = None,
) -> LDDT:
    """`lddt` of the Cα of atom14 coordinates, in float64, for evaluation."""
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
    naming: Naming = "af2",
) -> AllAtomLDDT:
    """Scores all heavy atoms as `lddt` does; pass doubles to evaluate.

    Pairs of atoms within one residue do not count (as in OpenStructure and biotite). Of the two
    namings of an ASP, GLU, PHE or TYR, the one counts that keeps more distances from its ambiguous
    atoms to the chain's unambiguous ones, or the reference's own if both keep as many; `naming`
    "openstructure" chooses for more residues and gives that program's score. The terminal OXT is
    not scored. `aatype` is 0 to 20; X has no ambiguous atoms.
    """
    # DISCREPANCY: OpenStructure chooses names in the same way, but also those of ARG, LEU and VAL.
    # Like AF2, "af2" takes ARG's as given by the file; those of LEU and VAL tell mirror images.
    found = torch.ones_like(atom_mask) if predicted_atom_mask is None else predicted_atom_mask
    swaps = tables(aatype.device).ambiguous_swap
    swaps = swaps if naming == "af2" else _openstructure_swap(aatype.device)
    true, atom_mask = _named_as_predicted(predicted, true, atom_mask, found, swaps[aatype])
    atoms = _flatten(predicted, true, atom_mask, found)
    kept, pairs = _tally(atoms, atoms.known)
    kept, pairs = kept.view(atom_mask.shape), pairs.view(atom_mask.shape)
    return AllAtomLDDT(
        per_atom=kept / pairs,
        per_residue=kept.sum(-1) / pairs.sum(-1),
        per_chain=kept.sum((1, 2)) / pairs.sum((1, 2)),
        pairs=pairs.sum((1, 2)) // 2,
    )


def _flatten(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    known: Bool[Tensor, "b n 14"],
    found: Bool[Tensor, "b n 14"],
) -> Atoms:
    residue = torch.arange(known.shape[1], device=known.device)[:, None].expand(known.shape)
    return Atoms(
        predicted.flatten(1, 2),
        true.flatten(1, 2),
        known.flatten(1),
        found.flatten(1),
        residue.flatten(1),
    )


def _tally(
    atoms: Atoms,
    rows: Bool[Tensor, "b p"],
    columns: Bool[Tensor, "b p"] | None = None,
    *,
    cutoff: float = CUTOFF,
) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b p"]]:
    """Scores and pairs of the rows with the columns, or among themselves; 0 in other rows."""
    listed = lists_pairs(rows.device)
    if listed and rows.shape[1] > _SHORT:
        return tally_near(atoms, rows, columns, cutoff, _BLOCK)
    block = _BLOCK if listed else _DENSE
    return tally_in_rows(atoms, rows, rows if columns is None else columns, cutoff, block)


def _named_as_predicted(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    known: Bool[Tensor, "b n 14"],
    found: Bool[Tensor, "b n 14"],
    exchanged: Int[Tensor, "b n 14"],
) -> tuple[Float[Tensor, "b n 14 3"], Bool[Tensor, "b n 14"]]:
    """The reference, each residue under the naming whose ambiguous atoms score better.

    `exchanged` is the column whose atom has each atom's other name; its own if it has none.
    """
    # Not the distance misfit of AF2 Alg. 26 (`losses.naming`): it cannot weigh a naming under which
    # an atom is missing in the prediction, and need not find the better score.
    ambiguous = exchanged != torch.arange(14, device=exchanged.device)
    other_true = true.take_along_dim(exchanged[..., None], dim=2)
    namings = (true, known), (other_true, known.take_along_dim(exchanged, dim=2))
    rows, kept = ambiguous.flatten(1), []
    for naming in namings:
        atoms = _flatten(predicted, *naming, found)
        score, _ = _tally(atoms, atoms.known & rows, atoms.known & ~rows)
        kept.append(score.view(ambiguous.shape).sum(-1))
    given, other = kept
    swap = (other > given)[..., None]
    return torch.where(swap[..., None], other_true, true), torch.where(swap, namings[1][1], known)


@cache
def _openstructure_swap(device: torch.device) -> Int[Tensor, "21 14"]:
    with torch.inference_mode(False):
        columns = tables(device).ambiguous_swap.clone()
        for letter, names in _MIRRORED.items():
            pair = [ATOM14[letter].index(name) for name in names]
            columns[AATYPE[letter], pair] = columns[AATYPE[letter], pair[::-1]]
    return columns

"""Predictions made from real chains, the same on every machine, and their scores by our metrics.

Draws come from `np.random.RandomState`, whose streams NumPy has frozen, and coordinates have the
three decimals of the PDB format, so that scores of other programs for them can be kept in a file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from esmfold_peft.datasets.features import features
from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.metrics.superposition import Superposition, superposition_scores
from esmfold_peft.protein.residues import AMBIGUOUS_ATOMS, ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure

CA, CB = ATOM37_INDEX["CA"], ATOM37_INDEX["CB"]
_FIXED = [ATOM37_INDEX[name] for name in ("N", "CA", "C", "O", "CB", "OXT")]


@dataclass(frozen=True)
class Scores:
    """Everything that is scored: lDDT is that of all pairs of a chain, 0 to 1."""

    ca: float
    ca_pairs: int
    all_atom: float
    all_atom_pairs: int
    superposition: Superposition


def scores(prediction: ProteinStructure, reference: ProteinStructure) -> Scores:
    """Scores of a prediction that has the residues of the reference, in order."""
    model, truth = features(prediction), features(reference)
    predicted, true = (torch.from_numpy(c.positions)[None].double() for c in (model, truth))
    mask, found = (torch.from_numpy(c.atom_mask)[None] for c in (truth, model))
    ca = lddt_ca(predicted, true, mask, predicted_atom_mask=found)
    aatype = torch.from_numpy(truth.aatype)[None]
    atoms = lddt_all_atom(
        predicted,
        true,
        mask,
        aatype=aatype,
        predicted_atom_mask=found,
        naming="openstructure",
    )
    superposition = superposition_scores(
        model.positions[:, 1], truth.positions[:, 1], truth.atom_mask[:, 1], model.atom_mask[:, 1]
    )
    return Scores(
        ca=float(ca.per_chain),
        ca_pairs=int(ca.pairs),
        all_atom=float(atoms.per_chain),
        all_atom_pairs=int(atoms.pairs),
        superposition=superposition,
    )


def perturbed(structure: ProteinStructure, kind: str, seed: int) -> ProteinStructure:
    """A prediction of a chain, turned in space.

    Args:
        structure: the chain.
        kind: one of `KINDS`.
        seed: of the draws.
    """
    draws = np.random.RandomState(seed)
    changed = KINDS[kind](structure, draws)
    turn, _ = np.linalg.qr(draws.randn(3, 3))
    turn[:, 0] *= np.sign(np.linalg.det(turn))
    center = structure.positions[structure.atom_mask].mean(0)
    return placed(changed, (changed.positions - center) @ turn + [12.0, -7.0, 31.0])


def placed(structure: ProteinStructure, positions: np.ndarray) -> ProteinStructure:
    """A structure elsewhere, to three decimals."""
    positions = np.round(positions, 3) * structure.atom_mask[..., None]
    return replace(structure, positions=positions.astype(np.float32))


def _jittered(sigma: float) -> Callable:
    def change(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
        noise = sigma * draws.randn(*structure.positions.shape)
        return replace(structure, positions=(structure.positions + noise).astype(np.float32))

    return change


def _bent(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
    """Residues near each other in the sequence are displaced alike, by 3 Å along each axis."""
    steps = draws.randn(len(structure) + 20, 3)
    smooth = np.array([steps[i : i + 21].sum(0) for i in range(len(structure))]) / np.sqrt(21)
    moved = structure.positions + 3 * smooth[:, None]
    return replace(structure, positions=moved.astype(np.float32))


def _gappy(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
    """Without 15 % of the residues."""
    kept = draws.rand(len(structure)) > 0.15
    mask = structure.atom_mask & kept[:, None]
    return replace(_jittered(0.5)(structure, draws), atom_mask=mask)


def _turned(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
    """Side chains turned about CA-CB, by any angle."""
    positions = structure.positions.astype(np.float64)
    ca, cb = positions[:, CA], positions[:, CB]
    angle = draws.uniform(-np.pi, np.pi, len(structure))[:, None, None]
    length = np.linalg.norm(cb - ca, axis=-1, keepdims=True)
    axis = ((cb - ca) / np.maximum(length, 1e-6))[:, None]
    arm = positions - cb[:, None]
    along = (arm * axis).sum(-1, keepdims=True) * axis
    across = np.cross(np.broadcast_to(axis, arm.shape), arm)
    turned = cb[:, None] + along + np.cos(angle) * (arm - along) + np.sin(angle) * across
    turned[:, _FIXED] = positions[:, _FIXED]
    turned += 0.2 * draws.randn(*turned.shape)
    return replace(structure, positions=turned.astype(np.float32))


def _renamed(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
    """Atoms that differ by name alone under each other's, in half of the residues that have any."""
    positions, mask = structure.positions.copy(), structure.atom_mask.copy()
    for place, letter in enumerate(structure.sequence):
        if draws.rand() < 0.5:
            for pair in AMBIGUOUS_ATOMS.get(letter, ()):
                columns = [ATOM37_INDEX[name] for name in pair]
                positions[place, columns] = positions[place, columns[::-1]]
                mask[place, columns] = mask[place, columns[::-1]]
    return _jittered(0.3)(replace(structure, positions=positions, atom_mask=mask), draws)


def _walking(structure: ProteinStructure, draws: np.random.RandomState) -> ProteinStructure:
    """Another chain: whole residues along a random walk."""
    walk = np.cumsum(2.2 * draws.randn(len(structure), 1, 3), axis=0)
    moved = structure.positions - structure.positions[:, CA : CA + 1] + walk
    return replace(structure, positions=moved.astype(np.float32))


KINDS: dict[str, Callable[[ProteinStructure, np.random.RandomState], ProteinStructure]] = {
    "jitter 0.3": _jittered(0.3),
    "jitter 1": _jittered(1.0),
    "jitter 2.5": _jittered(2.5),
    "bent": _bent,
    "gaps": _gappy,
    "side chains turned": _turned,
    "names exchanged": _renamed,
    "random walk": _walking,
}
"""Ways to make a prediction of a chain."""

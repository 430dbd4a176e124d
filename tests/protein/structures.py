"""Made-up predictions, and what two structures have in common."""

from dataclasses import replace

import numpy as np

from esmfold_peft.protein.residues import ATOM14, ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure


def rows_of(structure: ProteinStructure) -> list[tuple[int, str]]:
    """Place and name of each atom in the order of a file."""
    return [
        (place, name)
        for place, letter in enumerate(structure.sequence)
        for name in (*ATOM14[letter], "OXT")
        if structure.atom_mask[place, ATOM37_INDEX[name]]
    ]


def coordinates(structure: ProteinStructure) -> np.ndarray:
    return np.stack([structure.positions[p, ATOM37_INDEX[a]] for p, a in rows_of(structure)])


def prediction(sequence: str, **changes: object) -> ProteinStructure:
    """A made-up prediction: every atom present, pLDDT rising along the chain."""
    n = len(sequence)
    mask = np.zeros((n, 37), dtype=bool)
    for place, letter in enumerate(sequence):
        mask[place, [ATOM37_INDEX[name] for name in ATOM14[letter]]] = True
    random = np.random.default_rng(0).uniform(-50, 50, (n, 37, 3)).round(3)
    plddt = np.linspace(0, 100, n)[:, None].round(2) * mask
    structure = ProteinStructure(
        id="my protein/1",
        sequence=sequence,
        residue_index=np.arange(n, dtype=np.int32),
        residue_names=("",) * n,
        positions=(random * mask[..., None]).astype(np.float32),
        atom_mask=mask,
        b_factors=plddt.astype(np.float32),
    )
    return replace(structure, **changes)


def assert_equal(read: ProteinStructure, written: ProteinStructure) -> None:
    assert read.sequence == written.sequence
    np.testing.assert_array_equal(read.atom_mask, written.atom_mask)
    np.testing.assert_allclose(read.positions, written.positions, atol=1e-3)
    np.testing.assert_allclose(read.b_factors, written.b_factors, atol=6e-3)

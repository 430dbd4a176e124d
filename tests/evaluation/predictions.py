"""Chains made by hand, and predictions made of real ones."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from esmfold_peft.cli import main
from esmfold_peft.evaluation.chain import Chain
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_pdb

EXAMPLE = Path(__file__).parents[2] / "data" / "example"


def chain(sequence: str, numbers: list[str] | None = None, index: list[int] | None = None) -> Chain:
    """A chain of Cα on a line; its numbers count from 1 where none are given."""
    n = len(sequence)
    mask = np.zeros((n, 37), dtype=bool)
    mask[:, 1] = True
    positions = np.zeros((n, 37, 3), dtype=np.float32)
    positions[:, 1, 0] = 3.8 * np.arange(n)
    return Chain(
        sequence=sequence,
        residue_index=np.array(range(n) if index is None else index, dtype=np.int64),
        numbers=tuple(str(k + 1) for k in range(n)) if numbers is None else tuple(numbers),
        positions=positions,
        atom_mask=mask,
    )


def reference(name: str, folder: str = "held_out") -> Path:
    """The file of a chain of the example."""
    return EXAMPLE / folder / f"{name}.cif.gz"


def prediction(
    path: Path, sigma: float = 0.0, seed: int = 0, plddt: float = 80.0
) -> ProteinStructure:
    """A copy of a true chain, moved, numbered from 1, with noise and a pLDDT that varies a bit."""
    true, draw = read_structure(path), np.random.default_rng(seed)
    noise = draw.normal(scale=sigma, size=true.positions.shape) if sigma else 0.0
    positions = (true.positions + noise) @ rotation(seed).T + 5
    b_factors = plddt + draw.uniform(-5, 5, size=(len(true), 1))
    return replace(
        true,
        positions=np.where(true.atom_mask[..., None], positions, 0).astype(np.float32),
        b_factors=(b_factors * true.atom_mask).astype(np.float32),
        residue_names=("",) * len(true),
        method=None,
        resolution=None,
        release_date=None,
    )


def rotation(seed: int) -> np.ndarray:
    """A proper rotation."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix))


def write(path: Path, structure: ProteinStructure, *, atoms_only: bool = False) -> Path:
    """Writes a PDB file, with SEQRES or without."""
    lines = to_pdb(structure).splitlines()
    if atoms_only:
        lines = [line for line in lines if line.startswith("ATOM")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def evaluate(*words: object) -> int:
    """Runs the command in this process."""
    return main(["evaluate", *map(str, words)])


def rows(folder: Path, name: str = "scores.csv") -> dict[str, dict[str, str]]:
    """The lines of a table by id."""
    with (folder / name).open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def summary(folder: Path, name: str = "summary.json") -> dict:
    return json.loads((folder / name).read_text())

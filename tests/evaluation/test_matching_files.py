"""Real chains, cut, renumbered and written in many ways: every residue finds its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.evaluation.chain import Chain, from_structure
from esmfold_peft.evaluation.matching import match_residues
from esmfold_peft.protein.read import parse_chains, read_chains
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb
from tests.evaluation.predictions import EXAMPLE

FILES = sorted(EXAMPLE.rglob("*.cif.gz"))

Lines = list[str]


def by_author(structure: ProteinStructure) -> Lines:
    """ATOM records, residues numbered as the reference's are."""
    return [line for line in to_pdb(structure).splitlines() if line.startswith("ATOM")]


def by_place(structure: ProteinStructure) -> Lines:
    """ATOM records, residues numbered by their place in the sequence."""
    return by_author(replace(structure, residue_names=("",) * len(structure)))


def number(line: str) -> str:
    return line[22:27]


def without_middle(lines: Lines) -> Lines:
    """One residue fewer."""
    numbers = list(dict.fromkeys(map(number, lines)))
    return [line for line in lines if number(line) != numbers[len(numbers) // 2]]


def middle(lines: Lines) -> Lines:
    """The residues of the middle half."""
    numbers = list(dict.fromkeys(map(number, lines)))
    kept = set(numbers[len(numbers) // 4 : 3 * len(numbers) // 4])
    return [line for line in lines if number(line) in kept]


def from_elsewhere(lines: Lines) -> Lines:
    """Every number larger by 300."""
    return [f"{line[:22]}{int(line[22:26]) + 300:4d}{line[26:]}" for line in lines]


VARIANTS: dict[str, Callable[[ProteinStructure], Lines]] = {
    "mmCIF": lambda s: to_mmcif(s).splitlines(),
    "SEQRES": lambda s: to_pdb(s).splitlines(),
    "atoms, by place": by_place,
    "atoms, by author": by_author,
    "hole, by place": lambda s: without_middle(by_place(s)),
    "hole, by author": lambda s: without_middle(by_author(s)),
    "hole, from elsewhere": lambda s: from_elsewhere(without_middle(by_place(s))),
    "part, by author": lambda s: middle(by_author(s)),
    "part, from elsewhere": lambda s: from_elsewhere(middle(by_place(s))),
}

METHODS = {
    "mmCIF": {"sequence"},
    "SEQRES": {"sequence"},
    "hole, by author": {"number"},
    "part, by author": {"number"},
    "part, from elsewhere": {"alignment"},
}
"""What can be matched in one way alone."""


def check(true: ProteinStructure, lines: Lines) -> str:
    """Matches what is written, and compares places by their coordinates; gives the method."""
    ours = from_structure(true)
    theirs = from_structure(parse_chains("\n".join(lines).encode(), "x.pdb")[0])
    found = match_residues(ours, theirs)
    matched = np.flatnonzero(found.places >= 0)
    places = found.places[matched]
    both = ca(ours)[matched] & ca(theirs)[places]
    assert both.sum() == ca(theirs).sum(), "a residue is lost"
    moved = ours.positions[matched[both], 1] - theirs.positions[places[both], 1]
    assert np.abs(moved).max() < 0.01, "a residue is another one"
    return found.method


def ca(chain: Chain) -> np.ndarray:
    return chain.atom_mask[:, 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_residue_of_the_example_is_found(name: str):
    chains = [read_chains(file)[0] for file in FILES]
    methods = {check(chain, VARIANTS[name](chain)) for chain in chains}
    assert methods == METHODS.get(name, methods)


@pytest.mark.parametrize("entry", ["4zhl", "1igy", "1gbt"])
def test_insertion_codes_of_real_chains(entry: str, shared_structures: Path):
    for true in read_chains(shared_structures / "rcsb" / f"{entry}.cif.gz")[:2]:
        assert {check(true, VARIANTS[name](true)) for name in VARIANTS} <= {
            "sequence", "number", "alignment",
        }  # fmt: skip
        if any(name[-1:].isalpha() for name in true.residue_names):
            assert check(true, without_middle(by_author(true))) == "number"

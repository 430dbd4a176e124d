"""Real full-atom chains, read here with gemmi alone, without the reader of the package."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import gemmi
import pytest
import torch
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.protein.residues import ATOM14, THREE_TO_ONE, encode


@dataclass(frozen=True)
class Chain:
    """A batch of one chain: standard residues only, atom14."""

    path: Path
    name: str
    aatype: Tensor
    positions: Tensor
    atom_mask: Tensor
    residue_index: Tensor

    @property
    def atoms(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.aatype, self.positions, self.atom_mask


def structure_file(name: str) -> Path:
    """A file among those that openfold3 is installed with."""
    package = Path(importlib.util.find_spec("openfold3").origin).parent
    return package / "tests" / "test_data" / "mmcifs" / f"{name}.cif"


def read(name: str, chain: str = "A") -> Chain:
    structure = gemmi.read_structure(str(structure_file(name)))
    structure.remove_alternative_conformations()
    polymer = structure[0][chain].get_polymer()
    residues = [residue for residue in polymer if residue.name in THREE_TO_ONE]
    positions = torch.zeros(1, len(residues), 14, 3)
    atom_mask = torch.zeros(1, len(residues), 14, dtype=torch.bool)
    sequence = "".join(THREE_TO_ONE[residue.name] for residue in residues)
    for i, residue in enumerate(residues):
        for column, atom in enumerate(ATOM14[sequence[i]]):
            if atom in residue:
                positions[0, i, column] = torch.tensor(residue[atom][0].pos.tolist())
                atom_mask[0, i, column] = True
    return Chain(
        path=structure_file(name),
        name=chain,
        aatype=torch.tensor(encode(sequence))[None],
        positions=positions,
        atom_mask=atom_mask,
        residue_index=torch.tensor([[residue.label_seq for residue in residues]]),
    )


def random_motion(*shape: int) -> Rigid:
    return Rigid(rotation_from_quaternion(torch.randn(*shape, 4)), 20 * torch.randn(*shape, 3))


@pytest.fixture(scope="session")
def ubiquitin() -> Chain:
    """1UBQ at 1.8 Å, 76 residues, every heavy atom present."""
    return read("1ubq")


@pytest.fixture(scope="session", params=["1ubq", "1a8q", "3u8v", "1y57", "4zey", "2q2k"])
def chain(request: pytest.FixtureRequest) -> Chain:
    return read(request.param)


@pytest.fixture
def motion() -> Rigid:
    torch.manual_seed(1)
    return random_motion()

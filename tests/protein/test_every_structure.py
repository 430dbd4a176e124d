"""Every file of the collections beside the project is read; none has to be refused."""

import tarfile
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest

from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.residues import ATOM14_MASK, ATOM14_TO_ATOM37, ATOM37_INDEX, encode
from esmfold_peft.protein.structure import ProteinStructure

pytestmark = pytest.mark.slow


def deposited_lengths(path: Path) -> Counter[int]:
    """How many residues gemmi states for each protein chain: of SEQRES, else of the coordinates."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    lengths = Counter()
    for chain in structure[0]:
        for span in chain.subchains():
            entity = structure.get_entity_of(span)
            if entity is not None and entity.polymer_type == gemmi.PolymerType.PeptideL:
                modelled = sum(1 for _ in span.first_conformer())
                lengths[len(entity.full_sequence) or modelled] += 1
    return lengths


def assert_sound(structure: ProteinStructure) -> None:
    """Laws that hold for any chain."""
    n = len(structure)
    assert n > 0
    assert len(structure.residue_names) == n
    assert (np.diff(structure.residue_index) > 0).all()
    assert np.isfinite(structure.positions).all()
    assert (structure.positions[~structure.atom_mask] == 0).all()
    assert structure.resolution is None or 0 < structure.resolution < 100
    aatype = encode(structure.sequence)
    allowed = np.zeros((n, 37), dtype=bool)
    np.put_along_axis(allowed, ATOM14_TO_ATOM37[aatype], ATOM14_MASK[aatype], axis=1)
    # Column 0 (N) is also what unused columns of atom14 point to.
    allowed[:, [ATOM37_INDEX["N"], ATOM37_INDEX["OXT"]]] = True
    allowed[aatype == 20] = False
    assert not (structure.atom_mask & ~allowed).any()


def assert_read(path: Path) -> list[ProteinStructure]:
    chains = read_chains(path)
    for structure in chains:
        assert_sound(structure)
    assert Counter(map(len, chains)) == deposited_lengths(path)
    assert len({structure.id for structure in chains}) == len(chains)
    return chains


@pytest.mark.parametrize(
    ("folder", "count"), [("rcsb", 40), ("cameo2022", 123), ("pdb_chains", 167)]
)
def test_every_file_is_read(shared_structures: Path, folder: str, count: int) -> None:
    paths = sorted((shared_structures / folder).glob("*.cif.gz"))
    assert len(paths) >= count
    for path in paths:
        assert_read(path)


def test_single_chain_files_are_named_like_their_chain(shared_structures: Path) -> None:
    for path in sorted((shared_structures / "cameo2022").glob("*.cif.gz")):
        (structure,) = read_chains(path)
        assert f"{structure.id}.cif.gz" == path.name
        assert structure.release_date is not None
        assert structure.release_date.year == 2022


@pytest.mark.parametrize(
    "shard", [0, *(pytest.param(number, marks=pytest.mark.proof) for number in range(1, 5))]
)
def test_backbone_chains_are_read(shared_structures: Path, tmp_path: Path, shard: int) -> None:
    read = 0
    with tarfile.open(shared_structures / "backbone_chains" / f"shard-0{shard}.tar") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            path = tmp_path / Path(member.name).name
            path.write_bytes(content.read())
            (structure,) = assert_read(path)
            assert structure.atom_mask[:, [0, 1, 2, 4]].all()
            assert (structure.atom_mask.sum(-1) <= 5).all()
            read += 1
    assert read == 1000

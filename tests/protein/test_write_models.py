"""Models of several chains: the same to us and to three other readers, in both formats."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import biotite.structure as biotite
import biotite.structure.io.pdb as biotite_pdb
import biotite.structure.io.pdbx as biotite_pdbx
import gemmi
import numpy as np
import pytest
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.protein.modelcif import ModelRecord
from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.residues import ATOM37_INDEX, ONE_TO_THREE
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb
from tests.protein.structures import assert_equal, coordinates, prediction, rows_of

RECORD = ModelRecord("A title", "esmfold-peft", "1.0", 0.5)
WRITERS = {
    "pdb": to_pdb,
    "cif": to_mmcif,
    "model": lambda chains: to_mmcif(chains, model=RECORD),
}
LETTERS = "ANDCQEGHILKMFPSTWYV"
"""Without arginine: of made-up coordinates the reader might exchange NH1 and NH2."""


def dimer_and_one() -> list[ProteinStructure]:
    """Three chains, the first and the last of one sequence but not in one place."""
    first, second = prediction(LETTERS), prediction("GXS")
    third = replace(first, positions=first.positions + first.atom_mask[..., None] * np.float32(0.5))
    return [first, second, third]


def expected(chains: list[ProteinStructure]) -> list[tuple[str, int, str, str, float]]:
    """Chain, number, residue, atom and B-factor of each atom."""
    return [
        (name, place + 1, ONE_TO_THREE[chain.sequence[place]], atom,
         round(float(chain.b_factors[place, ATOM37_INDEX[atom]]), 2))
        for name, chain in zip("ABC", chains, strict=True)
        for place, atom in rows_of(chain)
    ]  # fmt: skip


def by_gemmi(text: str, extension: str):
    if extension == "pdb":
        model = gemmi.read_pdb_string(text)[0]
    else:
        model = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())[0]
    sites = list(model.all())
    rows = [
        (s.chain.name, s.residue.seqid.num, s.residue.name, s.atom.name, round(s.atom.b_iso, 2))
        for s in sites
    ]
    return rows, [site.atom.pos.tolist() for site in sites]


def by_biopython(text: str, extension: str):
    parser = PDBParser(QUIET=True) if extension == "pdb" else MMCIFParser(QUIET=True)
    atoms = list(parser.get_structure("x", io.StringIO(text)).get_atoms())
    rows = []
    for atom in atoms:
        residue = atom.get_parent()
        name, number = residue.get_parent().id, residue.id[1]
        rows.append((name, number, residue.resname, atom.name, round(atom.bfactor, 2)))
    return rows, [atom.coord for atom in atoms]


def by_biotite(text: str, extension: str):
    fields = ["b_factor"]
    if extension == "pdb":
        file = biotite_pdb.PDBFile.read(io.StringIO(text))
        atoms = file.get_structure(model=1, extra_fields=fields)
    else:
        file = biotite_pdbx.CIFFile.read(io.StringIO(text))
        atoms = biotite_pdbx.get_structure(file, model=1, extra_fields=fields)
    assert isinstance(atoms, biotite.AtomArray)
    columns = (atoms.chain_id, atoms.res_id, atoms.res_name, atoms.atom_name)
    rows = zip(*(c.tolist() for c in columns), atoms.b_factor.round(2).tolist(), strict=True)
    return [(*row[:4], round(row[4], 2)) for row in rows], atoms.coord


@pytest.mark.parametrize("reader", [by_gemmi, by_biopython, by_biotite])
@pytest.mark.parametrize("extension", WRITERS)
def test_other_readers_see_the_same_chains(reader: Callable, extension: str) -> None:
    chains = dimer_and_one()
    rows, positions = reader(WRITERS[extension](chains), extension)
    for row, true in zip(rows, expected(chains), strict=True):
        assert row[:4] == true[:4]
        assert row[4] == pytest.approx(true[4], abs=0.011)
    true = np.concatenate([coordinates(chain) for chain in chains])
    np.testing.assert_allclose(positions, true, atol=6e-4)


@pytest.mark.parametrize("extension", WRITERS)
def test_reading_gives_the_chains_back(tmp_path: Path, extension: str) -> None:
    chains = dimer_and_one()
    path = tmp_path / f"p.{extension}"
    write_atomically(path, WRITERS[extension](chains))
    found = read_chains(path)
    assert [chain.chain for chain in found] == ["A", "B", "C"]
    for chain, true in zip(found, chains, strict=True):
        # X has atoms in a prediction and none in a structure that is read.
        known = np.array([letter != "X" for letter in true.sequence])[:, None]
        true = replace(
            true,
            atom_mask=true.atom_mask & known,
            positions=true.positions * known[..., None],
            b_factors=true.b_factors * known,
        )
        assert_equal(chain, true)
        assert chain.residue_index.tolist() == list(range(len(true)))
        assert chain.residue_names == tuple(map(str, range(1, len(true) + 1)))
    if extension != "pdb":
        assert [chain.entity for chain in found] == ["1", "2", "1"]


@pytest.mark.parametrize("extension", WRITERS)
def test_real_chains_together(example: Path, tmp_path: Path, extension: str) -> None:
    names = ["train/1hf9_A", "full_atom/1kd8_A", "train/1hf9_A", "held_out/1ubq_A"]
    chains = [c for name in names for c in read_chains(example / f"{name}.cif.gz")]
    path = tmp_path / f"p.{extension}"
    write_atomically(path, WRITERS[extension](chains))
    for found, true in zip(read_chains(path), chains, strict=True):
        assert_equal(found, true)
        assert found.residue_names == true.residue_names


def test_every_chain_of_a_pdb_file_has_its_sequence_and_its_end() -> None:
    lines = to_pdb(dimer_and_one()).splitlines()
    assert [line[11] for line in lines if line.startswith("SEQRES")] == list("AABCC")
    ends = [line[21] for line in lines if line.startswith("TER")]
    assert ends == ["A", "B", "C"]
    serials = [int(line[6:11]) for line in lines if line.startswith(("ATOM", "TER"))]
    assert serials == list(range(1, len(serials) + 1))
    assert lines[-1].strip() == "END"


def test_equal_sequences_are_one_entity() -> None:
    block = gemmi.cif.read_string(to_mmcif(dimer_and_one())).sole_block()
    assert [tuple(r) for r in block.find("_struct_asym.", ["id", "entity_id"])] == [
        *(("A", "1"), ("B", "2"), ("C", "1"))
    ]
    items = ["entity_id", "pdbx_strand_id", "pdbx_seq_one_letter_code_can"]
    assert [tuple(row) for row in block.find("_entity_poly.", items)] == [
        *(("1", "A,C", LETTERS), ("2", "B", "GXS"))
    ]
    scheme = block.find(
        "_pdbx_poly_seq_scheme.", ["asym_id", "entity_id", "seq_id", "auth_seq_num"]
    )
    sizes = {"A": ("1", 19), "B": ("2", 3), "C": ("1", 19)}
    assert [tuple(row) for row in scheme] == [
        (name, entity, str(n), str(n))
        for name, (entity, size) in sizes.items()
        for n in range(1, size + 1)
    ]


def test_names_of_many_chains(tmp_path: Path) -> None:
    glycines = [prediction("G")] * 62
    model = gemmi.read_pdb_string(to_pdb(glycines))[0]
    names = [chain.name for chain in model]
    assert "".join(names) == ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
    many = [prediction("G")] * 704
    with pytest.raises(UserError, match=r"^my protein/1: does not fit .*more than 62 chains"):
        to_pdb(many)
    block = gemmi.cif.read_string(to_mmcif(many)).sole_block()
    names = list(block.find_values("_struct_asym.id"))
    assert (names[0], names[25:28], names[701:]) == ("A", ["Z", "AA", "AB"], ["ZZ", "AAA", "AAB"])
    assert len({name.lower() for name in names}) == 704


def test_the_ends_of_chains_count_among_the_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = [prediction("G")] * 3
    lines = to_pdb(chains).splitlines()
    assert sum(line.startswith(("ATOM", "TER")) for line in lines) == 15
    monkeypatch.setattr("esmfold_peft.protein.write._PDB_ATOMS", 15)
    assert to_pdb(chains).splitlines() == lines
    monkeypatch.setattr("esmfold_peft.protein.write._PDB_ATOMS", 14)
    with pytest.raises(UserError, match="more than 14 atoms"):
        to_pdb(chains)


@pytest.mark.parametrize("writer", [to_pdb, to_mmcif])
def test_a_message_names_the_chain(writer: Callable[[list[ProteinStructure]], str]) -> None:
    chains = [prediction("GA"), prediction("GA")]
    chains[1].positions[1, ATOM37_INDEX["CB"], 0] = np.inf
    reason = r"^my protein/1: CB of residue A2 of chain B is not finite$"
    with pytest.raises(UserError, match=reason):
        writer(chains)

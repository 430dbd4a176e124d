"""Files that we write mean the same to us and to three other readers."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import biotite.structure.io.pdb as biotite_pdb
import biotite.structure.io.pdbx as biotite_pdbx
import gemmi
import numpy as np
import pytest
from Bio import SeqIO
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.residues import ATOM37_INDEX, encode
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb
from tests.protein.structures import assert_equal, coordinates, prediction, rows_of

CASES = [("3u8v", "B"), ("4zey", "A"), ("5kc1", "C"), ("1kd8", "A"), ("7l39", "A")]


@pytest.mark.parametrize(("entry", "chain"), CASES)
@pytest.mark.parametrize("extension", ["cif", "pdb"])
def test_write_and_read_give_the_chain_back(
    mmcifs: Path, tmp_path: Path, entry: str, chain: str, extension: str
) -> None:
    structure = read_structure(mmcifs / f"{entry}.cif", chain)
    path = tmp_path / f"{structure.id}.{extension}"
    writer = {"cif": to_mmcif, "pdb": to_pdb}[extension]
    write_atomically(path, writer(structure, chain))
    read = read_structure(path, chain)
    assert_equal(read, structure)
    assert read.id == structure.id
    assert read.residue_index.tolist() == structure.residue_index.tolist()
    modelled = structure.atom_mask.any(-1)
    kept = [name if m else "" for name, m in zip(structure.residue_names, modelled, strict=True)]
    assert list(read.residue_names) == kept
    if extension == "cif":
        assert read.resolution == structure.resolution
        assert read.method == structure.method
        assert read.release_date == structure.release_date


@pytest.mark.parametrize("entry", ["3u8v", "4zey"])
def test_other_readers_of_mmcif_see_the_same_atoms(mmcifs: Path, entry: str) -> None:
    structure = read_structure(mmcifs / f"{entry}.cif", "A")
    text = to_mmcif(structure)
    expected = coordinates(structure)
    biopython = MMCIFParser(QUIET=True).get_structure("x", io.StringIO(text))
    biotite = biotite_pdbx.get_structure(biotite_pdbx.CIFFile.read(io.StringIO(text)), model=1)
    gemmis = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    np.testing.assert_allclose([a.coord for a in biopython.get_atoms()], expected, atol=1e-3)
    np.testing.assert_allclose(biotite.coord, expected, atol=1e-3)
    np.testing.assert_allclose(
        [site.atom.pos.tolist() for site in gemmis[0].all()], expected, atol=1e-3
    )
    names = [atom for _, atom in rows_of(structure)]
    assert biotite.atom_name.tolist() == names
    assert biotite.element.tolist() == [name[0] for name in names]
    sequences = [str(r.seq) for r in SeqIO.parse(io.StringIO(text), "cif-seqres")]
    assert sequences == [structure.sequence]
    assert str(biotite_pdbx.get_sequence(biotite_pdbx.CIFFile.read(io.StringIO(text)))["A"]) == (
        structure.sequence
    )


@pytest.mark.parametrize("entry", ["3u8v", "4zey"])
def test_other_readers_of_pdb_see_the_same_atoms(mmcifs: Path, entry: str) -> None:
    structure = read_structure(mmcifs / f"{entry}.cif", "A")
    text = to_pdb(structure)
    expected = coordinates(structure)
    biopython = PDBParser(QUIET=True).get_structure("x", io.StringIO(text))
    biotite = biotite_pdb.PDBFile.read(io.StringIO(text)).get_structure(model=1)
    gemmis = gemmi.read_pdb_string(text)
    np.testing.assert_allclose([a.coord for a in biopython.get_atoms()], expected, atol=1e-3)
    np.testing.assert_allclose(biotite.coord, expected, atol=1e-3)
    np.testing.assert_allclose(
        [site.atom.pos.tolist() for site in gemmis[0].all()], expected, atol=1e-3
    )
    assert [str(r.seq) for r in SeqIO.parse(io.StringIO(text), "pdb-seqres")] == [
        structure.sequence
    ]


@pytest.mark.parametrize("extension", ["cif", "pdb"])
def test_a_prediction_is_numbered_from_one_with_plddt_as_b_factor(
    tmp_path: Path, extension: str
) -> None:
    # No arginine: of these made-up coordinates the reader might exchange NH1 and NH2.
    structure = prediction("ANDCQEGHILKMFPSTWYV")
    path = tmp_path / f"p.{extension}"
    path.write_text({"cif": to_mmcif, "pdb": to_pdb}[extension](structure))
    model = gemmi.read_structure(str(path))[0]
    assert [chain.name for chain in model] == ["A"]
    assert [str(residue.seqid) for residue in model["A"]] == [str(i) for i in range(1, 20)]
    ca = [residue["CA"][0].b_iso for residue in model["A"]]
    np.testing.assert_allclose(ca, structure.b_factors[:, 1], atol=6e-3)
    assert_equal(read_structure(path), structure)
    assert read_structure(path).id == ("my protein/1" if extension == "cif" else "p")


def test_x_is_written_as_unk_and_read_without_atoms(tmp_path: Path) -> None:
    structure = prediction("AXG")
    path = tmp_path / "p.pdb"
    path.write_text(to_pdb(structure))
    assert [r.name for r in gemmi.read_structure(str(path))[0]["A"]] == ["ALA", "UNK", "GLY"]
    read = read_structure(path)
    assert read.sequence == "AXG"
    assert encode(read.sequence).tolist() == [0, 20, 7]
    assert read.atom_mask.any(-1).tolist() == [True, False, True]


def test_a_gap_in_the_residue_index_is_a_gap_in_the_authors_numbers() -> None:
    structure = prediction("GAS", residue_index=np.array([4, 5, 9], dtype=np.int32))
    chain = gemmi.read_pdb_string(to_pdb(structure))[0]["A"]
    assert [str(residue.seqid) for residue in chain] == ["5", "6", "10"]
    block = gemmi.cif.read_string(to_mmcif(structure)).sole_block()
    scheme = block.find("_pdbx_poly_seq_scheme.", ["seq_id", "auth_seq_num"])
    assert [tuple(row) for row in scheme] == [("1", "5"), ("2", "6"), ("3", "10")]


def test_large_coordinates_keep_three_decimals(tmp_path: Path) -> None:
    structure = prediction("G")
    positions = structure.positions + np.float32(1234.567) * structure.atom_mask[..., None]
    structure = replace(structure, positions=positions)
    for name, text in (("a.cif", to_mmcif(structure)), ("a.pdb", to_pdb(structure))):
        write_atomically(tmp_path / name, text)
        assert_equal(read_structure(tmp_path / name), structure)


@pytest.mark.parametrize(
    ("changes", "chain", "reason"),
    [
        ({}, "AA", "chain name"),
        ({"residue_index": np.array([9_999], dtype=np.int32)}, "A", "residue numbers"),
        ({"positions": np.full((1, 37, 3), 10_000, dtype=np.float32)}, "A", "coordinates"),
        ({"positions": np.full((1, 37, 3), -1_000, dtype=np.float32)}, "A", "coordinates"),
        ({"b_factors": np.full((1, 37), 1_000, dtype=np.float32)}, "A", "B-factors"),
    ],
)
def test_what_the_pdb_format_cannot_hold_is_refused_but_mmcif_takes_it(
    tmp_path: Path, changes: dict[str, np.ndarray], chain: str, reason: str
) -> None:
    structure = prediction("G", **changes)
    with pytest.raises(UserError, match=rf"^my protein/1: does not fit .*{reason}.*write mmCIF$"):
        to_pdb(structure, chain)
    write_atomically(tmp_path / "a.cif", to_mmcif(structure, chain))
    read = read_structure(tmp_path / "a.cif", chain)
    np.testing.assert_allclose(read.positions[0, 1], structure.positions[0, 1], atol=1e-3)


@pytest.mark.parametrize("writer", [to_pdb, to_mmcif])
def test_coordinates_that_are_not_finite_are_refused(
    writer: Callable[[ProteinStructure], str],
) -> None:
    structure = prediction("GAG")
    structure.positions[1, ATOM37_INDEX["CB"], 2] = np.nan
    with pytest.raises(UserError, match=r"^my protein/1: CB of residue A2 is not finite$"):
        writer(structure)


def test_long_chains_go_to_mmcif_only(tmp_path: Path) -> None:
    structure = prediction("G" * 10_001)
    with pytest.raises(UserError, match="more than 9999 residues"):
        to_pdb(structure)
    write_atomically(tmp_path / "a.cif", to_mmcif(structure))
    assert_equal(read_structure(tmp_path / "a.cif"), structure)


def test_writing_replaces_the_whole_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "long text, first\n")
    write_atomically(path, "α\n")
    assert path.read_bytes() == "α\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_writing_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: No space left on device$"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_writing_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: No such file or directory$"):
        write_atomically(tmp_path / "absent" / "a.txt", "x")


@pytest.mark.parametrize("code", ["A", "a", ""])
def test_insertion_codes_keep_their_case(code: str) -> None:
    structure = replace(
        prediction("GAV"), residue_names=("-1", "52", f"52{code}" if code else "53")
    )
    for text in (to_pdb(structure), to_mmcif(structure)):
        read = gemmi.read_pdb_string(text) if text.startswith("SEQRES") else None
        block = None if read else gemmi.cif.read_string(text).sole_block()
        model = (read or gemmi.make_structure_from_block(block))[0]
        assert [str(residue.seqid) for residue in model[0]] == list(structure.residue_names)

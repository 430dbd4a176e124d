"""What `read_structure` makes of real entries, against what other readers see in the same files."""

from datetime import date
from pathlib import Path

import biotite.structure.io.pdbx as pdbx
import gemmi
import numpy as np
import pytest
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from biotite.structure import AtomArray

from esmfold_peft.protein.read import read_chains, read_structure
from esmfold_peft.protein.residues import ATOM14, ATOM37_INDEX, THREE_TO_ONE
from esmfold_peft.protein.structure import ProteinStructure

ENTRIES = "1a8q 1hf9 1kd8 1psm 1pzp 1ubq 1y57 2crb 2q2k 3u8v 3zee 4i6p 4zey 5kc1 7l39".split()


def biotite_atoms(atoms: AtomArray, label: str) -> dict[tuple[int, str], np.ndarray]:
    """{(place in the sequence, atom): coordinates} of the standard residues and MSE of a chain."""
    atoms = atoms[(atoms.chain_id == label) & (atoms.occupancy > 0)]
    rows = zip(
        atoms.res_id.tolist(), atoms.res_name.tolist(), atoms.atom_name.tolist(), atoms.coord,
        strict=True,
    )  # fmt: skip
    found = {}
    for number, residue, atom, position in rows:
        letter = "M" if residue == "MSE" else THREE_TO_ONE.get(residue, "X")
        name = "SD" if (residue, atom) == ("MSE", "SE") else atom
        if letter != "X" and name in (*ATOM14[letter], "OXT"):
            found[number - 1, name] = position
    return found


def our_atoms(structure: ProteinStructure) -> dict[tuple[int, str], np.ndarray]:
    names = list(ATOM37_INDEX)
    return {
        (int(structure.residue_index[place]), names[column]): structure.positions[place, column]
        for place, column in np.argwhere(structure.atom_mask)
    }


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_atoms_are_those_that_biotite_reads(mmcifs: Path, entry: str) -> None:
    path = mmcifs / f"{entry}.cif"
    atoms = pdbx.get_structure(
        pdbx.CIFFile.read(str(path)), model=1, altloc="occupancy", use_author_fields=False,
        extra_fields=["occupancy"],
    )  # fmt: skip
    labels = protein_labels(path)
    assert labels
    for label, structure in zip(labels, read_chains(path), strict=True):
        ours = our_atoms(structure)
        theirs = biotite_atoms(atoms, label)
        assert ours.keys() == theirs.keys()
        # biotite does not exchange the names of misnamed arginines.
        shared = [atom for atom in ours if atom[1] not in ("NH1", "NH2")]
        assert shared
        np.testing.assert_allclose(
            np.stack([ours[atom] for atom in shared]),
            np.stack([theirs[atom] for atom in shared]),
            atol=1e-3,
        )


def protein_labels(path: Path) -> list[str]:
    table = MMCIF2Dict(str(path))
    kinds = dict(zip(table["_entity_poly.entity_id"], table["_entity_poly.type"], strict=True))
    chains = zip(table["_struct_asym.id"], table["_struct_asym.entity_id"], strict=True)
    return [label for label, entity in chains if kinds.get(entity) == "polypeptide(L)"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_sequence_is_the_deposited_one_and_missing_residues_are_masked(
    mmcifs: Path, entry: str
) -> None:
    path = mmcifs / f"{entry}.cif"
    table = MMCIF2Dict(str(path))
    rows = list(
        zip(
            *(
                table[f"_pdbx_poly_seq_scheme.{item}"]
                for item in ("pdb_strand_id", "mon_id", "seq_id", "auth_seq_num", "pdb_ins_code")
            ),
            strict=True,
        )
    )
    for structure in read_chains(path):
        chain = structure.id.removeprefix(f"{entry}_")
        mine = [row for row in rows if row[0] == chain]
        expected = "".join("M" if m == "MSE" else THREE_TO_ONE.get(m, "X") for _, m, *_ in mine)
        assert structure.sequence == expected
        assert structure.residue_index.tolist() == [int(row[2]) - 1 for row in mine]
        numbers = tuple("" if r[3] == "?" else r[3] + r[4].strip(".") for r in mine)
        assert structure.residue_names == numbers
        missing = np.array([name == "" for name in numbers])
        unknown = np.array([letter == "X" for letter in expected])
        assert np.array_equal(structure.atom_mask.any(-1), ~missing & ~unknown)


def test_3u8v_misses_ten_residues(mmcifs: Path) -> None:
    structure = read_structure(mmcifs / "3u8v.cif", "A")
    assert len(structure) == 93
    assert (~structure.atom_mask.any(-1)).sum() == 10


def test_mse_is_met_with_its_selenium_as_sd(mmcifs: Path) -> None:
    structure = read_structure(mmcifs / "4zey.cif")
    table = MMCIF2Dict(str(mmcifs / "4zey.cif"))
    selenium = {
        (int(seq), float(x))
        for comp, atom, seq, x in zip(
            table["_atom_site.label_comp_id"], table["_atom_site.label_atom_id"],
            table["_atom_site.label_seq_id"], table["_atom_site.Cartn_x"], strict=True,
        )
        if (comp, atom) == ("MSE", "SE")
    }  # fmt: skip
    places = {seq for seq, _ in selenium}
    assert len(places) == 3
    for seq in places:
        assert structure.sequence[seq - 1] == "M"
        assert structure.atom_mask[seq - 1, ATOM37_INDEX["SD"]]
        x = float(structure.positions[seq - 1, ATOM37_INDEX["SD"], 0])
        assert any(s == seq and abs(x - value) < 1e-3 for s, value in selenium)


def test_other_modified_residues_are_x_without_atoms_but_keep_their_number(mmcifs: Path) -> None:
    structure = read_structure(mmcifs / "1kd8.cif", "A")
    assert structure.sequence[0] == "X"  # ACE
    assert not structure.atom_mask[0].any()
    assert structure.residue_names[0] != ""


@pytest.mark.parametrize("entry", ["1psm", "1hf9", "2crb"])
def test_nmr_gives_its_first_model_and_no_resolution(mmcifs: Path, entry: str) -> None:
    path = mmcifs / f"{entry}.cif"
    structure = read_structure(path)
    stack = pdbx.get_structure(pdbx.CIFFile.read(str(path)), model=None)
    assert len(stack) >= 20
    first = stack[0][(stack.chain_id == "A") & (stack.atom_name == "CA")]
    np.testing.assert_allclose(structure.positions[:, 1], first.coord, atol=1e-3)
    assert structure.resolution is None
    assert structure.method == "SOLUTION NMR"


def test_chains_have_the_names_of_the_author_not_labels(mmcifs: Path) -> None:
    path = mmcifs / "2q2k.cif"  # label A is DNA; label B is the author's chain A
    assert read_structure(path, "A").id == "2q2k_A"
    assert read_structure(path, "B").id == "2q2k_B"
    assert read_structure(path).id == "2q2k_A"
    assert [chain.id for chain in read_chains(path)] == ["2q2k_A", "2q2k_B"]


@pytest.mark.parametrize(
    ("entry", "resolution", "method", "released"),
    [
        ("1ubq", 1.8, "X-RAY DIFFRACTION", date(1987, 4, 16)),
        ("3zee", 6.1, "ELECTRON MICROSCOPY", date(2013, 10, 16)),
        ("7l39", 1.35, "X-RAY DIFFRACTION", date(2021, 10, 27)),
        ("1psm", None, "SOLUTION NMR", date(1995, 2, 7)),
    ],
)
def test_what_the_entry_says_of_the_experiment(
    mmcifs: Path, entry: str, resolution: float | None, method: str, released: date
) -> None:
    structure = read_structure(mmcifs / f"{entry}.cif")
    assert structure.resolution == resolution
    assert structure.method == method
    assert structure.release_date == released


@pytest.mark.parametrize("entry", ["1ubq", "3u8v", "4zey", "7l39", "5kc1", "1a8q"])
def test_pdb_and_mmcif_of_one_entry_are_read_alike(
    mmcifs: Path, tmp_path: Path, entry: str
) -> None:
    path = tmp_path / f"{entry}.pdb"
    path.write_text(gemmi.read_structure(str(mmcifs / f"{entry}.cif")).make_pdb_string())
    for expected in read_chains(mmcifs / f"{entry}.cif"):
        read = read_structure(path, expected.id.split("_")[1])
        assert read.id == expected.id
        assert read.sequence == expected.sequence
        assert read.residue_names == expected.residue_names
        np.testing.assert_array_equal(read.residue_index, expected.residue_index)
        np.testing.assert_array_equal(read.atom_mask, expected.atom_mask)
        np.testing.assert_allclose(read.positions, expected.positions, atol=2e-3)
        np.testing.assert_allclose(read.b_factors, expected.b_factors, atol=6e-3)
        assert read.resolution == pytest.approx(expected.resolution, abs=6e-3)
        assert read.method == expected.method
        assert read.release_date is None

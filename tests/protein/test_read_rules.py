"""The rules of reading, on files made by hand for each."""

import gzip
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import gemmi
import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains, read_chains, read_structure
from esmfold_peft.protein.residues import ATOM37_INDEX

CA = ATOM37_INDEX["CA"]


@dataclass(frozen=True)
class Row:
    """One line of `_atom_site`; the y coordinate serves as a label."""

    atom: str
    residue: str
    seq: int
    y: float
    altloc: str = "."
    occupancy: float = 1.0
    insertion: str = "?"
    author_seq: int | None = None
    x: str = "1.0"


def mmcif(rows: list[Row], sequence: list[tuple[int, str]] | None, header: str = "") -> str:
    lines = ["data_test", header]
    if sequence is not None:
        lines += ["_entity.id 1", "_entity.type polymer", "_entity_poly.entity_id 1"]
        lines += ["_entity_poly.type polypeptide(L)", "_struct_asym.id A"]
        lines += ["_struct_asym.entity_id 1", "loop_"]
        lines += ["_entity_poly_seq.entity_id", "_entity_poly_seq.num", "_entity_poly_seq.mon_id"]
        lines += [f"1 {number} {name}" for number, name in sequence]
    items = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id "
        "label_entity_id label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy "
        "B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    )
    lines += ["loop_", *(f"_atom_site.{item}" for item in items.split())]
    for number, row in enumerate(rows, start=1):
        author = row.seq if row.author_seq is None else row.author_seq
        lines.append(
            f"ATOM {number} {row.atom[0]} {row.atom} {row.altloc} {row.residue} A 1 {row.seq} "
            f"{row.insertion} {row.x} {row.y} 3.0 {row.occupancy} 20 {author} A 1"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, text: str, name: str = "test.cif") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def backbone(residue: str, seq: int, y: float = 0.0, **kwargs: object) -> list[Row]:
    return [Row(atom, residue, seq, y, **kwargs) for atom in ("N", "CA", "C", "O")]  # type: ignore[arg-type]


GLY3 = [(1, "GLY"), (2, "GLY"), (3, "GLY")]


@pytest.mark.parametrize(
    ("occupancies", "chosen"),
    [((0.4, 0.6), 2.0), ((0.6, 0.4), 1.0), ((0.5, 0.5), 1.0), ((0.0, 0.3), 2.0)],
)
def test_the_alternative_of_highest_occupancy_wins_and_the_first_of_equals(
    tmp_path: Path, occupancies: tuple[float, float], chosen: float
) -> None:
    rows = [*backbone("GLY", 1), Row("N", "GLY", 2, 9.0)]
    for altloc, y, occupancy in zip("AB", (1.0, 2.0), occupancies, strict=True):
        rows.append(Row("CA", "GLY", 2, y, altloc, occupancy))
    structure = read_structure(write(tmp_path, mmcif(rows, GLY3)))
    assert structure.positions[1, CA, 1] == chosen
    assert structure.positions[1, ATOM37_INDEX["N"], 1] == 9.0


def test_conformers_of_a_residue_are_not_mixed(tmp_path: Path) -> None:
    rows = [
        Row("N", "SER", 1, 1.0, "A", 0.3),
        Row("N", "SER", 1, 2.0, "B", 0.7),
        Row("CA", "SER", 1, 1.0, "A", 0.55),
        Row("CA", "SER", 1, 2.0, "B", 0.45),
        Row("OG", "SER", 1, 1.0, "A", 0.2),
        *backbone("GLY", 2),
    ]
    structure = read_structure(write(tmp_path, mmcif(rows, [(1, "SER"), (2, "GLY")])))
    assert structure.positions[0, CA, 1] == 2.0
    assert structure.positions[0, ATOM37_INDEX["N"], 1] == 2.0
    assert not structure.atom_mask[0, ATOM37_INDEX["OG"]]


def test_of_several_residues_at_one_place_the_first_of_the_sequence_is_read(tmp_path: Path) -> None:
    sequence = [(1, "GLY"), (2, "SER"), (2, "THR"), (3, "GLY")]
    rows = [
        *backbone("GLY", 1),
        *backbone("THR", 2, 5.0, altloc="A", occupancy=0.7),
        *backbone("SER", 2, 6.0, altloc="B", occupancy=0.3),
        *backbone("GLY", 3),
    ]
    structure = read_structure(write(tmp_path, mmcif(rows, sequence)))
    assert structure.sequence == "GSG"
    assert structure.positions[1, CA, 1] == 6.0


def test_unresolved_atoms_are_dropped(tmp_path: Path) -> None:
    rows = [
        *backbone("GLY", 1),
        Row("N", "ALA", 2, 0.0),
        Row("CA", "ALA", 2, 0.0, occupancy=0.0),
        Row("C", "ALA", 2, 0.0, x="?"),
        Row("CB", "ALA", 2, 0.0),
        Row("OG", "ALA", 2, 0.0),
        Row("HA", "ALA", 2, 0.0),
        *backbone("GLY", 3),
    ]
    sequence = [(1, "GLY"), (2, "ALA"), (3, "GLY")]
    structure = read_structure(write(tmp_path, mmcif(rows, sequence)))
    present = {name for name, column in ATOM37_INDEX.items() if structure.atom_mask[1, column]}
    assert present == {"N", "CB"}
    assert np.isfinite(structure.positions).all()
    assert (structure.positions[~structure.atom_mask] == 0).all()


def test_of_an_atom_listed_twice_the_first_stays(tmp_path: Path) -> None:
    rows = [*backbone("GLY", 1, 1.0), Row("CA", "GLY", 1, 2.0), *backbone("GLY", 2)]
    structure = read_structure(write(tmp_path, mmcif(rows, [(1, "GLY"), (2, "GLY")])))
    assert structure.positions[0, CA, 1] == 1.0


def test_insertion_codes_and_negative_numbers_are_kept(tmp_path: Path) -> None:
    rows = [
        *backbone("GLY", 1, author_seq=-1),
        *backbone("GLY", 2, author_seq=52),
        *backbone("GLY", 3, author_seq=52, insertion="A"),
    ]
    structure = read_structure(write(tmp_path, mmcif(rows, GLY3)))
    assert structure.residue_names == ("-1", "52", "52A")
    assert structure.residue_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("residue", "kept"), [("GLY", True), ("ALA", False)])
def test_a_residue_that_contradicts_the_sequence_is_not_used(
    tmp_path: Path, residue: str, kept: bool
) -> None:
    rows = [*backbone("GLY", 1), *backbone(residue, 2), *backbone("GLY", 3)]
    structure = read_structure(write(tmp_path, mmcif(rows, GLY3)))
    assert structure.sequence == "GGG"
    assert structure.atom_mask[:, CA].tolist() == [True, kept, True]
    assert structure.residue_names[1] == ("2" if kept else "")


def test_without_a_sequence_gaps_in_the_numbers_remain_gaps(tmp_path: Path) -> None:
    rows = [*backbone("GLY", 3), *backbone("ALA", 4), *backbone("SER", 8)]
    structure = read_structure(write(tmp_path, mmcif(rows, None)))
    assert structure.sequence == "GAS"
    assert structure.residue_index.tolist() == [2, 3, 7]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((7, 8, 12), [0, 1, 5]), ((7, 7, 8), [0, 1, 2]), ((7, 8, 2), [0, 1, 2])],
)
def test_a_pdb_file_without_seqres_is_numbered_by_the_author_where_that_increases(
    tmp_path: Path, numbers: tuple[int, ...], expected: list[int]
) -> None:
    lines = []
    for place, number in enumerate(numbers):
        code = "A" if place and numbers[place - 1] == number else " "
        for atom in ("N", "CA", "C", "O"):
            xyz = f"{3.8 * place:8.3f}{1.0:8.3f}{ord(atom[-1]) / 50:8.3f}"
            serial = len(lines) + 1
            lines.append(
                f"ATOM  {serial:5d}  {atom:<3} GLY A{number:4d}{code}   {xyz}  1.00 20.00"
                f"           {atom[0]}"
            )
    structure = read_structure(write(tmp_path, "\n".join(lines) + "\nEND\n", "model.pdb"))
    assert structure.sequence == "GGG"
    assert structure.residue_index.tolist() == expected


@pytest.mark.parametrize("misnamed", [False, True])
def test_nh1_of_arginine_is_the_one_closer_to_cd(
    mmcifs: Path, tmp_path: Path, misnamed: bool
) -> None:
    source = (mmcifs / "1ubq.cif").read_text()
    swapped = source.replace("NH1", "NH#").replace("NH2", "NH1").replace("NH#", "NH2")
    path = write(tmp_path, swapped if misnamed else source, "1ubq.cif")
    structure = read_structure(path)
    arginine = np.array([letter == "R" for letter in structure.sequence])
    cd, nh1, nh2 = (structure.positions[arginine, ATOM37_INDEX[a]] for a in ("CD", "NH1", "NH2"))
    assert arginine.sum() == 4
    assert (np.linalg.norm(nh1 - cd, axis=-1) < np.linalg.norm(nh2 - cd, axis=-1)).all()
    expected = read_structure(mmcifs / "1ubq.cif")
    np.testing.assert_array_equal(structure.positions, expected.positions)
    np.testing.assert_array_equal(structure.b_factors, expected.b_factors)


@pytest.mark.parametrize(
    ("entry_id", "file", "expected"),
    [
        ("1UBQ", "anything.cif", "1ubq_A"),
        ("pdb_00001abc", "anything.cif", "pdb_00001abc_A"),
        ("AF-P12345-F1", "anything.cif", "AF-P12345-F1"),
        ("7fac_B", "anything.cif", "7fac_B"),
        (None, "my_model.cif", "my_model"),
        (None, "1abc.cif", "1abc_A"),
    ],
)
def test_a_chain_is_named_after_its_entry_or_file(
    tmp_path: Path, entry_id: str | None, file: str, expected: str
) -> None:
    header = "" if entry_id is None else f"_entry.id {entry_id}"
    rows = [*backbone("GLY", 1), *backbone("GLY", 2), *backbone("GLY", 3)]
    assert read_structure(write(tmp_path, mmcif(rows, GLY3, header), file)).id == expected


def test_chains_of_an_unnamed_file_have_different_names(tmp_path: Path) -> None:
    rows = [*backbone("GLY", 1), *backbone("GLY", 2), *backbone("GLY", 3)]
    one = mmcif(rows, None)
    other = [line for line in one.splitlines() if line.startswith("ATOM")]
    other = [line.replace(" A 1 ", " B 2 ").replace(" A 1", " B 1") for line in other]
    path = write(tmp_path, one + "\n".join(other) + "\n", "dimer.cif")
    assert [chain.id for chain in read_chains(path)] == ["dimer_A", "dimer_B"]


def test_gzip_is_known_by_content_not_by_name(mmcifs: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.cif"
    packed.write_bytes(gzip.compress((mmcifs / "1ubq.cif").read_bytes(), mtime=0))
    expected = read_structure(mmcifs / "1ubq.cif")
    assert np.array_equal(read_structure(packed).positions, expected.positions)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("_database_PDB_rev.num 1\n_database_PDB_rev.date 1998-10-14", date(1998, 10, 14)),
        ("_pdbx_audit_revision_history.revision_date ?", None),
        (
            "loop_\n_pdbx_audit_revision_history.revision_date\n2020-01-02\n2019-05-06\n2021-01-01",
            date(2019, 5, 6),
        ),
    ],
)
def test_the_release_date_is_the_oldest_revision(
    tmp_path: Path, header: str, expected: date | None
) -> None:
    rows = [*backbone("GLY", 1), *backbone("GLY", 2), *backbone("GLY", 3)]
    assert read_structure(write(tmp_path, mmcif(rows, GLY3, header))).release_date == expected


def test_the_release_date_of_a_pdb_file_is_its_first_revdat(mmcifs: Path, tmp_path: Path) -> None:
    text = gemmi.read_structure(str(mmcifs / "1ubq.cif")).make_pdb_string()
    revisions = "REVDAT   2   24-FEB-09 1UBQ    1       VERSN\nREVDAT   1   16-APR-87 1UBQ    0\n"
    head, rest = text.split("\n", 1)
    path = write(tmp_path, f"{head}\n{revisions}{rest}", "1ubq.pdb")
    assert read_structure(path).release_date == date(1987, 4, 16)


def test_atoms_of_occupancy_0_are_kept_where_they_are_wanted() -> None:
    rows = [*backbone("GLY", 1), *backbone("GLY", 2, occupancy=0.0), *backbone("GLY", 3)]
    data = mmcif(rows, GLY3).encode()
    for occupied, kept in ((True, [True, False, True]), (False, [True] * 3)):
        (structure,) = parse_chains(data, "x.cif", occupied=occupied)
        assert structure.atom_mask[:, CA].tolist() == kept


def unnamed(line: str) -> str:
    column = {"ATOM": 21, "TER": 21, "SEQRES": 11}.get(line[:6].strip())
    return line if column is None else f"{line[:column]} {line[column + 1 :]}"


@pytest.mark.parametrize("records", [("ATOM", "TER"), ("ATOM",), ("SEQRES", "ATOM", "TER")])
@pytest.mark.parametrize("taken", [False, True])
def test_a_pdb_chain_without_a_name_has_a_free_one(
    mmcifs: Path, tmp_path: Path, records: tuple[str, ...], taken: bool
) -> None:
    text = gemmi.read_structure(str(mmcifs / "1ubq.cif")).make_pdb_string()
    lines = [line for line in text.splitlines() if line.startswith(records)]
    written = [*(lines if taken else []), *map(unnamed, lines)]
    path = write(tmp_path, "\n".join(written) + "\nEND\n", "model.pdb")
    expected = read_structure(mmcifs / "1ubq.cif")
    read = read_chains(path)
    assert [chain.chain for chain in read] == (["A", "B"] if taken else ["A"])
    assert [chain.id for chain in read] == (["model_A", "model_B"] if taken else ["model"])
    for chain in read:
        assert chain.sequence == expected.sequence
        assert np.abs(chain.positions - expected.positions).max() < 1e-3


@pytest.mark.parametrize("column", [30, 38, 46])
def test_coordinates_of_asterisks_are_refused(mmcifs: Path, tmp_path: Path, column: int) -> None:
    text = gemmi.read_structure(str(mmcifs / "1ubq.cif")).make_pdb_string()
    lines = [line for line in text.splitlines() if line.startswith("ATOM")]
    for place in (0, 400):  # the first line of the file, and one inside
        bad = lines.copy()
        bad[place] = f"{bad[place][:column]}********{bad[place][column + 8 :]}"
        path = write(tmp_path, "\n".join(bad) + "\n", "model.pdb")
        with pytest.raises(UserError, match=rf"model\.pdb: .*line {place + 1}: x, y and z .*\*\*"):
            read_chains(path)
    # Elsewhere they are no coordinates.
    lines[0] = f"{lines[0][:54]}{'*' * 6}{'*' * 6}{lines[0][66:]}"
    lines.insert(0, "REMARK   3 " + "*" * 60)
    assert len(read_chains(write(tmp_path, "\n".join(lines) + "\n", "model.pdb"))) == 1

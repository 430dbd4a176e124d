"""PDB files as programs write them: the kinds of tests/cases in other forms."""

import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains
from esmfold_peft.protein.residues import ATOM37_INDEX
from tests.protein.ubiquitin import (
    CA,
    CASES,
    PLAIN,
    SEQUENCE,
    WATER,
    edited,
    gaps,
    number,
    placed,
    read_pdb,
    same,
    true_positions,
)

FORCE_FIELDS = {
    "amber": {"HIS": "HIE", "ASP": "ASH", "GLU": "GLH", "LYS": "LYN"},
    "charmm": {"HIS": "HSD", "ASP": "ASPP", "GLU": "GLUP", "LYS": "LSN"},
    "gromacs": {"HIS": "HISB", "ASP": "ASPH", "GLU": "GLUH", "LYS": "LYSH", "ARG": "ARGN"},
    "ends": {"MET": "NMET", "GLY": "CGLY"},
}


@pytest.mark.parametrize("names", FORCE_FIELDS.values(), ids=FORCE_FIELDS)
def test_force_fields_names_are_their_amino_acids(names: dict[str, str]) -> None:
    lines = edited(lambda line: placed(line, name=names.get(line[17:20])))
    (read,) = read_pdb(lines)
    assert read.sequence == SEQUENCE
    np.testing.assert_array_equal(read.positions, true_positions())
    assert (read.chain, read.notes) == ("A", ())


def test_a_name_that_is_also_another_molecule_is_decided_by_its_atoms() -> None:
    # HSE is serine-like homoserine in the PDB's dictionary, and a histidine in CHARMM.
    lines = edited(
        lambda line: (
            placed(line, name="HSE").replace(" CG ", " OD ") if number(line) == 68 else line
        )
    )
    (read,) = read_pdb(lines)
    assert read.sequence[67] == "X"
    assert "HSE 68" in read.notes[0]


@pytest.mark.parametrize("names", [("OT1", "OT2"), ("OC1", "OC2"), ("O1 ", "O2 ")])
def test_oxygens_at_the_end_and_the_delta_carbon_have_other_names(names: tuple[str, str]) -> None:
    def change(line: str) -> str:
        atom, residue = line[12:16].strip(), line[17:20]
        if number(line) == 76 and atom in ("O", "OXT"):
            return f"{line[:13]}{names[atom == 'OXT']}{line[16:]}"
        return line.replace("CD1 ILE", "CD  ILE") if residue == "ILE" else line

    (read,) = read_pdb(edited(change))
    np.testing.assert_array_equal(read.positions, true_positions())


CAP = "HETATM 9999  C   {} A{:4d}      40.000  40.000  20.000  1.00 20.00           C"

CALCIUM = "ATOM   9999 CA    CA A{:4d}      40.000  40.000  20.000  1.00 20.00          Ca"

FREE = "HETATM 9999  {:<3} GLY A 301      {}0.000  40.000  20.000  1.00 20.00           {}"


@pytest.mark.parametrize(
    "foreign",
    [
        [CAP.format("ACE", 0)],
        [CAP.format("NME", 77)],
        [CAP.format("NH2", 77).replace("HETATM", "ATOM  ")],
        ["TER", WATER.format("HOH", 201), WATER.format("WAT", 202)],
        [WATER.format("SOL", 201).replace("HETATM", "ATOM  ")],
        [CALCIUM.format(200)],
        ["TER", *(FREE.format(atom, 4 + k, atom[0]) for k, atom in enumerate(("N", "CA", "C")))],
        [FREE.format(atom, 4 + k, atom[0]) for k, atom in enumerate(("N", "CA", "C"))],
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_what_is_no_amino_acid_of_the_chain_is_no_residue(foreign: list[str], first: bool) -> None:
    lines = [*foreign, *PLAIN] if first else [*PLAIN, *foreign]
    (read,) = read_pdb(lines)
    assert read.sequence == SEQUENCE
    np.testing.assert_array_equal(read.positions, true_positions())


def test_ter_behind_every_few_residues_ends_nothing() -> None:
    (read,) = read_pdb(edited(same, {k: ["TER"] for k in range(5, 76, 5)}))
    assert read.sequence == SEQUENCE
    assert gaps(read) == []


def test_a_chain_that_begins_anew_behind_ter_is_another() -> None:
    moved = [f"{line[:30]}{float(line[30:38]) + 50:8.3f}{line[38:]}" for line in PLAIN]
    one, other = read_pdb([*PLAIN, "TER", *moved, "TER"])
    assert one.sequence == other.sequence == SEQUENCE
    assert (one.chain, other.chain) == ("A", "A-2")


@pytest.mark.parametrize("mark", ["segment", "numbers"])
def test_molecules_without_chain_names_differ_by_segment_or_by_numbers(mark: str) -> None:
    def change(line: str) -> str:
        second = number(line) > 30
        serial = number(line) - 30 * (second and mark == "numbers")
        text = placed(line, chain=" ", serial=serial)
        return f"{text[:66]}      {'PRO' + 'AB'[second]}" if mark == "segment" else text

    lines = edited(lambda line: None if number(line) in (29, 30) else change(line))
    one, other = read_pdb(lines)
    assert (one.sequence, other.sequence) == (SEQUENCE[:28], SEQUENCE[30:])


def test_a_gap_needs_a_distance_and_a_distance_is_a_gap() -> None:
    def skipping(line: str) -> str:  # Kabat numbering skips numbers in an unbroken chain
        return placed(line, serial=number(line) + 7 * (number(line) > 40))

    (read,) = read_pdb(edited(skipping))
    assert gaps(read) == []
    without = [line for line in PLAIN if not 41 <= number(line) <= 47]
    (read,) = read_pdb(without)
    assert gaps(read) == [(40, 7)]
    (read,) = read_pdb([placed(ln, serial=number(ln) - 7 * (number(ln) > 47)) for ln in without])
    assert gaps(read) == [(40, 1)]
    assert read.notes == ("chain breaks without a gap in the numbering: 40 to 41",)


def test_atoms_behind_the_record_end_are_noted() -> None:
    (read,) = read_pdb([*PLAIN[:200], "END", *PLAIN[200:]])
    assert read.notes == ("402 atoms after the record END on line 201 are not read",)


def test_what_stands_behind_end_need_not_be_a_structure() -> None:
    (read,) = read_pdb([*PLAIN, "END", "ATOM  and so on"])
    assert read.sequence == SEQUENCE


def test_models_that_are_not_alike_are_noted() -> None:
    (read,) = read_pdb(
        ["MODEL        1", *PLAIN[:300], "ENDMDL", "MODEL        2", *PLAIN, "ENDMDL"]
    )
    assert read.notes == ("only one of 2 models is read; the models differ",)


def test_residues_that_contradict_the_deposited_sequence_are_noted() -> None:
    names = [line[17:20] for line in PLAIN if line[12:16] == " CA "]
    names[9], names[20] = "TRP", "TRP"
    seqres = [
        f"SEQRES  {k // 13 + 1:2d} A   76  " + " ".join(names[k : k + 13])
        for k in range(0, len(names), 13)
    ]
    (read,) = read_pdb([*seqres, *PLAIN])
    assert [read.sequence[k] for k in (9, 20)] == ["W", "W"]
    assert "left out: GLY 10, ASP 21" in read.notes[0]


def test_a_modified_residue_keeps_its_atoms_where_they_are_wanted() -> None:
    data = (CASES / "residue_names" / "predsep.pdb").read_bytes()
    (plain,) = parse_chains(data, "x.pdb")
    (read,) = parse_chains(data, "x.pdb", modified=True)
    rows = [k for k, letter in enumerate(read.sequence) if letter == "X"]
    assert rows == [19, 56, 64]
    assert not plain.atom_mask[rows].any()
    assert read.atom_mask[rows][:, [ATOM37_INDEX[a] for a in ("N", "CA", "C", "CB", "OG")]].all()


@pytest.mark.parametrize("width", [54, 57, 58, 59, 60, 66])
def test_a_missing_occupancy_of_a_pdb_file_is_1(width: int) -> None:
    (read,) = read_pdb([f"{line[:54]}      {line[60:]}"[:width] for line in PLAIN])
    np.testing.assert_array_equal(read.positions, true_positions())


def test_all_lower_case_is_read() -> None:
    (read,) = read_pdb([line.lower() for line in PLAIN])
    assert read.sequence == SEQUENCE
    np.testing.assert_array_equal(read.positions, true_positions())


DNA = [
    f"ATOM   9{k:03d}  {atom:<3}  DA B{k:4d}      40.000  40.000  {k:2d}.000  1.00 20.00"
    for k in range(1, 5)
    for atom in ("P", "C1'", "N9")
]


@pytest.mark.parametrize("chain", ["A", "B"])
def test_nucleotides_of_seqres_are_no_residues(chain: str) -> None:
    seqres = f"SEQRES   1 {chain}    4   DA  DA  DA  DA"
    dna = [f"{line[:21]}{chain}{int(line[22:26]) + 100:4d}{line[26:]}" for line in DNA]
    (read,) = read_pdb([seqres, *PLAIN, "TER", *dna])
    assert (read.id, read.sequence) == ("x", SEQUENCE)


@pytest.mark.parametrize("blank", [False, True])
def test_a_copy_under_one_name_is_another_chain(blank: bool) -> None:
    chain = " " if blank else "A"
    lines = [placed(line, chain=chain) for line in PLAIN]
    moved = [f"{line[:30]}{float(line[30:38]) + 50:8.3f}{line[38:]}" for line in lines]
    one, other = read_pdb([*lines, *moved])
    assert one.sequence == other.sequence == SEQUENCE
    assert (one.chain, other.chain) == (("A", "B") if blank else ("A", "A-2"))
    np.testing.assert_allclose(other.positions[:, CA, 0] - one.positions[:, CA, 0], 50, atol=1e-3)


def test_names_of_two_letters_are_no_fourth_letter_of_a_residue() -> None:
    other = [f"{line[:20]}HA{line[22:]}" for line in PLAIN]
    one, two = read_pdb([*PLAIN, "TER", *other])
    assert one.sequence == two.sequence == SEQUENCE
    assert (one.chain, two.chain) == ("A", "HA")


LIGAND = "HETATM 9999  {:<3} {} A 201      60.000  6{}.000  20.000  1.00 20.00           {}"


@pytest.mark.parametrize("name", ["UNK", "ORN", "SEP", "GLU", "XYZ"])
@pytest.mark.parametrize("atoms", [("N", "CA", "C", "O"), ("C1", "C2", "O3")])
@pytest.mark.parametrize("ter", [False, True])
def test_ligands_in_the_chain_are_no_residues(name: str, atoms: tuple[str, ...], ter: bool) -> None:
    ligand = [LIGAND.format(atom, name, k, atom[0]) for k, atom in enumerate(atoms)]
    (read,) = read_pdb([*PLAIN, *(["TER"] if ter else []), *ligand])
    assert read.sequence == SEQUENCE


def test_a_modified_residue_beside_a_gap_stays() -> None:
    def change(line: str) -> str | None:
        if 19 <= number(line) <= 21 and number(line) != 20:
            return None
        return f"HETATM{placed(line, name='SEP')[6:]}" if number(line) == 20 else line

    (read,) = read_pdb(edited(change))
    assert read.sequence == SEQUENCE[:18] + "X" + SEQUENCE[21:]
    assert gaps(read) == [(18, 1), (19, 1)]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_shifted_z_is_refused(columns: int) -> None:
    lines = [f"{line[:46]}{' ' * columns}{line[46:]}" for line in PLAIN]
    with pytest.raises(UserError, match="line 1: x, y and z"):
        read_pdb(lines)


@pytest.mark.parametrize("text", ["    ", "****"])
def test_an_amino_acid_without_number_is_refused_and_water_is_not(text: str) -> None:
    lines = [
        *PLAIN,
        f"HETATM 9999  O   HOH A{text}      60.000  60.000  20.000  1.00 20.00           O",
    ]
    assert read_pdb(lines)[0].sequence == SEQUENCE
    lines[5] = f"{lines[5][:22]}{text}{lines[5][26:]}"
    with pytest.raises(UserError, match="line 6: no residue number in columns 23 to 26"):
        read_pdb(lines)


def test_what_was_not_read_is_said_where_there_is_no_protein() -> None:
    with pytest.raises(
        UserError, match="no protein chain; 602 atoms after the record END on line 2"
    ):
        read_pdb([WATER.format("HOH", 1), "END", *PLAIN])


def test_ter_inside_a_residue_parts_nothing() -> None:
    (read,) = read_pdb([*PLAIN[:100], "TER", *PLAIN[100:]])
    np.testing.assert_array_equal(read.positions, true_positions())


def test_seqres_that_lacks_residues_inside_is_not_the_sequence() -> None:
    names = [
        line[17:20] for line in PLAIN if line[12:16] == " CA " and number(line) not in (11, 12)
    ]
    seqres = [
        f"SEQRES  {k // 13 + 1:2d} A   74  " + " ".join(names[k : k + 13])
        for k in range(0, len(names), 13)
    ]
    (read,) = read_pdb([*seqres, *PLAIN])
    assert read.sequence == SEQUENCE
    assert gaps(read) == []
    assert "the modelled residues do not fit the deposited sequence" in read.notes[0]

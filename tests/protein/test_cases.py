"""Files of kinds that were once misread (tests/cases), and others of each kind made from them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains, read_chains
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure

CASES = Path(__file__).parents[1] / "cases"
SEQUENCE = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
N30, SECOND30 = SEQUENCE[:30], SEQUENCE[30:60]
WITH_BREAK = SEQUENCE[:12] + SEQUENCE[16:30]
CA = ATOM37_INDEX["CA"]
PREDICTIONS = ("residue_names/amber.pdb", "ter_inside_a_chain/predter.pdb")


def gaps(chain: ProteinStructure) -> list[tuple[int, int]]:
    """Rows before which numbers are missing, and how many."""
    steps = np.diff(chain.residue_index)
    return [(int(row) + 1, int(steps[row]) - 1) for row in np.flatnonzero(steps != 1)]


@pytest.mark.parametrize(
    ("file", "sequences", "missing"),
    [
        ("waters_in_the_chain/in.cif", [N30], []),
        ("waters_in_the_chain/many_waters.cif", [N30], []),
        ("waters_in_the_chain/mine.cif", [SEQUENCE], []),
        ("waters_in_the_chain/control.cif", [SEQUENCE], []),
        ("ter_inside_a_chain/brk.pdb", [WITH_BREAK], [(12, 4)]),
        ("ter_inside_a_chain/predter.pdb", [SEQUENCE], []),
        ("blank_chain/running.pdb", [N30, SECOND30], []),
        ("blank_chain/lastter.pdb", [N30, SECOND30], []),
        ("caps/one_ter.pdb", [WITH_BREAK], [(12, 4)]),
        ("caps/two_ter.pdb", [WITH_BREAK], [(12, 4)]),
        ("occupancy/blank.pdb", [SEQUENCE], []),
        ("entry_ids/job2_model_0.cif", [SEQUENCE[25:50]], []),
        ("atom_site_columns/no_alt.cif", [N30], []),
        ("atom_site_columns/no_asym.cif", [N30], []),
        ("numbering/icode_gap.pdb", [SEQUENCE[:20] + SEQUENCE[25:30]], [(20, 5)]),
        ("residue_names/amber.pdb", [SEQUENCE], []),
        ("byte_order_mark/x.pdb", [N30], []),
        ("before_the_protein/zn_first.pdb", [N30], []),
        ("two_polymers_one_chain/in.cif", [SEQUENCE[:15], SEQUENCE[30:45]], []),
        ("seqres_shorter/in.pdb", [N30], []),
        ("clusters_of_pdb_files/1ubq.pdb", [SEQUENCE], []),
        ("lower_case/in.pdb", [N30], []),
    ],
)
def test_every_residue_is_read_and_nothing_else(
    file: str, sequences: list[str], missing: list[tuple[int, int]]
) -> None:
    chains = read_chains(CASES / file)
    assert [chain.sequence for chain in chains] == sequences
    assert len({chain.id for chain in chains}) == len({c.chain for c in chains}) == len(chains)
    for chain in chains:
        assert chain.atom_mask[:, CA].all()
        assert gaps(chain) == missing
        start = SEQUENCE.index(chain.sequence[:10])
        truth = true_positions()[start : start + 10]
        if chain is chains[0] and file not in PREDICTIONS:
            np.testing.assert_allclose(chain.positions[:10, CA], truth[:, CA], atol=1e-3)


def true_positions() -> np.ndarray:
    return read_chains(CASES / "reference.pdb")[0].positions


@pytest.mark.parametrize(("file", "line"), [("none", 18), ("comma", 1), ("shifted", 1)])
def test_coordinates_that_are_no_numbers_are_refused_with_their_line(file: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"{file}\.pdb: .*\(line {line}: x, y and z .* not three"):
        read_chains(CASES / "coordinates" / f"{file}.pdb")


def test_an_occupancy_of_0_in_a_prediction_means_nothing() -> None:
    data = (CASES / "occupancy" / "pred0.pdb").read_bytes()
    (experiment,) = parse_chains(data, "x.pdb")
    (prediction,) = parse_chains(data, "x.pdb", occupied=False)
    assert not experiment.atom_mask.any()
    assert "every atom has an occupancy of 0" in experiment.notes[0]
    assert prediction.atom_mask[:, CA].all()
    assert prediction.notes == ()


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("seqres_shorter/in.pdb", "the deposited sequence is not the modelled one"),
        ("blank_chain/running.pdb", "one of 2 molecules that the file gives no chain names"),
        ("residue_names/predsep.pdb", "modified residues are read as X, without atoms: SEP 20, "),
    ],
)
def test_what_is_decided_or_left_out_is_noted(file: str, note: str) -> None:
    (found,) = read_chains(CASES / file)[0].notes
    assert note in found


def test_a_second_protein_of_a_chain_has_a_name_of_its_own() -> None:
    one, other = read_chains(CASES / "two_polymers_one_chain" / "in.cif")
    assert (one.chain, other.chain) == ("A", "A-2")
    assert other.notes == ("another protein of chain A, named A-2",)


def test_proteins_under_one_label_are_told_apart_by_their_entities() -> None:
    text = (CASES / "two_polymers_one_chain" / "in.cif").read_text()
    one, other = parse_chains(re.sub(r"(ATOM.*) B 2 ", r"\1 A 2 ", text).encode(), "x.cif")
    assert (one.sequence, other.sequence) == (SEQUENCE[:15], SEQUENCE[30:45])
    assert (one.entity, other.entity) == ("1", "2")


# Neighbours of these kinds, made from the plain file by editing lines.

PLAIN = [
    line for line in (CASES / "reference.pdb").read_text().splitlines() if line.startswith("ATOM")
]


def number(line: str) -> int:
    return int(line[22:26])


def edited(
    change: Callable[[str], str | None], after: dict[int, list[str]] | None = None
) -> Iterator[str]:
    """The lines, each changed, and more behind residues of some numbers."""
    for line, following in zip(PLAIN, [*PLAIN[1:], ""], strict=True):
        if (changed := change(line)) is not None:
            yield changed
        if not following or number(following) != number(line):
            yield from (after or {}).get(number(line), [])


def read_pdb(lines: Iterator[str] | list[str], **flags: bool) -> list[ProteinStructure]:
    return parse_chains(("\n".join(lines) + "\nEND\n").encode(), "x.pdb", **flags)


def same(line: str) -> str:
    return line


def placed(
    line: str, *, name: str | None = None, chain: str = "A", serial: int | None = None
) -> str:
    """A line under another name of the residue (four columns), chain or number."""
    name = line[17:20] + " " if name is None else f"{name:<4}"
    new = f"{number(line) if serial is None else serial:4d}"
    return f"{line[:17]}{name}{chain}{new}{line[26:]}"


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
WATER = "HETATM 9999  O   {} A{:4d}      40.000  40.000  20.000  1.00 20.00           O"
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
    assert read.notes == ("breaks of the chain that its numbers do not show: 40 to 41",)


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
    assert read.notes == ("one of 2 models is read, though others differ",)


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


MMCIF = (CASES / "atom_site_columns" / "no_alt.cif").read_text()


def without_column(name: str) -> str:
    items = re.findall(r"_atom_site\.(\S+)\n", MMCIF)
    place, lines = items.index(name), []
    for line in MMCIF.replace(f"_atom_site.{name}\n", "").splitlines():
        words = line.split()
        atom = line.startswith("ATOM")
        lines.append(" ".join(words[:place] + words[place + 1 :]) if atom else line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", re.findall(r"_atom_site\.(\S+)\n", MMCIF))
def test_a_missing_column_is_named_or_done_without(name: str) -> None:
    data = without_column(name).encode()
    needed = ("Cartn_x", "Cartn_y", "Cartn_z", "label_comp_id", "label_atom_id")
    if name in needed:
        with pytest.raises(
            UserError, match=rf"no column _atom_site\.{name}( or _atom_site\.auth_)?"
        ):
            parse_chains(data, "x.cif")
        return
    (read,) = parse_chains(data, "x.cif")
    assert read.sequence == N30
    assert read.atom_mask.sum() == 233


def nulled(text: str, *columns: str) -> bytes:
    items = re.findall(r"_atom_site\.(\S+)\n", text)
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("ATOM"):
            words = line.split()
            for name in columns:
                words[items.index(name)] = "?"
            lines[place] = " ".join(words)
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    "columns",
    [
        *(("label_asym_id",), ("auth_asym_id",), ("label_asym_id", "auth_asym_id")),
        *(("label_seq_id",), ("auth_seq_id",), ("type_symbol", "label_entity_id")),
    ],
)
def test_columns_without_values_are_done_without(columns: tuple[str, ...]) -> None:
    (read,) = parse_chains(nulled(MMCIF, *columns), "x.cif")
    assert (read.sequence, read.chain, int(read.atom_mask.sum())) == (N30, "A", 233)


def test_residues_without_any_number_are_refused() -> None:
    with pytest.raises(UserError, match="no atom has a label_seq_id or auth_seq_id"):
        parse_chains(nulled(MMCIF, "label_seq_id", "auth_seq_id"), "x.cif")


def test_an_offset_of_label_seq_id_is_found() -> None:
    text = (CASES / "entry_ids" / "job1_model_0.cif").read_text()
    moved = re.sub(r" A 1 (\d+) ", lambda found: f" A 1 {int(found[1]) + 3} ", text)
    (read,) = parse_chains(moved.encode(), "x.cif")
    (true,) = parse_chains(text.encode(), "x.cif")
    np.testing.assert_array_equal(read.positions, true.positions)


@pytest.mark.parametrize("value", ["None", "27,340", "inf", "1.0e"])
def test_a_coordinate_of_mmcif_that_is_no_number_is_refused_with_its_line(value: str) -> None:
    data = MMCIF.replace(" 26.266 ", f" {value} ", 1).encode()
    line = 1 + MMCIF[: MMCIF.index(" 26.266 ")].count("\n")
    with pytest.raises(
        UserError, match=rf"x\.cif: .*line {line}: Cartn_x of atom 2 is not a number"
    ):
        parse_chains(data, "x.cif")


@pytest.mark.parametrize("value", ["?", ".", "unknown"])
def test_a_missing_occupancy_of_mmcif_is_1(value: str) -> None:
    (read,) = parse_chains(MMCIF.replace(" 1.00 ", f" {value} ").encode(), "x.cif")
    assert read.atom_mask.sum() == 233


@pytest.mark.parametrize("width", [54, 57, 58, 59, 60, 66])
def test_a_missing_occupancy_of_a_pdb_file_is_1(width: int) -> None:
    (read,) = read_pdb([f"{line[:54]}      {line[60:]}"[:width] for line in PLAIN])
    np.testing.assert_array_equal(read.positions, true_positions())


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
    ],
    ids=["utf-8 mark", "utf-16", "crlf", "cr"],
)
@pytest.mark.parametrize("form", ["pdb", "cif"])
def test_text_of_other_systems_is_read(encode: Callable[[str], bytes], form: str) -> None:
    text = "\n".join(PLAIN) + "\n" if form == "pdb" else MMCIF
    (read,) = parse_chains(encode(text), f"x.{form}")
    assert read.atom_mask.sum() == (602 if form == "pdb" else 233)


def test_all_lower_case_is_read() -> None:
    (read,) = read_pdb([line.lower() for line in PLAIN])
    assert read.sequence == SEQUENCE
    np.testing.assert_array_equal(read.positions, true_positions())


# Found by a review that wrote such files for every kind.

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


@pytest.mark.parametrize("label", ["A", "B"])
def test_a_copy_under_one_author_name_is_another_chain_of_mmcif(label: str) -> None:
    rows = [line for line in MMCIF.splitlines() if line.startswith("ATOM")]
    moved = []
    for line in rows:
        words = line.split()
        words[5], words[9] = label, f"{float(words[9]) + 50:.3f}"
        moved.append(" ".join(words))
    data = MMCIF.rstrip().removesuffix("#") + "\n".join(moved) + "\n"
    one, other = parse_chains(data.encode(), "x.cif")
    assert one.sequence == other.sequence == N30
    assert (one.chain, other.chain) == ("A", "A-2")
    assert one.atom_mask.sum() == other.atom_mask.sum() == 233


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


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_names_of_columns_are_read_in_any_case(case: Callable[[str], str]) -> None:
    data = re.sub(r"_atom_site\.\S+", lambda found: case(found[0]), MMCIF).encode()
    assert parse_chains(data, "x.cif")[0].atom_mask.sum() == 233


@pytest.mark.parametrize("text", ["2024/02/03", "2024-02-30", "soon"])
def test_an_odd_date_costs_a_note_and_not_the_file(text: str) -> None:
    item = f"_pdbx_audit_revision_history.revision_date {text}\nloop_"
    (read,) = parse_chains(MMCIF.replace("loop_", item, 1).encode(), "x.cif")
    assert read.release_date is None
    assert read.notes == (f"the release date is taken as unknown: {text} is no date",)


def test_the_first_model_and_the_first_block_with_protein_are_read() -> None:
    water = WATER.format("HOH", 1)
    (read,) = read_pdb(["MODEL        1", water, "ENDMDL", "MODEL        2", *PLAIN, "ENDMDL"])
    assert read.sequence == SEQUENCE
    assert "of model 2; there is no protein in those before it" in read.notes
    lines = MMCIF.splitlines(keepends=True)
    ligand = "".join(line for line in lines if not line.startswith(("ATOM", "#")))
    ligand += "HETATM 1 O O . HOH B 2 . ? 1.0 1.0 1.0 1.00 9.67 1 A 1\n".replace(" . HOH", " HOH")
    (read,) = parse_chains((ligand + MMCIF.replace("data_x", "data_y")).encode(), "x.cif")
    assert read.sequence == N30
    assert read.notes == ("of 2 data blocks with atoms, number 2 is read",)


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
    assert "the deposited sequence is not the modelled one" in read.notes[0]

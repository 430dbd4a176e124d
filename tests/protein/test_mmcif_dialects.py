"""mmCIF files as programs write them: the kinds of tests/cases in other forms."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains
from tests.protein.ubiquitin import (
    CASES,
    N30,
    PLAIN,
    SEQUENCE,
    WATER,
    read_pdb,
)

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


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_names_of_columns_are_read_in_any_case(case: Callable[[str], str]) -> None:
    data = re.sub(r"_atom_site\.\S+", lambda found: case(found[0]), MMCIF).encode()
    assert parse_chains(data, "x.cif")[0].atom_mask.sum() == 233


@pytest.mark.parametrize("text", ["2024/02/03", "2024-02-30", "soon"])
def test_an_odd_date_costs_a_note_and_not_the_file(text: str) -> None:
    item = f"_pdbx_audit_revision_history.revision_date {text}\nloop_"
    (read,) = parse_chains(MMCIF.replace("loop_", item, 1).encode(), "x.cif")
    assert read.release_date is None
    assert read.notes == (f"release date unknown: {text} is not a date",)


def test_the_first_model_and_the_first_block_with_protein_are_read() -> None:
    water = WATER.format("HOH", 1)
    (read,) = read_pdb(["MODEL        1", water, "ENDMDL", "MODEL        2", *PLAIN, "ENDMDL"])
    assert read.sequence == SEQUENCE
    assert "read from model 2; earlier models have no protein" in read.notes
    lines = MMCIF.splitlines(keepends=True)
    ligand = "".join(line for line in lines if not line.startswith(("ATOM", "#")))
    ligand += "HETATM 1 O O . HOH B 2 . ? 1.0 1.0 1.0 1.00 9.67 1 A 1\n".replace(" . HOH", " HOH")
    (read,) = parse_chains((ligand + MMCIF.replace("data_x", "data_y")).encode(), "x.cif")
    assert read.sequence == N30
    assert read.notes == ("data block 2 of 2 with atoms is read",)

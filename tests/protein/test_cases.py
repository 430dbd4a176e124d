"""Files of kinds that were once misread (tests/cases)."""

import re

import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains, read_chains
from tests.protein.ubiquitin import (
    CA,
    CASES,
    N30,
    SECOND30,
    SEQUENCE,
    gaps,
    true_positions,
)

WITH_BREAK = SEQUENCE[:12] + SEQUENCE[16:30]

PREDICTIONS = ("residue_names/amber.pdb", "ter_inside_a_chain/predter.pdb")


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


@pytest.mark.parametrize(("file", "line"), [("none", 18), ("comma", 1), ("shifted", 1)])
def test_coordinates_that_are_no_numbers_are_refused_with_their_line(file: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"{file}\.pdb: .*\(line {line}: x, y and z .* not three"):
        read_chains(CASES / "coordinates" / f"{file}.pdb")


def test_an_occupancy_of_0_in_a_prediction_means_nothing() -> None:
    data = (CASES / "occupancy" / "pred0.pdb").read_bytes()
    (experiment,) = parse_chains(data, "x.pdb")
    (prediction,) = parse_chains(data, "x.pdb", occupied=False)
    assert not experiment.atom_mask.any()
    assert "all occupancies are 0" in experiment.notes[0]
    assert prediction.atom_mask[:, CA].all()
    assert prediction.notes == ()


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("seqres_shorter/in.pdb", "the modelled residues do not fit the deposited sequence"),
        ("blank_chain/running.pdb", "the file names no chains; this is one of its 2 molecules"),
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

"""Scores of the chains in data/example, which OpenStructure and TMscore gave (`oracles.py`)."""

import json

import pytest

from tests.metrics.oracles import ORACLES, PAIRS, pair
from tests.perturbing import Scores, scores

ROWS = json.loads(ORACLES.read_text())


@pytest.fixture(scope="module")
def found() -> list[Scores]:
    return [scores(*pair(number)) for number in range(len(PAIRS))]


def test_the_file_is_of_these_pairs():
    assert [(row["chain"], row["kind"]) for row in ROWS] == PAIRS
    assert len(ROWS) >= 40


def test_lddt_ca_counts_the_pairs_of_openstructure(found):
    for row, ours in zip(ROWS, found, strict=True):
        preserved, checked = row["ca"]
        assert 4 * ours.ca_pairs == checked
        # The deviation of a pair may lie at a threshold up to rounding.
        assert ours.ca == pytest.approx(preserved / checked, abs=2.5 / checked)


def test_all_atom_lddt_is_openstructure_s(found):
    same = 0
    for row, ours in zip(ROWS, found, strict=True):
        preserved, checked = row["all_atom"]
        assert ours.all_atom == pytest.approx(preserved / checked, abs=5e-4)
        # The pairs of OXT are not among ours.
        assert 0.995 * checked < 4 * ours.all_atom_pairs <= checked
        if 4 * ours.all_atom_pairs == checked:
            assert ours.all_atom == pytest.approx(preserved / checked, abs=1.5e-4)
            same += 1
    assert same > 25


@pytest.mark.parametrize("name", ["gdt_ts", "gdt_ha", "tm_score", "rmsd"])
def test_superpositions_are_as_good_as_tmscore_s(found, name):
    # TMscore prints four decimals of a score, three of an RMSD.
    printed = 5.5e-4 if name == "rmsd" else 5.5e-5
    for row, ours in zip(ROWS, found, strict=True):
        assert getattr(ours.superposition, name) == pytest.approx(row[name], abs=printed)

"""Scores of one prediction, written in ways that were once misread (tests/cases)."""

from pathlib import Path

import pytest

from esmfold_peft.evaluation.pairs import Pair
from esmfold_peft.evaluation.scoring import score_pair
from esmfold_peft.evaluation.sources import InFile
from esmfold_peft.preparation.sources import list_items

CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("residue_names/base.pdb", ""),
        ("residue_names/amber.pdb", ""),
        ("ter_inside_a_chain/predter.pdb", ""),
        (
            "residue_names/predsep.pdb",
            "prediction: modified residues are read as X, with the atoms they have: SEP 20, SEP 57,"
            " SEP 65",
        ),
    ],
)
def test_one_prediction_has_one_score_however_it_is_written(file: str, note: str):
    predicted, true = (
        InFile(list_items((CASES / name,), None)[0]) for name in (file, "reference.pdb")
    )
    row = score_pair(Pair("x", "", predicted, true, "", "")).row
    assert (row.status, row.matched, row.note) == ("ok", 76, note)
    # biotite's lddt, and tmtools over all Cα.
    assert row.lddt_ca == pytest.approx(0.832, abs=5e-4)
    assert row.tm_score == pytest.approx(0.925, abs=5e-4)
    assert row.lddt_all_atom == pytest.approx(0.843, abs=5e-4)

"""Which chains are left out, and what a prediction loses."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.config import FilterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import (
    confident_part,
    reason_against,
    reason_against_prediction,
)
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure


@pytest.fixture(scope="module")
def chain(example: Path) -> ProteinStructure:
    """93 residues, 83 of them resolved, 1.9 Å, of 2011-11-09."""
    return read_structure(example / "held_out" / "3u8v_A.cif.gz")


@pytest.mark.parametrize(
    ("passing", "failing", "kind", "reason"),
    [
        ({"max_resolution": 1.9}, {"max_resolution": 1.8}, "resolution", "1.9 Å, worse than 1.8"),
        ({"min_date": "2011-11-09"}, {"min_date": "2011-11-10"}, "date", "before 2011-11-10"),
        ({"max_date": "2011-11-09"}, {"max_date": "2011-11-08"}, "date", "after 2011-11-08"),
        ({"min_length": 93}, {"min_length": 94}, "length", "93 residues, fewer than 94"),
        ({"max_length": 93}, {"max_length": 92}, "length", "93 residues, more than 92"),
        ({"min_resolved": 83}, {"min_resolved": 84}, "resolved", "83 resolved residues, fewer"),
        ({"max_dominance": 0.2}, {"max_dominance": 0.05}, "dominance", "more than 5%"),
    ],
)
def test_each_filter_holds_at_its_bound(chain, passing, failing, kind, reason):
    assert reason_against(chain, FilterConfig(**passing)) is None
    found = reason_against(chain, FilterConfig(**failing))
    assert found is not None
    assert found[0] == kind
    assert reason in found[1]


def test_what_is_unknown_is_no_reason(chain: ProteinStructure):
    unknown = replace(chain, resolution=None, release_date=None)
    strict = FilterConfig(max_resolution=0.5, min_date="2020-01-01", max_date="2020-01-02")
    assert reason_against(unknown, strict) is None


def test_one_amino_acid_may_make_up_four_fifths(chain: ProteinStructure):
    def of(sequence: str) -> ProteinStructure:
        part = slice(10, 10 + len(sequence))
        return replace(
            chain,
            sequence=sequence,
            residue_index=chain.residue_index[part],
            residue_names=chain.residue_names[part],
            positions=chain.positions[part],
            atom_mask=chain.atom_mask[part],
            b_factors=chain.b_factors[part],
        )

    assert reason_against(of("A" * 16 + "GGGG"), FilterConfig()) is None
    found = reason_against(of("A" * 17 + "GGG"), FilterConfig())
    assert found == ("dominance", "85% of the residues are A, more than 80%")
    found = reason_against(of("X" * 11 + "ACDEFGHIK"), FilterConfig())
    assert found == ("unknown", "55% of the residues are X, more than 50%")
    assert reason_against(of("X" * 10 + "ACDEFGHIKL"), FilterConfig()) is None


def test_an_atom_at_the_end_of_the_world_is_damage(chain: ProteinStructure):
    positions = chain.positions.copy()
    positions[20, 1, 2] = -1e6
    found = reason_against(replace(chain, positions=positions), FilterConfig())
    assert found is not None
    assert found[0] == "coordinates"


def predicted(chain: ProteinStructure, plddt: np.ndarray) -> ProteinStructure:
    b_factors = (chain.atom_mask * plddt[:, None]).astype(np.float32)
    return replace(chain, b_factors=b_factors)


def test_uncertain_residues_lose_their_atoms(chain: ProteinStructure):
    plddt = np.linspace(0, 100, len(chain))
    found = confident_part(predicted(chain, plddt), 50.0)
    sure = plddt >= 50
    assert np.array_equal(found.atom_mask, chain.atom_mask & sure[:, None])
    assert np.array_equal(found.positions[sure], chain.positions[sure])
    assert not found.positions[~sure].any()
    assert not found.b_factors[~sure].any()
    assert found.sequence == chain.sequence
    assert (found.release_date, found.resolution) == (None, None)
    at_the_bound = confident_part(predicted(chain, np.full(len(chain), 50.0)), 50.0)
    assert np.array_equal(at_the_bound.atom_mask, chain.atom_mask)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (69.5, "mean pLDDT 69.5, below 70"),
        (0.9, "B-factors from 0.9 to 0.9 are no pLDDT of 0 to 100"),
        (-1.0, "are no pLDDT"),
        (100.5, "are no pLDDT"),
        (70.0, None),
    ],
)
def test_predictions_must_be_sure_of_themselves(chain, value: float, reason: str | None):
    found = reason_against_prediction(predicted(chain, np.full(len(chain), value)), 70.0)
    assert (found is None) if reason is None else (found is not None and reason in found[1])


@pytest.mark.parametrize("text", ["yesterday", "20110101", "2011-13-01", "2011-W02-1"])
def test_a_date_is_a_date(text: str):
    with pytest.raises(UserError, match=f"filters.max_date: '{text}' is not a date like"):
        FilterConfig(max_date=text)
    assert FilterConfig(max_date=date(2011, 1, 1).isoformat()).max_date == "2011-01-01"

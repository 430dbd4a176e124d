"""What `predict` writes, record by record."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.model.inference import Folded
from esmfold_peft.predict import file_names, write_record
from esmfold_peft.protein.fasta import FastaRecord

RECORD = FastaRecord(id="x", header="x y", sequence="MKX", line=1, replaced=1)


def folded(positions: float, plddt: float) -> Folded:
    """A prediction of three residues with all atoms at one place."""
    return Folded(0, torch.full((3, 14, 3), positions), torch.full((3,), plddt))


def test_a_sound_prediction_is_written_twice(tmp_path: Path):
    row = write_record(tmp_path, "x", RECORD, folded(1.0, 0.5))
    assert (row.pdb, row.mmcif, row.status) == ("x.pdb", "x.cif", "ok")
    assert (row.length, row.replaced, row.plddt) == (3, 1, 50.0)
    assert {p.name for p in tmp_path.iterdir()} == {"x.pdb", "x.cif"}


def test_what_does_not_fit_the_pdb_format_is_in_the_mmcif(tmp_path: Path):
    row = write_record(tmp_path, "x", RECORD, folded(-1234.5, 0.5))
    assert (row.pdb, row.mmcif, row.status) == ("", "x.cif", "ok")
    assert "-1234.5" in (tmp_path / "x.cif").read_text()


@pytest.mark.parametrize(("positions", "plddt"), [(float("nan"), 0.5), (1.0, float("nan"))])
def test_a_prediction_that_is_not_finite_fails_alone(
    positions: float, plddt: float, tmp_path: Path
):
    row = write_record(tmp_path, "x", RECORD, folded(positions, plddt))
    assert (row.pdb, row.mmcif) == ("", "")
    assert "not finite" in row.status
    assert not list(tmp_path.iterdir())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=150), max_size=6))
def test_file_names_are_safe_and_unique(ids: list[str]):
    names = file_names(ids)
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert Path(name).name == name
        assert name.isascii()
        assert not name.startswith((".", "-"))
        assert 0 < len(name) < 120


def test_a_plain_id_is_its_own_file_name():
    assert file_names(["1ubq_A", "1UBQ_a", "../etc/passwd"]) == [
        "1ubq_A",
        "1UBQ_a-2",
        "_etc_passwd",
    ]

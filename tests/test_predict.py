"""What `predict` writes, record by record."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.cli import parse
from esmfold_peft.config import PredictConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Folded
from esmfold_peft.predict import adapter_of, file_names, write_record
from esmfold_peft.protein.fasta import FastaRecord

RECORD = FastaRecord(id="x", header="x y", sequence="MKX", line=1, replaced=1)


def folded(positions: float, plddt: float) -> Folded:
    """A prediction of three residues with all atoms at one place."""
    return Folded(0, torch.full((3, 14, 3), positions), torch.full((3, 37), plddt))


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


def config(*adapters: str) -> PredictConfig:
    return PredictConfig(Path("x.fasta"), Path("run"), Path("out"), adapter=adapters)


def record(header: str) -> FastaRecord:
    return FastaRecord(id=header.split()[0], header=header, sequence="MK", line=7, replaced=0)


def test_a_header_names_the_adapter_of_its_record():
    given = config("a=one", "b=two=2")
    assert given.adapter_folders() == {"a": Path("one"), "b": Path("two=2")}
    assert adapter_of(record("x"), given) == ""
    assert adapter_of(record("x some adapter=b words"), given) == "b"
    # The id is a name, whatever it looks like.
    assert adapter_of(record("adapter=c"), given) == ""


@pytest.mark.parametrize("flags", [["a=x", "b=y"], ["a=x", "--adapter", "b=y"]])
def test_adapters_on_the_command_line(flags):
    words = ["predict", "x.fasta", "--run", "r", "--output", "o", "--adapter", *flags]
    assert parse(words).values.adapter == ["a=x", "b=y"]


@pytest.mark.parametrize(
    ("header", "adapters", "message"),
    [
        ("x adapter=c", ("a=one",), 'x.fasta:7: record "x" names the adapter "c", but --adapter'),
        ("x adapter=c", (), 'record "x" names the adapter "c", but no --adapter is given'),
        ("x adapter=a adapter=b", ("a=one", "b=two"), 'record "x" names two adapters'),
    ],
)
def test_a_header_that_names_no_adapter_of_the_command_is_refused(header, adapters, message):
    with pytest.raises(UserError, match=message):
        adapter_of(record(header), config(*adapters))


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (("one",), "adapter: 'one' is not name=folder"),
        (("=one",), "adapter: '=one' is not name=folder"),
        (("a=",), "adapter: 'a=' is not name=folder"),
        (("a b=c",), "adapter: 'a b=c' is not name=folder"),
        (("a=one", "a=two"), "adapter: a is named twice"),
    ],
)
def test_wrong_adapters_of_the_command_are_refused(adapters, message):
    with pytest.raises(UserError, match=message):
        config(*adapters)


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

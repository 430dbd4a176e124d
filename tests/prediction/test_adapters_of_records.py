"""Records that name an adapter in their header."""

from pathlib import Path

import pytest

from esmfold_peft.cli import parse
from esmfold_peft.commands.predict import adapter_of
from esmfold_peft.config import PredictConfig
from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import FastaRecord


def config(*adapters: str) -> PredictConfig:
    return PredictConfig((Path("x.fasta"),), Path("out"), Path("run"), adapter=adapters)


def record(header: str) -> FastaRecord:
    return FastaRecord(id=header.split()[0], header=header, chains=("MK",), file="x.fasta", line=7)


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

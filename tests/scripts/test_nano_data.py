"""The nano base's data: nothing that is trained on resembles what is evaluated."""

import json
import shutil
from pathlib import Path

import pytest

from esmfold_peft.datasets.mmseqs import Hit, mmseqs_program
from esmfold_peft.datasets.store import Store
from esmfold_peft.protein.fasta import read_fasta

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture
def nano_data(script, monkeypatch):
    nano_data = script("nano_data")
    monkeypatch.setattr(nano_data, "_HELD_OUT", 3)
    return nano_data


def sequences(store: Path) -> set[str]:
    chains = Store(store)
    return {chains.sequence(place) for place in range(len(chains))}


def make(nano_data, example: Path, folder: Path, monkeypatch) -> dict:
    """Trains on five chains, of which 3nir_A is in the example and 1hf9_A is evaluated too."""
    shown, validation = folder / "example", folder / "validation"
    for place in (shown, validation):
        place.mkdir()
    shutil.copy(example / "held_out" / "1ubq_A.cif.gz", shown)
    shutil.copy(example / "train" / "1hf9_A.cif.gz", validation)
    crambin = "TTCCPSIVARSNFNVCRLPGTPEALCATYTGCIIIPGATCPGDYAN"
    (shown / "sequences.fasta").write_text(f">3nir_A\n{crambin}\n")
    monkeypatch.setattr(nano_data, "_EXAMPLE", shown)
    apart = ["".join(LETTERS[(k + i * i) % 20] for i in range(30 + k)) for k in range(8)]
    records = [crambin, *apart, apart[0]]
    (folder / "all.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(records)))
    words = ["--train", example / "train", "--validation", validation]
    words += ["--cameo", example / "held_out" / "3u8v_A.cif.gz"]
    words += ["--sequences", folder / "all.fasta", "--output", folder / "out"]
    monkeypatch.setattr("sys.argv", ["nano_data", *map(str, words)])
    assert nano_data.main() == 0
    return json.loads((folder / "out" / "data.json").read_text())


def check(found: dict, out: Path) -> None:
    trained = sequences(out / "train")
    assert found["training chains"] == len(trained) == 3
    assert found["training chains removed"] == 2
    evaluated = (
        sequences(out / "validation") | sequences(out / "cameo") | sequences(out / "example")
    )
    assert not trained & evaluated
    lists = [{r.sequence for r in read_fasta([out / f"{n}.fasta"])} for n in ("train", "held_out")]
    assert not lists[0] & lists[1]
    assert [len(some) for some in lists] == [found["training sequences"], 3]


def test_what_resembles_an_evaluated_chain_is_removed_until_nothing_is_found(
    nano_data, example, tmp_path, monkeypatch
):
    """The program is replaced by one that finds equal sequences, one of them a search."""

    def similar(queries, targets, **_):
        equal = sorted(n for n, sequence in targets.items() if sequence in queries.values())
        return [Hit("", name, 1.0) for name in equal[:1]]

    monkeypatch.setattr(nano_data, "similar", similar)
    monkeypatch.setattr(nano_data, "cluster", lambda sequences, **_: dict(sequences))
    found = make(nano_data, example, tmp_path, monkeypatch)
    check(found, tmp_path / "out")
    assert found["sequences"] == 9  # one of ten is there twice
    assert found["clusters removed"] == 1
    assert found["training sequences"] == 5


@pytest.mark.proof
@pytest.mark.skipif(mmseqs_program() is None, reason="the program mmseqs is not installed")
def test_the_same_with_mmseqs(nano_data, example, tmp_path, monkeypatch):
    check(make(nano_data, example, tmp_path, monkeypatch), tmp_path / "out")

"""`predict` as a command: every record has a row, whatever the FASTA holds."""

import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esmfold_peft.cli import main, parse
from esmfold_peft.commands.predict import run as predict
from esmfold_peft.config import LossConfig, PredictConfig
from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import read_fasta
from tests.nursery import Nursery
from tests.prediction.conftest import LETTERS, QUICK, TINY, make_run, rows_of


def test_every_record_has_a_row_and_good_ones_have_files(
    config: PredictConfig, capsys: pytest.CaptureFixture
):
    assert predict(replace(config, pae=True)) == 1
    rows = rows_of(config.output)
    assert [row["id"] for row in rows] == [
        "good", "sp|P1|../../etc/passwd", "good", "gap", "empty", "complex", "dna", "", "long",
    ]  # fmt: skip
    bad = {row["id"]: row for row in rows if row["status"] != "ok"}
    place = config.fasta[0]
    assert bad.keys() == {"gap", "empty", "long"}
    assert f"{place}:8" in bad["gap"]["status"]
    assert "'-'" in bad["gap"]["status"]
    assert f"{place}:9" in bad["empty"]["status"]
    assert "60 residues" in bad["long"]["status"]
    for row in bad.values():
        assert [row[k] for k in ("plddt", "ptm", "pdb", "mmcif", "html")] == [""] * 5
    good = [row for row in rows if row["status"] == "ok"]
    assert len({row["name"].lower() for row in rows}) == len(rows)
    kinds = ("pdb", "mmcif", "pae_npz", "pae_json")
    named = {row[kind] for row in good for kind in kinds}
    assert named | {"predictions.csv"} == {path.name for path in config.output.iterdir()}
    for row in good:
        structure = gemmi.read_structure(str(config.output / row["mmcif"]))
        residues = [residue for chain in structure[0] for residue in chain]
        assert (len(residues), len(structure[0])) == (int(row["length"]), int(row["chains"]))
        mean = np.mean([residue["CA"][0].b_iso for residue in residues])
        assert mean == pytest.approx(float(row["plddt"]), abs=0.02)
        assert 0 <= float(row["ptm"]) <= 1
        assert float(row["seconds"]) > 0
    by_id = {row["id"]: row for row in rows}
    assert by_id["good"]["replaced"] == "2"
    assert by_id["dna"]["warnings"]
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"6 structures in {config.output}, 3 failed (predictions.csv)"
    assert any("odd.fasta:8" in line for line in said)
    assert any("DNA" in line for line in said)


def test_pages_stand_beside_the_structures(config: PredictConfig):
    assert predict(replace(config, html=True)) == 1
    rows = rows_of(config.output)
    index = (config.output / "index.html").read_text()
    for row in rows:
        assert (row["html"] != "") == (row["status"] == "ok")
        if row["html"]:
            assert row["html"] in index
            assert (config.output / row["html"]).stat().st_size > 500_000


def test_files_streams_and_seeds(
    config: PredictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "b.fasta.gz").write_bytes(gzip.compress(b">b\nMKTAYIAKQRQISFVKSHFSRQ\n", mtime=0))
    (tmp_path / "c.fasta").write_text(">c\nGSHMW\n")
    monkeypatch.setattr(sys, "stdin", (tmp_path / "c.fasta").open())
    files = (tmp_path / "b.fasta.gz", Path("-"))
    assert predict(replace(config, fasta=files, num_seeds=3)) == 0
    rows = rows_of(config.output)
    assert [(row["id"], row["seed"]) for row in rows] == [(i, s) for i in "bc" for s in "012"]
    assert [row["name"] for row in rows[:3]] == ["b", "b_seed1", "b_seed2"]
    assert rows[3]["fasta"] == "stdin"
    texts = {(config.output / row["pdb"]).read_text() for row in rows[:3]}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fasta": (Path("absent.fasta"),)}, "absent.fasta"),
        ({"run": Path("absent")}, "not the folder of a training run"),
        ({"device": "cuda:99"}, "device: cuda:99 is asked for"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    change: dict, message: str, config: PredictConfig
):
    with pytest.raises(UserError, match=message):
        predict(replace(config, **change))
    assert not config.output.exists()


def test_errors_of_an_untrained_head_are_refused(config: PredictConfig, tmp_path: Path):
    run = make_run(tmp_path / "untaught", replace(TINY, loss=LossConfig()))
    with pytest.raises(UserError, match="did not train its PAE head"):
        predict(replace(config, run=run, pae=True))


def test_a_record_that_names_an_unknown_adapter_fails_alone(config: PredictConfig):
    config.fasta[0].write_text(">a adapter=kinases\nMKTAY\n>b\nMKTAY\n")
    assert predict(config) == 1
    first, second = rows_of(config.output)
    assert 'names the adapter "kinases", but no --adapter is given' in first["status"]
    assert second["status"] == "ok"


@pytest.mark.slow
def test_a_new_process_folds_without_the_packages_of_training(config: PredictConfig):
    """They would take seconds to import."""
    words = ["predict", config.fasta[0], "--run", config.run, "--output", config.output]
    code = (
        "import sys; from esmfold_peft.cli import main; assert main(sys.argv[1:]) == 1;"
        "assert not {'pytorch_lightning', 'torchmetrics', 'transformers'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, *words, "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("folding") for line in done.stderr.splitlines())


WORDS = ["predict", "a.fasta", "b.fasta", "--run", "r", "--output", "o"]


def test_flags_are_written_with_dashes_or_underscores():
    words = ["--num-recycles", "2", "--max-tokens-per-batch=7", "--chunk_size", "3", "--pae"]
    values = parse([*WORDS, *words]).values
    assert values.fasta == [Path("a.fasta"), Path("b.fasta")]
    assert (values.num_recycles, values.max_tokens_per_batch, values.chunk_size) == (2, 7, 3)
    assert values.pae


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_seeds", "0"], "num_seeds: 0 is less than 1"),
        (["--esmfold", "x"], "give either --run or --esmfold"),
        (["--language_model", "x"], "language_model: only with --esmfold"),
    ],
)
def test_settings_that_contradict_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err


HEADERS = st.text(st.characters(exclude_characters="\r\n\0"), max_size=300)
CHAINS = st.text(LETTERS + LETTERS.lower() + "BJOUZX", min_size=1, max_size=12)
ANYTHING = st.text(st.characters(exclude_characters="\0"), max_size=30)


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.proof)])
def test_many_records_of_any_kind_are_all_in_the_table(
    count: int, run: Path, tmp_path: Path, nursery: Nursery
):
    made: list[tuple[str, str]] = []

    # The same records each time: how many can be folded is no law, and near a half.
    @settings(max_examples=count, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(HEADERS, CHAINS | CHAINS | ANYTHING)
    def draw(header: str, sequence: str) -> None:
        made.append((header, sequence))

    draw()
    text = "".join(f">{header}\n{sequence}\n" for header, sequence in made)
    (tmp_path / "any.fasta").write_bytes(text.encode(errors="surrogatepass"))
    records = read_fasta([tmp_path / "any.fasta"])
    assert len(records) >= len(made) >= count
    before = set(tmp_path.iterdir())
    out = tmp_path / "out"
    nursery.run(
        *("predict", tmp_path / "any.fasta", "--run", run, "--output", out, "--device", "cpu"),
        code=1,
        before=QUICK,
    )
    assert set(tmp_path.iterdir()) == before | {out}
    rows = rows_of(out)
    assert [int(row["line"]) for row in rows] == [record.line for record in records]
    good = [row for row in rows if row["status"] == "ok"]
    assert [row in good for row in rows] == [not record.problem for record in records]
    assert len(good) > count / 3
    named = {row[kind] for row in good for kind in ("pdb", "mmcif")}
    assert named | {"predictions.csv"} == {path.name for path in out.iterdir()}
    assert len({name.lower() for name in named}) == 2 * len(good)

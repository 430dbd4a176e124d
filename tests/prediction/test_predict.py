"""`predict` as a command: nothing is lost, whatever the FASTA holds and whenever it is killed."""

import csv
import gzip
import signal
import subprocess
import sys
import time
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
from esmfold_peft.model.inference import Failed
from esmfold_peft.prediction.manifest import PredictionRow, RowJournal
from esmfold_peft.prediction.predictor import Predictor
from esmfold_peft.prediction.shards import Shard
from esmfold_peft.protein.fasta import read_fasta
from tests.nursery import Nursery
from tests.prediction.conftest import TINY, make_run
from tests.training.launching import free_port

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ODD = """\
>good first of them
mktayiakqr
>sp|P1|../../etc/passwd
GSHMWWLEGS
>good
MKTAYBZ*
>gap
MK-TAY
>empty
>complex two chains
GAVLK:MKTAY

>dna
ACGTACGTACGTACGTACGTACGT
>
W
>long
"""
ODD += "M" * 60 + "\n"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(folder: Path, other: Path) -> None:
    """The same files and table; numbers as in another batch, which may round in another way."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    for one, two in zip(rows_of(folder), rows_of(other), strict=True):
        for name in one.keys() - {"seconds", "plddt"}:
            assert one[name] == two[name], name
        if one["status"] == "ok":
            assert float(one["plddt"]) == pytest.approx(float(two["plddt"]), abs=0.011)
            places = [places_of(root / one["mmcif"]) for root in (folder, other)]
            np.testing.assert_allclose(*places, atol=1.1e-3)


def places_of(path: Path) -> list[list[float]]:
    model = gemmi.read_structure(str(path))[0]
    return [atom.pos.tolist() for chain in model for residue in chain for atom in residue]


@pytest.fixture
def config(run: Path, tmp_path: Path) -> PredictConfig:
    (tmp_path / "odd.fasta").write_text(ODD)
    return PredictConfig(
        fasta=(tmp_path / "odd.fasta",),
        output=tmp_path / "out",
        run=run,
        device="cpu",
        max_length=50,
    )


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
    with pytest.raises(UserError, match="did not train its head of aligned errors"):
        predict(replace(config, run=run, pae=True))


def test_a_folder_with_predictions_is_gone_on_with_or_left_alone(config: PredictConfig):
    predict(config)
    before = {path: path.stat().st_mtime_ns for path in config.output.glob("*.cif")}
    with pytest.raises(UserError, match="has predictions already; --resume"):
        predict(config)
    again = replace(config, resume=True)
    table = (config.output / "predictions.csv").read_bytes()
    assert predict(again) == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (config.output / "predictions.csv").read_bytes() == table


def changed(before: dict[Path, int]) -> set[str]:
    return {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}


def test_only_what_differs_is_folded_again(config: PredictConfig, tmp_path: Path):
    predict(config)
    before = {path: path.stat().st_mtime_ns for path in config.output.glob("*.cif")}
    # Another sequence, a structure that was deleted, and a record that is gone.
    text = ODD.replace("mktayiakqr", "mktayiakqrw").replace(">dna\nACGTACGTACGTACGTACGTACGT\n", "")
    config.fasta[0].write_text(text)
    rows = {row["name"]: row for row in rows_of(config.output)}
    (config.output / rows["complex"]["pdb"]).unlink()
    again = replace(config, resume=True)
    predict(again)
    assert changed(before) == {rows["good"]["mmcif"], rows["complex"]["mmcif"]}
    # What is no longer asked for keeps its files and its line, after the others.
    assert [row["name"] for row in rows_of(config.output)][-1] == "dna"
    # With another number of passes nothing is the same.
    predict(replace(again, num_recycles=0))
    assert changed(before) == {p.name for p in before} - {rows["dna"]["mmcif"]}


def test_files_of_another_model_are_never_taken_for_ours(config: PredictConfig):
    """A killed run with other settings has replaced some files that the table calls ours."""
    predict(config)
    ours = {path.name: path.read_bytes() for path in config.output.glob("*.cif")}
    other = replace(config, resume=True, num_recycles=0)
    with pytest.MonkeyPatch.context() as patch:
        add = RowJournal.add
        patch.setattr(RowJournal, "add", lambda *given: _killed_at("complex", add, *given))
        with pytest.raises(KeyboardInterrupt):
            predict(other)
    assert {path.name: path.read_bytes() for path in config.output.glob("*.cif")} != ours
    assert predict(replace(config, resume=True)) == 1
    assert {path.name: path.read_bytes() for path in config.output.glob("*.cif")} == ours


def _killed_at(name: str, add, journal: RowJournal, row: PredictionRow) -> None:
    """Keeps rows until the files of one are written, but not its row."""
    if row.name == name and row.status == "ok":
        raise KeyboardInterrupt
    add(journal, row)


def test_nothing_old_stays_beside_what_is_new(config: PredictConfig):
    predict(replace(config, pae=True, html=True))
    assert (config.output / "index.html").exists()
    config.fasta[0].write_text(ODD.replace(">good first of them", ">good other words", 1))
    again = replace(config, resume=True, pae=True, html=True)
    predict(again)
    assert rows_of(config.output)[0]["header"] == "good other words"
    config.fasta[0].write_text(ODD.replace("mktayiakqr", "mkt-y"))
    predict(replace(config, resume=True))
    rows = rows_of(config.output)
    assert "'-'" in rows[0]["status"]
    named = {row[kind] for row in rows for kind in ("pdb", "mmcif")} - {""}
    assert named | {"predictions.csv"} == {path.name for path in config.output.iterdir()}


def test_a_record_that_names_an_unknown_adapter_fails_alone(config: PredictConfig):
    config.fasta[0].write_text(">a adapter=kinases\nMKTAY\n>b\nMKTAY\n")
    assert predict(config) == 1
    first, second = rows_of(config.output)
    assert 'names the adapter "kinases", but no --adapter is given' in first["status"]
    assert second["status"] == "ok"


def test_headers_of_any_length_are_read_again(config: PredictConfig):
    config.fasta[0].write_text(f">a {'x' * 200_000}\nMKTAY\n")
    assert predict(config) == 0
    assert predict(replace(config, resume=True)) == 0


def test_an_emptied_file_is_written_again(config: PredictConfig):
    predict(config)
    path = config.output / "good.pdb"
    path.write_text("")
    predict(replace(config, resume=True))
    assert path.stat().st_size > 100


def test_a_full_disk_ends_with_what_is_done(
    config: PredictConfig, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esmfold_peft.disk.journal.os.fsync", full)
    assert predict(config) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; 1 of 9 are done, --resume goes on" in last


def test_what_failed_is_tried_again(config: PredictConfig, monkeypatch: pytest.MonkeyPatch):
    def unlucky(_, queries, **__):
        return (Failed(place, "no luck") for place in range(len(queries)))

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "fold_all", unlucky)
        predict(config)
    assert {row["status"] for row in rows_of(config.output)} >= {"no luck"}
    predict(replace(config, resume=True))
    assert sum(row["status"] == "ok" for row in rows_of(config.output)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 10])
def test_processes_share_the_work_whatever_their_order(world: int, config: PredictConfig):
    predict(config)
    together = replace(config, output=config.output.with_name("together"), resume=True)
    # The last of ten has no work: one that comes late finds all done.
    order = range(world) if world == 10 else reversed(range(world))
    codes = [predict(together, Shard(rank, world)) for rank in order]
    assert max(codes) == 1
    assert_same(together.output, config.output)


def test_a_lost_process_leaves_its_share_to_whoever_resumes(config: PredictConfig):
    predict(config)
    other = replace(config, output=config.output.with_name("other"), resume=True)
    for rank in (0, 2):
        predict(other, Shard(rank, 3))
    assert not (other.output / "predictions.csv").exists()
    half = other.output / ".predictions.2.jsonl"
    # A line of zeros, of a disk that lost power, and half a line.
    half.write_bytes(half.read_bytes() + bytes(20) + b'\n{}\n{"name": "ha')
    predict(other)
    assert_same(other.output, config.output)


def test_shares_are_all_the_work_and_of_equal_size():
    lengths = np.random.default_rng(0).integers(1, 400, 1000).tolist()
    shares = [Shard(rank, 7).share(lengths) for rank in range(7)]
    assert sorted(place for share in shares for place in share) == list(range(1000))
    work = [sum(lengths[place] for place in share) for share in shares]
    assert max(work) < 1.1 * min(work)


def two_hundred(path: Path) -> Path:
    stream = np.random.default_rng(1)
    sequences = ["".join(stream.choice(list(LETTERS), n)) for n in stream.integers(1, 30, 200)]
    records = [f">s{i} x\n{text}\n" for i, text in enumerate(sequences)]
    # The process that has this one has little else to do at the end, and must not end the other.
    path.write_text("".join(records) + ">bad\nM-K\n")
    return path


def test_standard_input_is_not_shared_out(config: PredictConfig):
    with pytest.raises(UserError, match="several processes cannot all read"):
        predict(replace(config, fasta=(Path("-"),)), Shard(0, 2))


QUICK = "import os; os.fsync = lambda _: None"
"""Python that a command runs first: the kill of a process, not of the machine, loses no write."""


@pytest.fixture(scope="module")
def many(run: Path, tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> list[object]:
    """The words that fold 200 sequences into "whole", which is there already, or another folder."""
    folder = tmp_path_factory.mktemp("many")
    words = ["predict", two_hundred(folder / "many.fasta"), "--run", run, "--device", "cpu"]
    words += ["--max-tokens-per-batch", 64, "--output", folder / "whole"]
    nursery.run(*words, before=QUICK, code=1)
    assert len(list((folder / "whole").iterdir())) == 401
    return words


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_leaves_what_one_left_alone_does(
    many: list[object], nursery: Nursery
):
    whole = Path(str(many[-1]))
    killed = whole.with_name("killed")
    words = [*many[:-1], killed, "--resume"]
    for some in (20, 150, 250):
        started = nursery.start(*words, before=QUICK)
        while not killed.exists() or len(list(killed.iterdir())) < some:
            assert started.running(), started.printed()
            time.sleep(0.002)
        started.kill(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        assert not (killed / "predictions.csv").exists()
        for path in killed.glob("*.cif"):
            assert gemmi.cif.read(str(path))[0].find_values("_atom_site.id")
        for path in killed.glob("*.pdb"):
            assert path.read_text().rstrip().endswith("END")
    assert "are there already" in nursery.run(*words, before=QUICK, code=1)
    assert_same(killed, whole)


@pytest.mark.slow
def test_two_processes_of_torchrun_do_what_one_does(many: list[object], nursery: Nursery):
    whole = Path(str(many[-1]))
    shared = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port())}
    both = [
        nursery.start(
            *many[:-1],
            whole.with_name("two"),
            before=QUICK,
            environment=shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [started.wait() for started in both] == [1, 1]
    printed = "".join(started.printed() for started in both)
    assert "200 structures in" in printed
    assert ", 1 failed (predictions.csv)" in printed
    assert_same(whole.with_name("two"), whole)


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

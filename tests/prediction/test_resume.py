"""`predict` killed, resumed and shared among processes: nothing is lost, and nothing old stays."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from esmfold_peft.commands.predict import run as predict
from esmfold_peft.config import PredictConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Failed
from esmfold_peft.prediction.predictor import Predictor
from esmfold_peft.prediction.row_journal import PredictionRow, RowJournal, finish
from esmfold_peft.prediction.workers import Worker
from tests.nursery import Nursery
from tests.prediction.conftest import LETTERS, ODD, QUICK, assert_same, rows_of
from tests.training.launching import free_port


def test_a_folder_with_predictions_is_resumed_or_left_alone(config: PredictConfig):
    predict(config)
    before = {path: path.stat().st_mtime_ns for path in config.output.glob("*.cif")}
    with pytest.raises(UserError, match="has predictions already; resume with --resume"):
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
    assert "No space left on device; 1 of 9 are done; resume with --resume" in last


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
    codes = [predict(together, Worker(rank, world)) for rank in order]
    assert max(codes) == 1
    assert_same(together.output, config.output)


def test_a_lost_process_leaves_its_share_to_whoever_resumes(config: PredictConfig):
    predict(config)
    other = replace(config, output=config.output.with_name("other"), resume=True)
    for rank in (0, 2):
        predict(other, Worker(rank, 3))
    assert not (other.output / "predictions.csv").exists()
    half = other.output / ".predictions.2.jsonl"
    # A line of zeros, of a disk that lost power, and half a line.
    half.write_bytes(half.read_bytes() + bytes(20) + b'\n{}\n{"name": "ha')
    predict(other)
    assert_same(other.output, config.output)


def test_the_end_removes_half_files_that_a_kill_left_and_no_others(tmp_path: Path):
    killed, running, of_the_user = (
        tmp_path / f".{n}.tmp" for n in ("a.cif.12", "b.cif.34", "notes")
    )
    for path, age in ((killed, 60), (running, 0), (of_the_user, 60)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    finish(tmp_path, [], started=time.time() - 30)
    assert {*tmp_path.iterdir()} == {running, of_the_user, tmp_path / "predictions.csv"}


def test_shares_are_all_the_work_and_of_equal_size():
    lengths = np.random.default_rng(0).integers(1, 400, 1000).tolist()
    shares = [Worker(rank, 7).share(lengths) for rank in range(7)]
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
        predict(replace(config, fasta=(Path("-"),)), Worker(0, 2))


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
    assert "are done already" in nursery.run(*words, before=QUICK, code=1)
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

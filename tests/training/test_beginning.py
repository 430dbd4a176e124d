"""Resuming a run, and starting one from another's model."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.nursery import ROOT, Nursery
from tests.training.conftest import words


@pytest.fixture(scope="module")
def run(nursery: Nursery, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("four") / "run"
    nursery.run(*words(stores, folder, "--engine.steps", 4))
    return folder


def refused(nursery: Nursery, *arguments: object) -> str:
    """The one line of a command that is refused."""
    printed = nursery.run(*arguments, code=2)
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


def test_a_run_is_resumed_only_with_its_settings(
    nursery: Nursery, stores: Path, run: Path, tmp_path: Path
):
    again = [*words(stores, run, "--engine.steps", 6), "--resume", "auto"]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("[!.]*")}
    line = refused(nursery, *again, "--optimizer.lr", 0.5, "--seed", 3, "--adapter.rank", 2)
    for part in ("optimizer.lr is 0.5, was 0.002", "seed is 3, was 0", "adapter.rank is 2, was 1"):
        assert part in line
    assert "--start_from" in line
    line = refused(nursery, *again, "--data.train", stores / "held_out")
    assert "data.train" in line
    line = refused(nursery, *again, "--data.validation", stores / "train")
    assert "data.validation" in line
    assert "exists already" in refused(nursery, *words(stores, run))
    assert {p: p.stat().st_mtime_ns for p in run.rglob("[!.]*")} == before


def test_a_damaged_checkpoint_is_skipped(nursery: Nursery, stores: Path, run: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step_00000004" / "adam.safetensors").write_bytes(b"x")
    printed = nursery.run(*words(stores, copy, "--engine.steps", 5), "--resume", "auto")
    assert "adam.safetensors: damaged" in printed
    assert json.loads((copy / "provenance.json").read_text())["sessions"][-1]["step"] == 2


def test_a_damaged_status_and_provenance_do_not_stop_a_resume(
    nursery: Nursery, stores: Path, run: Path, tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = json.loads((copy / "provenance.json").read_text())
    for name in ("status.json", "provenance.json"):
        (copy / name).write_text((copy / name).read_text()[:20])
    printed = nursery.run(*words(stores, copy, "--engine.steps", 2), "--resume", "auto")
    assert "status.json: not JSON" in printed
    assert "provenance.json: not JSON" in printed
    assert "2 steps of 2 chains; 4 are done already, nothing is left to train" in printed
    assert "converged at step 4, more than engine.steps 2" in printed
    assert json.loads((copy / "status.json").read_text())["step"] == 4
    after = json.loads((copy / "provenance.json").read_text())
    assert [session.pop("step") for session in after.pop("sessions")] == [4]
    assert after == {key: before[key] for key in after}


def test_a_store_that_moved_is_the_same(nursery: Nursery, stores: Path, run: Path, tmp_path: Path):
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(run, copy)
    shutil.copytree(stores, moved)
    nursery.run(*words(moved, copy, "--engine.steps", 5), "--resume", "auto")
    assert json.loads((copy / "status.json").read_text())["step"] == 5


def test_two_processes_do_not_write_one_run(nursery: Nursery, stores: Path, tmp_path: Path):
    from tests.training.test_survival import rows, wait_for

    folder = tmp_path / "run"
    arguments = words(stores, folder, "--engine.steps", 10_000)
    process = nursery.start(*arguments)
    wait_for(lambda: len(rows(folder)) > 1, process)
    line = nursery.run(*arguments, "--resume", "auto", code=69).strip().splitlines()[-1]
    assert "another process writes to this folder" in line
    process.kill()
    process.wait()


def test_a_run_starts_from_the_average_of_another(
    nursery: Nursery, stores: Path, run: Path, tmp_path: Path
):
    other = tmp_path / "other"
    finetune = ["--config", ROOT / "configs" / "stages" / "finetune.yaml", "--data.crop", 16]
    flags = [*finetune, "--start_from", run, "--engine.steps", 0, "--seed", 0]
    nursery.run(*words(stores, other, *flags))
    ours, theirs = (load_file(r / "model.safetensors") for r in (other, run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    average = load_file(run / "checkpoints" / "step_00000004" / "ema.safetensors")
    assert all(torch.equal(ours[name], average[name]) for name in average)


def test_an_adapter_starts_untrained_on_the_trunk_of_a_frozen_run(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    frozen, adapted = tmp_path / "frozen", tmp_path / "adapted"
    nursery.run(*words(stores, frozen, "--engine.steps", 2, "--adapter.kind", "none"))
    nursery.run(*words(stores, adapted, "--engine.steps", 0, "--start_from", frozen))
    ours, theirs = (load_file(r / "model.safetensors") for r in (adapted, frozen))
    assert ours.keys() - theirs.keys() == {
        f"language_model.adapter.{factor}" for factor in ("a", "b", "c_h", "c_l", "c_m")
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_start_that_does_not_fit_is_refused(
    nursery: Nursery, stores: Path, run: Path, tmp_path: Path
):
    def line(*flags: object) -> str:
        found = refused(nursery, *words(stores, tmp_path / "new", "--start_from", run, *flags))
        assert not (tmp_path / "new").exists()
        return found

    assert "(model.evoformer.c_z is 8, was 16)" in line("--model.evoformer.c_z", 8)
    assert "language model's weights are not those" in line("--seed", 1)
    assert "(adapter.kind is lora, was lorta)" in line("--adapter.kind", "lora")
    assert "not the folder of a training run" in line("--start_from", stores)


def scores(path: Path, column: str) -> dict[str, float]:
    with path.open() as file:
        return {row["id"]: float(row[column]) for row in csv.DictReader(file)}


def test_evaluation_gives_the_scores_of_the_validation(
    nursery: Nursery, stores: Path, run: Path, tmp_path: Path
):
    validated = run / "validation" / "step_00000004.csv"
    found = {}
    for name, flags in {
        "model": [],
        "best": ["--checkpoint", "best"],
        "raw": ["--checkpoint", 4, "--raw-weights"],
        "early": ["--checkpoint", 2],
    }.items():
        command = ["evaluate", "--run", run, "--store", stores / "held_out"]
        nursery.run(*command, "--output", tmp_path / name, *flags)
        found[name] = scores(tmp_path / name / "scores.csv", "lddt_ca")
    average, raw = (scores(validated, column) for column in ("lddt_ca", "lddt_ca_raw"))
    assert found["model"] == pytest.approx(average, abs=1e-6)
    assert found["best"] == pytest.approx(found["model"], abs=1e-6)
    assert found["raw"] == pytest.approx(raw, abs=1e-6)
    assert found["early"] != found["model"] != found["raw"]
    line = refused(nursery, *command, "--output", tmp_path / "none", "--checkpoint", "3")
    assert "checkpoint: 3 is not last, best or one of 2, 4" in line

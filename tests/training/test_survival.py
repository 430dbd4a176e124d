"""A training that is killed, stopped, or resumed elsewhere ends as if nothing had happened.

What a step sees must be exactly the same. Tensors and scores may differ by rounding (`ROUNDING`):
the order in which a processor adds may depend on where numbers lie in memory, and another process
has them elsewhere. One lost moment of Adam makes a difference of 4e-3 here, one update that the
average misses one of 1e-4.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esmfold_peft.errors import BusyError
from esmfold_peft.runs.checkpoint import (
    Best,
    Checkpoint,
    checkpoint_steps,
    mark_validated,
    prune_checkpoints,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from tests.alike import assert_alike
from tests.nursery import ROOT, Nursery, Started
from tests.training.conftest import words
from tests.training.launching import run_two, start_two

RECORD = """
import json, os, time
from esmfold_peft.training.step import FoldingModule
training_step = FoldingModule.training_step
def recorded(self, batch, index):
    time.sleep(0.03)
    key, (chains, _) = (self.step, self.global_rank), batch
    seen = [*zip(chains.ids, chains.residue_index[:, 0].tolist(), chains.clamped.tolist())]
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps([key, seen]) + "\\n")
    return training_step(self, batch, index)
FoldingModule.training_step = recorded
"""
SLOW_VALIDATION = """
import time
from esmfold_peft.training.step import FoldingModule
validation_step = FoldingModule.validation_step
def slow(self, batch, index):
    time.sleep(0.5)
    return validation_step(self, batch, index)
FoldingModule.validation_step = slow
"""
STEPS = 20
ROUNDING = 1e-6


def seen(path: Path) -> dict[tuple, list]:
    """What each step showed; one that was done again must have shown the same."""
    found: dict[tuple, list] = {}
    for line in path.read_text().splitlines():
        if not line.endswith("]]]"):  # killed while it was written
            continue
        key, crops = json.loads(line)
        assert found.setdefault(tuple(key), crops) == crops
    return found


def written(path: Path) -> int:
    """Steps that were started so far."""
    return path.read_text().count("\n") if path.is_file() else 0


def rows(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run) if row[name]]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, those of Adam and of the moving average too."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    files = ("weights", "ema", "adam")
    return {f"{f}/{n}": t for f in files for n, t in load_file(folder / f"{f}.safetensors").items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def validations(run: Path) -> list[list[dict[str, str]]]:
    """Every validation's scores of every chain."""
    found = []
    for path in sorted((run / "validation").glob("*.csv")):
        with path.open() as file:
            found.append(list(csv.DictReader(file)))
    return found


def wait_for(condition: Callable[[], object], process: Started, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.running(), process.printed()
        assert time.monotonic() < deadline, process.printed()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(nursery: Nursery, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    environment = {"SEEN": str(run.parent / "seen")}
    arguments = words(stores, run, "--engine.steps", STEPS)
    nursery.run(*arguments, before=RECORD, environment=environment)
    return run


@pytest.mark.slow
def test_three_kills_at_random_moments_change_nothing(
    nursery: Nursery, stores: Path, whole: Path, tmp_path: Path
):
    chance = random.Random(0)
    run, environment = tmp_path / "run", {"SEEN": str(tmp_path / "seen")}
    arguments = [*words(stores, run, "--engine.steps", STEPS), "--resume", "auto"]
    arguments += ["--data.workers", 1]  # other workers show the same chains
    for steps in chance.choices(range(1, 8), k=3):
        near_the_end = len(rows(run)) > STEPS - 6
        least = written(tmp_path / "seen") + (1 if near_the_end else steps)
        process = nursery.start(*arguments, before=RECORD, environment=environment)
        wait_for(lambda least=least: written(tmp_path / "seen") >= least, process)
        time.sleep(0 if near_the_end else 0.1 * chance.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
        for saved in checkpoint_steps(run):
            read_checkpoint(run, saved)
    nursery.run(*arguments, before=RECORD, environment=environment)
    assert largest_difference(tensors(whole, STEPS), tensors(run, STEPS)) < ROUNDING
    models = [load_file(folder / "model.safetensors") for folder in (run, whole)]
    assert largest_difference(*models) < ROUNDING
    assert seen(tmp_path / "seen") == seen(whole.parent / "seen")
    assert len(seen(tmp_path / "seen")) == STEPS
    assert_alike(*(asdict(read_state(r, STEPS)) for r in (run, whole)))
    for name in ("step", "train/loss", "gradient/total", "validation/lddt_ca"):
        assert_alike(column(run, name), column(whole, name))
    assert len(validations(run)) == STEPS / 4
    assert_alike(validations(run), validations(whole))
    sessions = json.loads((run / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 4
    assert sessions[-1]["step"] > 0


@pytest.mark.slow
def test_a_kill_between_any_two_calls_leaves_a_readable_checkpoint(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    run = tmp_path / "run"
    nursery.run(*words(stores, run, "--engine.steps", 4))
    four = read_checkpoint(run, 4)
    moments = 0
    for moment in range(200):
        for step in checkpoint_steps(run):
            if step > 4:
                shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
        pid = os.fork()
        if not pid:
            _write_and_die(run, four, moment)
        _, status = os.waitpid(pid, 0)
        newest = checkpoint_steps(run)[-1]
        assert newest in (4, 6)
        found = read_checkpoint(run, newest)
        assert found.weights.keys() == four.weights.keys()
        assert found.state.step == newest
        if os.WIFEXITED(status):
            assert newest == 6
            assert checkpoint_steps(run) == [4, 6]
            break
        moments += 1
    assert moments > 15


def _write_and_die(run: Path, checkpoint: Checkpoint, moment: int) -> None:
    """Writes the checkpoint of step 6 and dies before its call to the system of that number."""
    left = moment

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    state = replace(checkpoint.state, step=6)
    write_checkpoint(run, replace(checkpoint, state=state))
    mark_validated(run, replace(state, validated=True))
    prune_checkpoints(run, 2, Best(6, 0.5))
    os._exit(0)


def test_sigterm_saves_and_the_run_can_be_resumed(
    nursery: Nursery, stores: Path, whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    arguments = [*words(stores, run, "--engine.steps", STEPS), "--resume", "auto"]
    arguments += ["--data.workers", 2]
    process = nursery.start(*arguments)
    wait_for(lambda: len(rows(run)) >= 5, process)
    process.kill(signal.SIGTERM)  # as schedulers do, to the workers too
    assert process.wait() == 75
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "interrupted"
    assert "SIGTERM" in status["message"]
    assert status["step"] == checkpoint_steps(run)[-1] == len(rows(run))
    assert "--resume auto" in process.printed()
    process = nursery.start(*arguments)
    wait_for(lambda: "running" in (run / "status.json").read_text(), process)
    assert process.wait() == 0
    assert largest_difference(tensors(whole, STEPS), tensors(run, STEPS)) < ROUNDING
    assert json.loads((run / "status.json").read_text())["status"] == "converged"


def test_a_validation_that_was_stopped_is_done_first(
    nursery: Nursery, stores: Path, whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    arguments = [*words(stores, run, "--engine.steps", STEPS), "--resume", "auto"]
    process = nursery.start(*arguments, before=SLOW_VALIDATION)
    wait_for(lambda: checkpoint_steps(run)[-1:] == [4], process)
    process.send(signal.SIGUSR1)
    assert process.wait() == 75
    assert not read_state(run, 4).validated
    assert not (run / "validation").exists()
    nursery.run(*arguments)
    assert_alike(column(run, "validation/lddt_ca"), column(whole, "validation/lddt_ca"))
    assert largest_difference(tensors(whole, STEPS), tensors(run, STEPS)) < ROUNDING


def test_ctrl_c_saves_and_ends_with_one_line(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = nursery.start(*words(stores, run, "--engine.steps", 10_000))
    wait_for(lambda: len(rows(run)) >= 3, process)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.printed()
    assert "--resume auto" in process.printed().splitlines()[-1]
    assert checkpoint_steps(run)[-1] == len(rows(run))


@pytest.mark.slow
def test_two_processes_survive_the_loss_of_one(nursery: Nursery, stores: Path, tmp_path: Path):
    chance = random.Random(1)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    run_two(nursery, *words(stores, undisturbed, "--engine.steps", STEPS))
    arguments = [*words(stores, run, "--engine.steps", STEPS), "--resume", "auto"]
    # Here is no launcher that stops what is left, which the second process would wait for.
    at_once = "import esmfold_peft.runs.world as world; world._PATIENCE = 0.0"
    for lost in (0, 1, 1):
        least = len(rows(run)) + 2
        processes = start_two(nursery, *arguments, before=at_once)
        wait_for(lambda least=least: len(rows(run)) >= least, processes[0])
        time.sleep(0.1 * chance.random())
        processes[lost].kill()
        assert processes[lost].wait() == -signal.SIGKILL
        # The other one reports it in one line.
        assert processes[1 - lost].wait() == 2
        last = processes[1 - lost].printed().strip().splitlines()[-1]
        assert "another process of the training was lost" in last
    run_two(nursery, *arguments)
    assert largest_difference(tensors(undisturbed, STEPS), tensors(run, STEPS)) < ROUNDING


@pytest.mark.proof
def test_another_number_of_processes_resumes(
    nursery: Nursery, stores: Path, whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    still = ("--model.evoformer.dropout_msa", 0)  # processes draw for themselves
    arguments = [*words(stores, run, *still), "--resume", "auto"]
    nursery.run(*arguments, "--engine.steps", 4)
    zero = ["--engine.deepspeed", str(ROOT / "configs" / "deepspeed" / "zero2.json")]
    run_two(nursery, *arguments, "--engine.steps", 8, *zero)
    nursery.run(*arguments, "--engine.steps", 12, "--engine.micro_batch", 2)
    alone = tmp_path / "alone"
    nursery.run(*words(stores, alone, *still), "--engine.steps", 12)
    assert largest_difference(tensors(alone, 12), tensors(run, 12)) < 1e-5
    assert column(run, "train/loss") == pytest.approx(column(alone, "train/loss"), rel=1e-5)
    sessions = json.loads((run / "provenance.json").read_text())["sessions"]
    assert [(s["step"], s["processes"]) for s in sessions] == [(0, 1), (4, 2), (8, 1)]


@pytest.mark.slow
def test_a_training_with_workers_ends_by_itself(stores: Path, tmp_path: Path):
    # In a process that Python ends, unlike the nursery's: it waits for the loaders' workers.
    flags = ["--engine.steps", 4, "--data.workers", 2]
    command = [sys.executable, "-m", "esmfold_peft", *words(stores, tmp_path / "run", *flags)]
    done = subprocess.run([*map(str, command)], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_lost_its_checkpoints_is_not_started_again(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    run = tmp_path / "run"
    nursery.run(*words(stores, run, "--engine.steps", 4))
    model = (run / "model.safetensors").read_bytes()
    for damage in (lambda path: path.write_bytes(b"x"), lambda path: shutil.rmtree(path.parent)):
        for path in run.glob("checkpoints/*/adam.safetensors"):
            damage(path)
        command = words(stores, run, "--engine.steps", 6, "--resume", "auto")
        assert "none of its checkpoints can be read" in nursery.run(*command, code=2)
        assert len(rows(run)) == 4
        assert (run / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("left", [".lock", ".config.yaml.123.tmp"])
def test_a_kill_before_the_run_is_named_is_no_run(
    left: str, nursery: Nursery, stores: Path, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / left).write_text("half")
    nursery.run(*words(stores, run, "--engine.steps", 1, "--resume", "auto"))
    assert [path.name for path in run.glob(".*")] == [".lock"]


def test_of_two_first_commands_one_begins_the_run(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    processes = [
        nursery.start(*words(stores, run, "--engine.steps", 6, "--seed", seed)) for seed in range(2)
    ]
    codes = [process.wait() for process in processes]
    # The other finds the folder locked, or a run in it.
    assert sorted(codes) in ([0, 2], [0, BusyError.exit_code])
    assert f"\nseed: {codes.index(0)}\n" in (run / "config.yaml").read_text()
    sessions = json.loads((run / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 1

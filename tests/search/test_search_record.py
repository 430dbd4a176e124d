"""What a search's folder tells, also when nobody looks after it."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.config import ExecutorConfig, SearchConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.runs.status import Status, write_status
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import NO_STEPS, Trial
from esmfold_peft.search.ledger import Ledger
from esmfold_peft.search.search_record import LadderRecord, read_search
from tests.search.test_driver import search_config

ARM = Arm("lorta", 8, 0)
HOUR = 3600.0


@pytest.fixture
def begun(tmp_path: Path):
    """Makes a search whose trials were begun; nothing of it runs."""

    def make(*multiples: float, **executor) -> SearchConfig:
        config = replace(search_config(tmp_path), executor=ExecutorConfig(**executor))
        (tmp_path / "search.yaml").write_text(config_text(config))
        ledger = Ledger(tmp_path)
        for multiple in multiples:
            ledger.add("started", ARM, Trial(multiple, 10), handle={})
            folder_of(tmp_path, multiple).mkdir(parents=True)
        return config

    return make


def folder_of(output: Path, multiple: float) -> Path:
    return output / "trials" / ARM.name / f"alpha_{8 * multiple:g}"


def write(
    folder: Path, attempts: list[dict], status: str, step: int, logged: int, at: float
) -> None:
    """A trial's files, last written at a time."""
    (folder / "attempts.jsonl").write_text("".join(json.dumps(e) + "\n" for e in attempts))
    run = folder / "run"
    run.mkdir(exist_ok=True)
    write_status(run, Status(status, step, 10, rule=None, message=None))
    rows = "".join(f"{k},1.0,0.5\n" for k in range(1, logged + 1))
    (run / "metrics.csv").write_text(f"step,train/loss,validation/lddt_ca\n{rows}")
    for file in (run / "metrics.csv", run / "status.json"):
        os.utime(file, (at, at))


def ladder(output: Path) -> LadderRecord:
    (found,) = read_search(output).ladders
    return found


def test_the_time_between_a_kill_and_the_next_attempt_costs_nothing(tmp_path: Path, begun):
    begun(256.0)
    now = time.time()
    lines = [
        {"began": now - 74 * HOUR},
        {"began": now - 2 * HOUR, "before": now - 73 * HOUR},
        {"ended": now - HOUR, "code": 75},
    ]
    write(folder_of(tmp_path, 256.0), lines, "interrupted", 5, 5, now - HOUR)
    (trial,) = ladder(tmp_path).trials
    assert trial.state == "interrupted"
    assert trial.gpu_seconds == pytest.approx(2 * HOUR)


def test_trials_that_have_ended_without_the_search_have_ended(tmp_path: Path, begun):
    begun(256.0, 128.0)
    write(folder_of(tmp_path, 256.0), [], "diverged", 3, 3, 1.0)
    write(folder_of(tmp_path, 128.0), [], "converged", 10, 10, 1.0)
    found = ladder(tmp_path)
    assert [trial.state for trial in found.trials] == ["diverged", "converged"]
    assert found.winner == found.trials[1]
    assert found.steps_left == NO_STEPS


@pytest.mark.parametrize("kind", ["ray", "slurm"])
def test_of_other_machines_an_attempt_says_when_it_has_ended(kind: str, tmp_path: Path, begun):
    begun(256.0, 128.0, kind=kind)
    now = time.time()
    ended = [{"began": now - 9 * HOUR}, {"ended": now - 8 * HOUR, "code": 75}]
    write(folder_of(tmp_path, 256.0), ended, "interrupted", 5, 5, now - 8 * HOUR)
    # Its node was lost: what it wrote last is what is known.
    write(folder_of(tmp_path, 128.0), [{"began": now - 9 * HOUR}], "running", 5, 7, now - 7 * HOUR)
    one, other = ladder(tmp_path).trials
    assert (one.state, one.step, one.gpu_seconds) == ("interrupted", 5, pytest.approx(HOUR))
    assert (other.state, other.step, other.gpu_seconds) == ("running", 7, pytest.approx(2 * HOUR))


def test_a_share_of_a_gpu_costs_a_share(tmp_path: Path, begun):
    begun(256.0, kind="ray", gpus=0.5)
    ended = [{"began": 0.0}, {"ended": HOUR, "code": 75}]
    write(folder_of(tmp_path, 256.0), ended, "interrupted", 5, 5, HOUR)
    assert ladder(tmp_path).trials[0].gpu_seconds == HOUR / 2


def test_trials_of_a_ladder_that_the_grid_has_lost_are_known(tmp_path: Path, begun):
    config = begun(256.0)
    ended = [{"began": 0.0}, {"ended": HOUR, "code": 0}]
    write(folder_of(tmp_path, 256.0), ended, "converged", 10, 10, HOUR)
    other = replace(config, grid={"none": []})
    (tmp_path / "search.yaml").write_text(config_text(other))
    record = read_search(tmp_path)
    assert [known.arm.kind for known in record.ladders] == ["none"]
    assert [(t.arm, t.state, t.gpu_seconds) for t in record.dropped] == [(ARM, "converged", HOUR)]
    assert record.trials == list(record.dropped)

"""Which GPUs a trial on this machine gets, and when there are too few."""

import fcntl
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.commands import search as command
from esmfold_peft.errors import UserError
from esmfold_peft.search import attempt
from esmfold_peft.search.executors import local
from esmfold_peft.search.executors.local import LocalExecutor
from tests.search.test_attempt import until
from tests.search.test_driver import search_config

STAND_IN = """#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES" > "$3/gpus"
exec sleep 60
"""


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes folders of trials, whose process only says which GPUs it sees."""
    program = tmp_path / "python"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setattr(attempt.sys, "executable", str(program))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path / f"trial_{len(made)}")
        made[-1].mkdir()
        return made[-1]

    yield make
    for folder in made:
        if local.is_alive(folder):
            end(folder)


def end(folder: Path) -> None:
    local._terminate(local._gpus_and_process(folder)[1])


def seen(folder: Path) -> str:
    until(lambda: (folder / "gpus").is_file() and (folder / "gpus").read_text() != "")
    return (folder / "gpus").read_text().strip()


def test_each_trial_has_gpus_of_its_own_also_after_a_restart_with_others(trials):
    first, second, third, fourth = (trials() for _ in range(4))
    LocalExecutor(("4", "6", "7", "5"), 1).start([first, second])
    assert (seen(first), seen(second)) == ("4", "6")
    later = LocalExecutor(("6", "4", "7", "5"), 2)
    for folder in (first, second):
        later.adopt(folder, {})
    later.start([third])
    assert seen(third) == "7,5"
    with pytest.raises(UserError, match="trial_3: it needs 2 GPUs, and trials that still run lea"):
        later.start([fourth])
    end(first)
    end(second)
    until(lambda: not later.alive(first) and not later.alive(second))
    later.start([fourth])
    assert seen(fourth) == "6,4"


def test_on_a_cpu_a_trial_sees_what_the_search_sees(trials):
    folder = trials()
    LocalExecutor().start([folder])
    assert seen(folder) == "all"


def test_looking_at_a_trial_neither_stops_nor_doubles_it(trials):
    folder = trials()
    path = folder / ".attempt"
    path.touch()
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not local.is_alive(folder)
        threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        LocalExecutor().start([folder])
    assert local.is_alive(folder)
    with pytest.raises(UserError, match="a process of this trial is running"):
        LocalExecutor().start([folder])


def test_a_lock_that_cannot_be_read_is_one_line(tmp_path: Path):
    (tmp_path / ".attempt").mkdir()
    with pytest.raises(UserError, match=r"\.attempt: Is a directory"):
        local.is_alive(tmp_path)


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "expected"),
    [("cpu", 2, 8, 0), ("gpu", None, 8, 1), ("gpu", 2, 8, 2), ("auto", 2, 8, 2), ("auto", 2, 0, 0)],
)
def test_a_trial_takes_the_devices_of_its_engine(
    accelerator, devices, gpus, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "_gpus", lambda: list(map(str, range(gpus))))
    config = search_config(tmp_path)
    engine = replace(config.engine, accelerator=accelerator, devices=devices)
    assert command.gpus_of(replace(config, engine=engine)) == expected


def test_more_trials_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "_gpus", lambda: ["0", "1", "2"])
    config = search_config(tmp_path, concurrent=2)
    config = replace(config, engine=replace(config.engine, accelerator="gpu", devices=2))
    said = "executor.concurrent: 2 trials of 2 GPUs need 4, this machine has 3"
    with pytest.raises(UserError, match=said):
        command.build_executor(config)
    several = replace(config, engine=replace(config.engine, nodes=2))
    with pytest.raises(UserError, match=r"engine.nodes: 2: a trial runs on one machine"):
        command.build_executor(several)


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [(None, 2, ["0", "1"]), ("4,6,7", 3, ["4", "6", "7"]), ("4,9", 1, ["4"]), (None, 0, [])],
)
def test_gpus_are_named_as_this_process_sees_them(
    visible, count, expected, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert command._gpus() == expected

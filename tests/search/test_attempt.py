"""One attempt at a trial: what it writes, and that its training ends with whoever began it."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.config.parsing import config_text
from esmfold_peft.search.attempt import Attempt, attempts, last_words
from tests.tiny import TINY


def begin(folder: Path, *words: str, settings: str = "") -> subprocess.Popen[bytes]:
    """Begins a trial whose training ends after the seconds of its imports: it has no chains.

    With settings that are wrong it ends at once.
    """
    settings = settings or config_text(replace(TINY, run=folder / "run"))
    (folder / "trial.yaml").write_text(settings)
    command = [sys.executable, "-m", "esmfold_peft.search.attempt", str(folder), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ)


def trainings(folder: Path) -> list[Path]:
    """Processes that have this trial's settings on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(folder / "trial.yaml") in words:
            found.append(path)
    return found


def until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_attempt_is_written_down_with_what_the_training_said(tmp_path: Path):
    assert begin(tmp_path, settings="wrong: true\n").wait(60) == 2
    (attempt,) = attempts(tmp_path)
    assert attempt.code == 2
    assert attempt.ended is not None
    assert attempt.ended > attempt.began
    assert "esmfold-peft train: error: " in last_words(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_training_ends_when_its_attended_attempt_is_killed(tmp_path: Path):
    attempt = begin(tmp_path, "attended")
    until(lambda: bool(trainings(tmp_path)))
    attempt.kill()
    attempt.wait()
    # Left alone, its imports would take seconds, and its error be in the log.
    until(lambda: not trainings(tmp_path), 1.5)
    assert attempts(tmp_path)[-1].code is None
    assert last_words(tmp_path) == ""


def test_an_attended_attempt_stops_its_training_when_its_input_ends(tmp_path: Path):
    attempt = begin(tmp_path, "attended")
    until(lambda: bool(attempts(tmp_path)))
    assert attempt.stdin is not None
    attempt.stdin.close()
    attempt.wait(60)
    assert attempts(tmp_path)[-1].code in (-15, 75)


def test_lines_that_a_kill_has_cut_are_passed_over(tmp_path: Path):
    lines = '{"began": 1.0}\n{"ended": 2.0, "code": 75}\n\n{"began": 3.0}\n{"en'
    (tmp_path / "attempts.jsonl").write_text(lines)
    assert attempts(tmp_path) == [Attempt(1.0, 2.0, 75), Attempt(3.0)]


def test_an_attempt_that_was_killed_ended_with_what_it_wrote_last(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    os.utime(tmp_path / "run" / "metrics.csv", (50.0, 50.0))
    (tmp_path / "attempts.jsonl").write_text('{"began": 7.0}\n')
    assert begin(tmp_path, settings="wrong: true\n").wait(60) == 2
    killed, later = attempts(tmp_path)
    assert killed == Attempt(7.0, 50.0)
    assert later.code == 2

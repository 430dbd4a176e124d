"""What `search status` says of a search made by hand."""

import json
from dataclasses import replace

import pytest

from esmfold_peft.search.ladder import StepsLeft
from esmfold_peft.search.search_record import LadderRecord, SearchRecord
from esmfold_peft.search.status_view import print_status, status_json, status_text, time_text
from tests.search.status_records import (
    FULL,
    HALF,
    LORA,
    MESSAGE,
    climbing,
    diverged,
    exhausted,
    record,
    trial,
    waiting,
    won,
)


def whole(**settings) -> SearchRecord:
    return record(won(), exhausted(), climbing(), waiting(), **settings)


def lines(search: SearchRecord, now_running: bool | None = None) -> list[str]:
    """What is said, without the lines of the tree."""
    return [line.lstrip("│├└─ ") for line in status_text(search, now_running).splitlines()]


def test_all_of_it():
    assert status_text(record(won(), climbing(), concurrent=2)).splitlines() == [
        "out",
        "├── lorta r=8, seed 0 — winner α=256 (lDDT-Cα 0.667)",
        "│   ├── α=2048 diverged at step 50 of 1,000, 0.0417 GPU-hours; nonfinite: " + MESSAGE,
        "│   ├── α=1024 diverged at step 400 of 1,000, 0.222 GPU-hours; nonfinite",
        "│   ├── α=512 converged at step 1,000 of 1,000, lDDT-Cα 0.600, 3 attempts,"
        " 0.569 GPU-hours",
        "│   └── α=256 converged at step 1,000 of 1,000, lDDT-Cα 0.667, 0.556 GPU-hours, kept",
        "├── lora r=1, seed 0 — climbing, rung 2 of 2",
        "│   ├── α=256 diverged at step 0 of 1,000, 0.00833 GPU-hours; nonfinite",
        "│   ├── α=128 diverged at step 200 of 1,000, 0.167 GPU-hours; nonfinite",
        "│   ├── α=64 running at step 500 of 1,000, lDDT-Cα 0.410, 0.417 GPU-hours",
        "│   └── α=32 interrupted at step 300 of 1,000, 0.25 GPU-hours",
        "└── total",
        "    ├── trials: 1 running, 2 converged, 4 diverged, 1 interrupted",
        "    ├── 2.23 GPU-hours spent; 2.37 GPU-hours saved by early divergence",
        "    └── time left: 35 minutes if no trial diverges from now on, at most 47.5 minutes;"
        " 2 at a time",
    ]


def test_every_state_of_a_ladder_has_its_words():
    said = lines(whole())
    assert "lorta r=8, seed 0 — winner α=256 (lDDT-Cα 0.667)" in said
    assert "lorta r=1, seed 3 — no survivor down to α/r 32" in said
    assert "lora r=1, seed 0 — climbing, rung 2 of 2" in said
    assert "full, seed 0 — not begun" in said


@pytest.mark.parametrize(
    ("state", "settings", "said"),
    [
        ("running", {}, "full, seed 0 — training"),
        ("diverged", {"exhausted": True}, "full, seed 0 — diverged"),
        ("plateau", {"wins": True}, "full, seed 0 — trained (lDDT-Cα 0.300, on a plateau)"),
    ],
)
def test_what_has_no_alpha_climbs_no_ladder(state, settings: dict, said: str):
    only = trial(FULL, 1.0, state, 10, 20.0, score=0.3)
    winner = only if settings.pop("wins", False) else None
    search = record(LadderRecord(FULL, (only,), winner=winner, **settings))
    assert said in lines(search)
    assert not any("α=" in line for line in lines(search))


def test_a_rung_below_frozen_is_left_and_the_time_left_counts_on_beating_it():
    trials = (
        trial(LORA, 256.0, "below frozen", 1000, 2000.0, score=0.2, message="0.3 was to be beaten"),
        diverged(LORA, 128.0, 10, 20.0),
        trial(LORA, 64.0, "running", 100, 200.0),
    )
    search = record(
        LadderRecord(LORA, trials, rung=1, steps_left=StepsLeft(1900, 1900, 1000, 1000))
    )
    grid = replace(search.config, grid={"lora": [1], "none": []})
    said = lines(replace(search, config=grid))
    assert "lora r=1, seed 0 — climbing, rung 2 of 2" in said
    assert (
        "α=256 below frozen at step 1,000 of 1,000, lDDT-Cα 0.200, 0.556 GPU-hours;"
        " 0.3 was to be beaten"
    ) in said
    assert "trials: 1 running, 1 diverged, 1 below frozen" in said
    assert any("if no trial diverges or is below frozen from now on" in line for line in said)
    assert any("if no trial diverges from now on" in line for line in lines(search))


def test_halving_is_told_where_there_is_some():
    beaten = trial(LORA, 256.0, "converged", HALF, 3600.0, steps=HALF, score=0.2, beaten=True)
    other = trial(LORA, 128.0, "running", 500, 18_000.0)
    search = record(LadderRecord(LORA, (beaten, other)), halve_at=HALF)
    said = lines(search)
    assert (
        "α=256 converged at step 100 of 1,000, lDDT-Cα 0.200, 1 GPU-hours, beaten: a better one"
        " went on"
    ) in said
    assert (
        "6 GPU-hours spent; 0 GPU-hours saved by early divergence, 9 GPU-hours by halving" in said
    )
    assert not any("halving" in line for line in lines(whole()))


def test_a_part_that_is_neither_beaten_nor_gone_on_with_waits():
    ended = trial(LORA, 256.0, "converged", HALF, 3600.0, steps=HALF)
    running = trial(LORA, 128.0, "running", 50, 1800.0, steps=HALF)
    search = record(
        LadderRecord(LORA, (ended, running), steps_left=StepsLeft(950, 3850, 950, 3850)),
        halve_at=HALF,
    )
    said = lines(search)
    assert "α=256 converged at step 100 of 1,000, 1 GPU-hours, waits at the halving" in said
    assert "α=128 running at step 50 of 1,000, 0.5 GPU-hours" in said
    # 950 and 3,850 steps at 36 GPU-seconds.
    assert any("9.5 hours if no trial diverges from now on, at most 38.5" in line for line in said)


def test_the_end_and_a_search_that_nobody_drives():
    over = record(won(), exhausted())
    assert lines(over, False)[-1] == "finished"
    assert "no process runs this search now" in lines(whole(), False)[-1]
    for driven in (True, None):  # None: nobody knows
        assert not any("no process" in line for line in lines(whole(), driven))


def test_before_the_first_step():
    said = lines(record(waiting()))
    assert "trials: none begun" in said
    assert "time left: not known before a trial has done a step" in said


def test_a_trial_is_one_line_in_a_pipe_however_long_and_whatever_its_message_holds(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "40")
    message = "[red]chain :100:\nfailed[/red] " + "x" * 300
    failed = trial(LORA, 256.0, "failed", 3, 10.0, message=message)
    print_status(record(LadderRecord(LORA, (failed,))), True)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "failed" in line and "α=256" in line]
    assert line.endswith("; [red]chain :100: failed[/red] " + "x" * 300)
    assert "\x1b" not in said
    assert all(line == line.rstrip() for line in said.splitlines())


def test_a_terminal_has_colours_and_folds_lines(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_status(whole(), True)
    said = capsys.readouterr().out
    assert "\x1b[31mdiverged" in said
    assert len(said.splitlines()) > len(lines(whole()))


def test_a_cpu_has_no_gpu_hours():
    said = status_text(whole(accelerator="cpu"), True)
    assert "process-hours spent" in said
    assert "GPU-hours" not in said


def test_json_has_the_same_facts():
    found = status_json(whole(concurrent=2), True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["finished"], found["now_running"], found["concurrent"]) == (False, True, 2)
    assert [ladder["state"] for ladder in found["ladders"]] == (
        ["winner", "no survivor", "climbing", "not begun"]
    )
    first, _, open_one, last = found["ladders"]
    assert first["winner"] == "out/trials/lorta_r8_seed0/alpha_256"
    assert (first["name"], first["kind"], first["rank"], first["seed"]) == (
        ("lorta_r8_seed0", "lorta", 8, 0)
    )
    assert (open_one["rung"], open_one["rungs"], first["rung"]) == (2, 2, None)
    assert (last["rank"], last["rungs"], last["trials"]) == (None, 1, [])
    assert first["trials"][0] == {
        "alpha": 2048.0,
        "multiple": 256.0,
        "folder": "out/trials/lorta_r8_seed0/alpha_2048",
        "state": "diverged",
        "step": 50,
        "steps": 1000,
        "score": None,
        "rule": "nonfinite",
        "message": MESSAGE,
        "attempts": 1,
        "gpu_seconds": 150.0,
        "beaten": False,
    }
    assert found["trials"] == {"running": 1, "converged": 2, "diverged": 8, "interrupted": 1}
    assert found["gpu_seconds"] == 5000 + 8000 + 3030
    assert found["seconds_left_at_least"] <= found["seconds_left_at_most"]


def test_a_score_that_is_missing_is_null_and_no_score():
    only = trial(FULL, 1.0, "converged", 1000, 20.0)
    ladder = LadderRecord(FULL, (only,), winner=only)
    assert status_json(record(ladder), True)["ladders"][0]["trials"][0]["score"] is None
    assert "full, seed 0 — trained (no score)" in lines(record(ladder))
    again = record(replace(ladder, winner=replace(only)))  # equal, and not the same object
    assert lines(again) == lines(record(ladder))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "nothing"),
        (119.0, "less than 2 minutes"),
        (120.0, "2 minutes"),
        (5400.0, "90 minutes"),
        (9000.0, "2.5 hours"),
        (100_000.0, "27.8 hours"),
        (2 * 86_400.0, "2 days"),
        (131.25 * 86_400, "131 days"),
        (12_345.0 * 86_400, "12,345 days"),
    ],
)
def test_times_for_people(seconds: float, said: str):
    assert time_text(seconds) == said

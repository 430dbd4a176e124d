"""The search with a frozen model in its grid, by an executor that runs nothing."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.commands import search as command
from esmfold_peft.config import LadderConfig, SearchConfig
from esmfold_peft.search.costs import time_left
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import Trial
from esmfold_peft.search.ledger import read_ledger
from esmfold_peft.search.search_record import LadderRecord, SearchRecord
from esmfold_peft.search.status_view import status_json, status_text
from tests.search.test_driver import (
    ARM,
    MULTIPLES,
    FakeExecutor,
    driver,
    read_search_of,
    search_config,
    searched,
)

NONE = Arm("none", None, 0)
FROZEN = 0.125
"""By which the executor knows the frozen trial, whose folder names no α."""

GRID = {"lorta": [8], "none": []}


def config_of(output: Path, halve_at: int | None = None, **ladder) -> SearchConfig:
    rules = LadderConfig(floor=8.0, halve_at=halve_at, **ladder)
    return replace(search_config(output), grid=GRID, ladder=rules)


def ends(frozen: tuple[str, float], *own: tuple[str, float]) -> dict:
    """How the frozen trial ends, and those of the ladder in order."""
    return {FROZEN: [frozen]} | {m: [end] for m, end in zip(MULTIPLES, own, strict=False)}


def converged(*scores: float) -> list[tuple[str, float]]:
    return [("converged", score) for score in scores]


def said_by(config: SearchConfig, executor: FakeExecutor) -> list[str]:
    said: list[str] = []
    driver(config, executor, said.append).run()
    return said


def ladder_of(record: SearchRecord, arm: Arm) -> LadderRecord:
    return next(ladder for ladder in record.ladders if ladder.arm == arm)


def test_a_frozen_trial_that_has_trained_whole_keeps_its_score_and_its_folder(tmp_path: Path):
    """As in a search that was begun before the frozen trial stopped at the halving."""
    whole, halved = config_of(tmp_path), config_of(tmp_path, halve_at=4)
    halved = replace(halved, executor=replace(halved.executor, concurrent=2))
    own = {256.0: converged(0.6, 0.7), 128.0: converged(0.4)}
    executor = FakeExecutor({FROZEN: converged(0.5)} | own)
    driver(whole, executor).advance()
    assert executor.jobs.keys() == {"none_seed0/run"}
    executor.jobs["none_seed0/run"] = -3  # it runs on while the search is gone on with
    # The executor would refuse to begin the part of a trial in whose folder the whole one runs.
    assert driver(halved, executor).run().winners == {ARM: Trial(256.0, 10), NONE: Trial(1.0, 10)}
    assert executor.begun.count(FROZEN) == 1
    metrics = tmp_path / "trials" / "none_seed0" / "run" / "run" / "metrics.csv"
    metrics.write_text("step,validation/lddt_ca\n4,0.3\n10,0.5\n")
    (frozen,) = ladder_of(read_search_of(halved), NONE).trials
    assert (frozen.trial.steps, frozen.score, frozen.beaten) == (10, 0.5, False)


def test_a_rung_below_frozen_is_divided_and_told_as_such(tmp_path: Path):
    executor = FakeExecutor(ends(("converged", 0.5), *converged(0.3, 0.5, 0.6, 0.4)))
    config = config_of(tmp_path)
    said = said_by(config, executor)
    assert executor.begun == [FROZEN, 256.0, 128.0, 64.0, 32.0]  # the frozen trial comes first
    below = (
        "lorta r=8, seed 0, α=2048: below frozen; lDDT-Cα 0.3000 is not above the frozen model's"
        " 0.5000 at the same step"
    )
    assert said.count(below) == 1
    ended = [e["ending"] for e in read_ledger(tmp_path) if e["event"] == "ended"]
    assert ended == ["converged"] * 5  # what a trial's own files say stays
    again = FakeExecutor({})
    assert said_by(config, again) == []  # a search that is gone on with does not say it again
    record = read_search_of(config)
    ladder = ladder_of(record, ARM)
    states = {t.trial.multiple: t.state for t in ladder.trials}
    assert states == {
        256.0: "below frozen", 128.0: "below frozen", 64.0: "converged", 32.0: "below frozen",
    }  # fmt: skip
    assert ladder.winner is not None
    assert ladder.winner.trial.multiple == 64.0
    assert status_json(record)["trials"] == {"converged": 2, "below frozen": 3}
    assert "α=2048 below frozen at step 10 of 10, lDDT-Cα 0.300" in status_text(record)


def test_the_papers_text_keeps_what_is_below_frozen(tmp_path: Path):
    executor = FakeExecutor(ends(("converged", 0.5), *converged(0.3, 0.4)))
    config = config_of(tmp_path, beat_frozen=False)
    assert searched(config, executor, []).winners[ARM].multiple == 128.0
    # The same outcomes, judged by the frozen model.
    other = replace(config, ladder=replace(config.ladder, beat_frozen=True))
    assert ladder_of(read_search_of(config), ARM).winner is not None
    record = read_search_of(other)
    assert ladder_of(record, ARM).winner is None
    assert "climbing, rung 2 of 3" in status_text(record)


@pytest.mark.parametrize("frozen", [("diverged", 0.9), ("converged", float("nan"))])
def test_without_a_score_of_the_frozen_model_only_divergence_counts(frozen, tmp_path: Path):
    executor = FakeExecutor(ends(frozen, *converged(0.3, 0.4)))
    summary = searched(config_of(tmp_path), executor, [])
    assert summary.winners[ARM].multiple == 128.0
    assert (NONE in summary.exhausted) is (frozen[0] == "diverged")


def test_kinds_without_an_alpha_are_kept_as_they_are(tmp_path: Path):
    executor = FakeExecutor(ends(("converged", 0.5)))
    executor.endings[FROZEN] *= 2  # of vera, whose folder names no α either
    config = replace(config_of(tmp_path), grid={"vera": [8], "none": []})
    executor.endings[FROZEN][1] = ("converged", 0.1)
    summary = searched(config, executor, [])
    assert summary.winners.keys() == {NONE, Arm("vera", 8, 0)}


def test_a_frozen_trial_that_was_given_up_leaves_the_ladders_open(tmp_path: Path, monkeypatch):
    executor = FakeExecutor({FROZEN: [("wrong", 0.0)], **{m: converged(0.3) for m in MULTIPLES}})
    config = config_of(tmp_path)
    summary = searched(config, executor, [])
    assert executor.begun == [FROZEN, 256.0, 128.0]
    assert (summary.winners, summary.exhausted, summary.waiting) == ({}, [], [ARM])
    assert [arm for arm, _ in summary.failed] == [NONE]  # hence exit code 1
    record = read_search_of(config)
    assert "lorta r=8, seed 0 — waits for the frozen trial, rung 1 of 3" in status_text(record)
    found = status_json(record)
    assert found["finished"] is False
    assert [(ladder["state"], ladder["rung"]) for ladder in found["ladders"]] == [
        ("waits", 1),
        ("climbing", 1),
    ]
    said: list[str] = []
    monkeypatch.setattr(command, "tell", said.append)
    command._conclude(tmp_path, 2, summary)
    assert said[0].startswith(f"search {tmp_path}: 0 of 2 ladders have a winner; trials that have")
    assert said[1] == (
        "these ladders wait for the frozen trial of their seed, which has failed: lorta r=8 seed 0;"
        " correct its cause (train.log in its folder) and give the same command again"
    )
    # The next search tries the frozen trial again, and goes on from there.
    executor = FakeExecutor(ends(("converged", 0.2)))
    assert searched(config, executor, []).winners[ARM].multiple == 256.0
    assert executor.begun == [FROZEN]


def test_halving_has_the_frozen_trial_in_two_parts(tmp_path: Path):
    config = config_of(tmp_path, halve_at=4)
    executor = FakeExecutor({FROZEN: converged(0.3, 0.5), 256.0: converged(0.2)})
    executor.endings |= {128.0: converged(0.4, 0.6)}
    assert searched(config, executor, []).winners[ARM].multiple == 128.0
    assert sorted(executor.begun) == [FROZEN, FROZEN, 128.0, 128.0, 256.0]
    trials = ladder_of(read_search_of(config), ARM).trials
    assert {t.trial.multiple: (t.state, t.step, t.beaten) for t in trials} == {
        256.0: ("below frozen", 4, False),
        128.0: ("converged", 10, False),
    }
    # Killed before the ledger knew of any end, the search finds the parts in the folders.
    started = [line for line in (tmp_path / "ledger.jsonl").read_text().splitlines()
               if '"ended"' not in line and '"winner"' not in line]  # fmt: skip
    (tmp_path / "ledger.jsonl").write_text("\n".join(started) + "\n")
    record = read_search_of(config)
    assert {t.trial.multiple: t.state for t in ladder_of(record, ARM).trials} == {
        256.0: "below frozen",
        128.0: "converged",
    }
    assert searched(config, FakeExecutor({}), []).winners[ARM].multiple == 128.0


def test_parts_that_wait_for_the_frozen_trial_are_not_beaten(tmp_path: Path):
    executor = FakeExecutor(
        {FROZEN: [("wrong", 0.0)], 256.0: converged(0.3), 128.0: converged(0.4)}
    )
    config = config_of(tmp_path, halve_at=4)
    assert searched(config, executor, []).waiting == [ARM]
    record = read_search_of(config)
    assert not any(trial.beaten for trial in record.trials)
    assert status_text(record).count("waits at the halving") == 2


def test_a_frozen_model_that_joins_the_grid_judges_what_has_ended(tmp_path: Path):
    config = replace(config_of(tmp_path), grid={"lorta": [8]})
    executor = FakeExecutor(ends(("converged", 0.5), *converged(0.3, 0.4, 0.6, 0.2)))
    assert searched(config, executor, []).winners[ARM].multiple == 128.0
    assert searched(replace(config, grid=GRID), executor, []).winners[ARM].multiple == 64.0
    assert executor.begun == [256.0, 128.0, FROZEN, 64.0, 32.0]  # none is run again
    kept = [e["multiple"] for e in read_ledger(tmp_path) if e["event"] == "winner"]
    assert kept == [128.0, 1.0, 64.0]


def by_the_rule(final: dict[float, tuple[str, float]]) -> tuple[list[float], float | None]:
    """The multiples that are trained, and the one that is kept."""
    (frozen, low), trained = final[FROZEN], []
    for pair in zip(MULTIPLES[::2], MULTIPLES[1::2], strict=True):
        trained += pair
        alive = [
            m for m in pair
            if final[m][0] != "diverged" and (frozen == "diverged" or final[m][1] > low)
        ]  # fmt: skip
        if alive:
            return trained, max(alive, key=lambda m: final[m][1])
    return trained, None


ENDINGS = st.sampled_from(["diverged", "converged", "converged", "plateau"])


@st.composite
def outcomes(draw):
    """For each trial how it ends, and how often it is interrupted before."""
    return {
        multiple: [("interrupted", 0.0)] * draw(st.integers(0, 1))
        + [(draw(ENDINGS), draw(st.integers(0, 9)) / 10)]
        for multiple in (FROZEN, *MULTIPLES)
    }


@settings(max_examples=20, deadline=None)
@given(outcomes(), st.lists(st.integers(1, 12), max_size=6), st.integers(1, 3))
def test_any_kills_lead_to_the_same_trials_and_winner(endings, kills, concurrent):
    final = {multiple: its[-1] for multiple, its in endings.items()}
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Path(folder))
        config = replace(config, executor=replace(config.executor, concurrent=concurrent))
        executor = FakeExecutor(endings)
        summary = searched(config, executor, kills)
        trained, winner = by_the_rule(final)
        assert sorted(set(executor.begun), reverse=True) == [*trained, FROZEN]
        assert (summary.winners[ARM].multiple if ARM in summary.winners else None) == winner
        assert (ARM in summary.exhausted) is (winner is None)
        assert summary.waiting == []
        record = read_search_of(config)
        ladder = ladder_of(record, ARM)
        assert (ladder.winner and ladder.winner.trial.multiple) == winner
        left = time_left(record)
        assert left is not None
        assert (left.least, left.most) == (0.0, 0.0)

"""GPU-time spent, saved and left, of searches whose every number is known."""

from dataclasses import replace

import pytest

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.search.costs import Costs, TimeLeft, costs_of, time_left
from esmfold_peft.search.ladder import StepsLeft
from esmfold_peft.search.search_record import LadderRecord, counted_devices
from tests.search.status_records import (
    FULL,
    HALF,
    LORA,
    LORTA,
    NONE,
    climbing,
    config,
    diverged,
    exhausted,
    record,
    trial,
    waiting,
    won,
)


def test_a_search_without_a_trial_has_cost_nothing():
    assert costs_of(record(waiting())) == Costs(0.0, 0.0, 0.0)


def test_what_was_spent_is_the_sum_over_trials():
    assert costs_of(record(won(), climbing(), waiting())).spent == 5000 + 3030


def test_a_diverged_trial_saves_its_steps_to_the_end_at_its_own_rate():
    assert costs_of(record(exhausted())) == Costs(8000.0, 4 * 500 * 4.0, 0.0)


def test_a_rate_that_starting_up_has_raised_is_not_believed():
    ladder = LadderRecord(
        LORA, (diverged(LORA, 256.0, 10, 100.0), trial(LORA, 128.0, "converged", 990, 900.0))
    )
    assert costs_of(record(ladder)).saved_by_divergence == pytest.approx(990 * 1.0)


def test_a_trial_that_diverged_before_its_first_step_has_the_rate_of_its_adapter():
    others = LadderRecord(FULL, (trial(FULL, 1.0, "converged", 1000, 50_000.0),))
    ladder = LadderRecord(
        LORA, (diverged(LORA, 256.0, 0, 30.0), trial(LORA, 128.0, "running", 500, 1500.0))
    )
    assert costs_of(record(others, ladder)).saved_by_divergence == 1000 * 3.0


def test_without_one_of_its_adapter_it_has_the_mean_of_the_search():
    others = LadderRecord(LORTA, (trial(LORTA, 256.0, "converged", 1000, 2000.0),))
    alone = LadderRecord(LORA, (diverged(LORA, 256.0, 0, 30.0),))
    assert costs_of(record(others, alone)).saved_by_divergence == 1000 * 2.0
    assert costs_of(record(alone)).saved_by_divergence == 0


def test_what_halving_saves_is_counted_apart():
    beaten = trial(LORA, 256.0, "converged", HALF, 200.0, steps=HALF, beaten=True)
    also = diverged(LORA, 64.0, 50, 100.0, steps=HALF, beaten=True)  # its end, whatever else
    ladder = LadderRecord(LORA, (beaten, also))
    assert costs_of(record(ladder, halve_at=HALF)) == Costs(300.0, 950 * 2.0, 900 * 2.0)


def test_a_search_that_is_over_has_no_time_left():
    assert time_left(record(won(), exhausted())) == TimeLeft(0.0, 0.0)


def test_before_the_first_step_the_time_left_is_not_known():
    assert time_left(record(waiting())) is None
    begun = LadderRecord(LORA, (trial(LORA, 256.0, "running", 0, 5.0),))
    assert time_left(record(begun)) is None


def test_the_time_left_is_that_of_the_steps_left():
    # 1,200 steps at 3,000 GPU-seconds in 1,000 steps.
    assert time_left(record(climbing())) == TimeLeft(1200 * 3.0, 1200 * 3.0)


def test_an_adapter_without_a_trial_has_the_mean_of_the_search():
    left = time_left(record(won(), waiting()))  # 5,000 GPU-seconds in 2,450 steps
    assert left is not None
    assert left.least == left.most == pytest.approx(1000 * 5000 / 2450)


def pair() -> LadderRecord:
    """The first pair at step 100, at 2 GPU-seconds a step."""
    trials = (trial(LORA, 256.0, "running", 100, 200.0), trial(LORA, 128.0, "running", 100, 200.0))
    return LadderRecord(LORA, trials, steps_left=StepsLeft(1800, 3800, 900, 1900))


def test_two_at_a_time_take_half_as_long():
    assert time_left(record(pair())) == TimeLeft(1800 * 2.0, 3800 * 2.0)
    two = time_left(record(pair(), concurrent=2))
    # 900 steps at least. At most 3,800 shared by two, and half of two rungs: 900 and 1,000 steps.
    assert two == TimeLeft(900 * 2.0, (1900 + 950) * 2.0)


def test_more_places_than_trials_do_not_help():
    left = time_left(record(pair(), concurrent=100))
    assert left is not None
    assert left.least == 900 * 2.0
    assert left.most >= 1900 * 2.0


def test_a_part_below_frozen_saves_the_rest_of_it_as_halving_does():
    part = trial(LORA, 256.0, "below frozen", HALF, 200.0, steps=HALF)
    whole = trial(LORA, 128.0, "below frozen", 1000, 2000.0)
    found = costs_of(record(LadderRecord(LORA, (part, whole)), halve_at=HALF))
    assert found == Costs(2200.0, 0.0, 900 * 2.0)


def waits_for(frozen: LadderRecord, concurrent: int) -> TimeLeft | None:
    """Of a ladder whose first rung has ended, with a second below it, at 2 GPU-seconds a step."""
    ended = tuple(trial(LORA, m, "converged", 1000, 2000.0, score=0.5) for m in (256.0, 128.0))
    ladder = LadderRecord(LORA, ended, waits=True, steps_left=StepsLeft(0, 2000, 0, 1000))
    search = record(ladder, frozen, concurrent=concurrent)
    return time_left(replace(search, config=replace(search.config, grid={"lora": [1], "none": []})))


def test_a_ladder_that_waits_for_the_frozen_trial_goes_on_after_it():
    running = trial(NONE, 1.0, "running", 400, 800.0)
    frozen = LadderRecord(NONE, (running,), steps_left=StepsLeft(*[600] * 4))
    assert waits_for(frozen, 1) == TimeLeft(600 * 2.0, (600 + 2000) * 2.0)
    left = waits_for(frozen, 100)
    # The rung below may begin when the frozen trial has ended: 600 steps, and 1,000.
    assert left is not None
    assert left.least == 600 * 2.0
    assert left.most >= (600 + 1000) * 2.0


def test_a_ladder_that_waits_may_have_nothing_left():
    failed = trial(NONE, 1.0, "failed", 1000, 2000.0)
    left = waits_for(LadderRecord(NONE, (failed,), steps_left=StepsLeft()), 2)
    assert left is not None
    assert left.least == 0.0


def test_trials_that_the_grid_no_longer_has_were_paid_for():
    dropped = (trial(LORTA, 256.0, "converged", 1000, 3600.0),)
    found = replace(record(exhausted()), dropped=dropped)
    assert costs_of(found).spent == 8000 + 3600


def test_seconds_of_several_devices_are_gpu_seconds_shared_out():
    assert counted_devices(config()) == 1
    assert counted_devices(config(devices=4)) == 4
    half = replace(config(), executor=ExecutorConfig(kind="ray", gpus=0.5))
    assert counted_devices(half) == 0.5
    on_cpu = replace(config(devices=2), executor=ExecutorConfig(kind="ray", gpus=0.0))
    assert counted_devices(on_cpu) == 2
    assert time_left(record(pair(), devices=4)) == TimeLeft(1800 * 0.5, 3800 * 0.5)

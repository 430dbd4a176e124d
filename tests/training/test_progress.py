"""Rates by fake clocks, and what a person sees of a training."""

import io
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from esmfold_peft.commands.train import _fit
from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.runs.status import Status
from esmfold_peft.training.progress import (
    Bar,
    Lines,
    Rates,
    Snapshot,
    TrainingProgress,
    View,
    duration,
    peak_memory,
)
from esmfold_peft.training.supervisor import Supervisor
from tests.tiny import TINY


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Seen(View):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def show(self, now: Snapshot, due: bool) -> None:
        self.told.append(("steps", now, due))

    def validating(self, step: int, done: int, total: int) -> None:
        self.told.append(("validating", step, done, total))


class Run:
    """A training of fake steps.

    Args:
        validation: whether there are validation chains.
        step: where it begins.
    """

    def __init__(self, validation: bool = True, step: int = 0) -> None:
        self.clock, self.view, self.done = Clock(), Seen(), step
        data = DataConfig(Path("train"), Path("held_out") if validation else None)
        engine = EngineConfig(batch_size=4, steps=100, validate_every=10)
        config = TrainConfig(Path("run"), data, engine=engine)
        cpu = torch.device("cpu")
        self.progress = TrainingProgress(config, step, cpu, self.view, self.clock)

    def step(self, seconds: float) -> None:
        """Makes a step that takes some seconds."""
        self.clock.now += seconds
        self.done += 1
        self.progress.stepped(self.done, {})

    @property
    def last(self) -> Snapshot:
        return self.view.told[-1][1]


def test_a_rate_is_known_after_one_step():
    rates = Rates()
    assert math.isnan(rates.steps_per_second)
    rates.observe(500, 0.0)
    assert math.isnan(rates.steps_per_second)
    rates.observe(501, 0.25)
    assert rates.steps_per_second == 4.0


def test_a_rate_is_that_of_the_last_half_minute():
    rates = Rates()
    rates.observe(0, 0.0)
    rates.observe(1, 90.0)  # compiled
    for step in range(2, 302):
        rates.observe(step, 90.0 + 0.125 * (step - 1))
    assert rates.steps_per_second == 8.0
    for step in range(302, 402):  # it slows down
        rates.observe(step, 127.5 + 0.5 * (step - 301))
    assert rates.steps_per_second == 2.0


def test_steps_of_more_than_half_a_minute_have_a_rate():
    rates = Rates()
    for step in range(5):
        rates.observe(step, 100.0 * step)
    assert rates.steps_per_second == 0.01


def test_no_time_gives_no_rate():
    rates = Rates()
    for _ in range(2):
        rates.observe(1, 5.0)
    assert math.isnan(rates.steps_per_second)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_memory_of_a_cpu_is_what_linux_says():
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    high_water = int(line.split()[1]) * 1024 / 2**30
    assert peak_memory(torch.device("cpu")) == pytest.approx(high_water, rel=0.05)


def test_the_rates_are_those_of_the_steps():
    run = Run()
    for _ in range(3):
        run.step(1.0)
    rates = run.progress.rates()
    assert rates["steps_per_second"] == 1.0
    assert rates["chains_per_second"] == 4.0
    assert rates["peak_memory_gib"] == pytest.approx(peak_memory(torch.device("cpu")), rel=0.2)


def test_a_resumed_run_counts_its_own_steps():
    run = Run(step=80)
    run.progress.show()
    assert math.isnan(run.last.left)
    run.step(2.0)
    assert run.progress.rates()["steps_per_second"] == 0.5
    assert run.last.left == 38.0


def test_a_run_that_has_more_steps_than_it_is_to_have_is_at_its_end():
    """It was resumed with fewer engine.steps (100 here) than it had done."""
    run = Run(step=120)
    run.progress.validation_ended({})
    assert (run.last.step, run.last.total) == (120, 120)
    assert not run.last.left < 0
    assert Status("converged", 120, 120).sentence() == "converged at step 120 of 120"
    sentence = Status("converged", 120, 100).sentence()
    assert sentence == "converged at step 120, more than engine.steps 100"


def test_validations_slow_no_step_down_but_the_end():
    run = Run()
    for _ in range(10):
        run.step(1.0)
    assert run.last.left == 90.0
    run.progress.validation_started(7)
    run.clock.now += 15.0
    run.progress.validation_advanced(4)
    run.clock.now += 5.0
    run.progress.validation_advanced(3)
    run.progress.validation_ended({"validation/lddt_ca": 0.5})
    assert run.view.told[-4:-1] == [
        ("validating", 10, 0, 7),
        ("validating", 10, 4, 7),
        ("validating", 10, 7, 7),
    ]
    assert run.last.metrics["validation/lddt_ca"] == 0.5
    assert run.last.elapsed == 30.0
    assert run.last.left == 90.0 + 9 * 20.0  # at steps 20, 30 and so on to 100
    run.progress.validation_started(7)
    run.clock.now += 5.0
    run.progress.validation_ended({})
    run.step(1.0)
    assert run.progress.rates()["steps_per_second"] == 1.0
    assert run.last.left == 89.0 + 9 * 5.0


def test_what_comes_before_the_first_step_slows_none_down():
    run = Run()
    run.clock.now += 100.0  # the memory is tested
    run.progress.start(0)
    run.step(1.0)
    assert run.progress.rates()["steps_per_second"] == 1.0
    assert run.last.elapsed == 1.0


def test_a_run_without_validation_chains_is_due_as_often():
    for validation in (True, False):
        run = Run(validation)
        for _ in range(25):
            run.step(1.0)
        due = [now.step for _, now, due in run.view.told if due]
        assert due == ([] if validation else [10, 20])


def snapshot(**changes: Any) -> Snapshot:
    """Where a training stands at step 20."""
    values: dict[str, Any] = {
        "step": 20,
        "total": 850_000,
        "metrics": {"train/loss": 1.2344, "train/lddt_ca": 0.5, "validation/lddt_ca": 0.4},
        "skipped": 0,
        "steps_per_second": 2.0,
        "chains_per_second": 64.0,
        "memory": 1.5,
        "elapsed": 12.3,
        "left": 3725.2,
    }
    return Snapshot(**values | changes)


def test_a_line_says_all(capsys: pytest.CaptureFixture[str]):
    for now in (
        snapshot(),
        snapshot(metrics={"train/loss": math.nan}, skipped=2, left=math.nan),
        snapshot(metrics={}, steps_per_second=math.nan, left=math.nan),
        snapshot(metrics={}, steps_per_second=0.03125, chains_per_second=1234.5),
    ):
        Lines().show(now, due=True)
    assert capsys.readouterr().out.splitlines() == [
        "step 20: loss 1.234, lDDT 0.500, validation lDDT 0.400, 2 steps/s, 64 chains/s,"
        " peak 1.50 GiB, 12 s, 1:02:05 left of 850,000 steps",
        "step 20: loss nan, 2 steps/s, 64 chains/s, peak 1.50 GiB, 2 skipped, 12 s of 850,000"
        " steps",
        "step 20: peak 1.50 GiB, 12 s of 850,000 steps",
        "step 20: 0.0312 steps/s, 1,234 chains/s, peak 1.50 GiB, 12 s, 1:02:05 left of 850,000"
        " steps",
    ]


def test_lines_come_when_due_and_once_a_minute(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    clock.now += 100.0  # the model was built
    lines.show(snapshot(step=0), due=False)
    for step in range(1, 13):
        clock.now += 15.0
        lines.show(snapshot(step=step), due=step == 6)
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["step 4", "step 6", "step 10"]


def test_a_long_validation_reports_how_far_it_is(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    for done in range(0, 1200, 200):
        lines.validating(20, done, 1000)
        clock.now += 25.0
    assert capsys.readouterr().err.splitlines() == ["validation at step 20: 600 of 1,000 chains"]


def test_the_bar_shows_steps_chains_and_numbers_in_any_terminal():
    console = Console(file=io.StringIO(), width=80)
    bar = Bar(console)

    def shown() -> str:
        with console.capture() as captured:
            console.print(bar._live.renderable)
        return " ".join(captured.get().split())

    bar.show(snapshot(step=0, metrics={}, elapsed=0.0, left=math.nan), due=False)
    assert "0/850000 0:00:00 2 steps/s" in shown()
    bar.show(snapshot(), due=False)
    assert shown().endswith(
        "20/850000 0:00:12, 1:02:05 left loss 1.234, lDDT 0.500, validation lDDT 0.400, 2 steps/s,"
        " 64 chains/s, peak 1.50 GiB"
    )
    bar.validating(20, 3, 7)
    bar.validating(20, 5, 7)
    assert " 5/7 " in shown()
    bar.show(snapshot(metrics={}), due=True)
    assert "validation" not in shown()  # neither the bar nor, here, the score
    assert bar._live.is_started
    bar.end()
    assert not bar._live.is_started


def test_durations_are_whole_seconds():
    assert duration(59.6) == "0:01:00"
    assert duration(3 * 86400.0 + 61.0) == "3 days, 0:01:01"


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_terminal_is_given_back_however_a_training_ends(end: type[BaseException] | None):
    training = Mock(spec=Supervisor)
    training.trainer = Mock(is_global_zero=False)
    training.trainer.fit.side_effect = end
    training.config, training.module, training.data = TINY, None, None
    training.status, training.progress = Mock(spec=Status), Mock()
    with pytest.raises(KeyboardInterrupt if end is SystemExit else end) if end else nullcontext():
        _fit(training)
    training.progress.end.assert_called_once()

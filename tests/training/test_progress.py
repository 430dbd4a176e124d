"""Rates by fake clocks, and what a person sees of a training."""

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console

from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.runs.status import Status as RunStatus
from esmfold_peft.training.progress import TrainingProgress
from esmfold_peft.training.progress_views import Bar, Lines, Status, View, duration
from esmfold_peft.training.rates import Rates, peak_memory


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Seen(View):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, status: Status) -> None:
        self.told.append(("started", status))

    def advanced(self, status: Status, due: bool) -> None:
        self.told.append(("advanced", status, due))

    def validating(self, step: int, done: int, total: int) -> None:
        self.told.append(("validating", step, done, total))

    def validated(self, status: Status) -> None:
        self.told.append(("validated", status))

    def ended(self) -> None:
        self.told.append(("ended",))


class Module(LightningModule):
    """Keeps its latest metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, float] = {}
        self.steps = 0

    @property
    def step(self) -> int:
        return self.steps


class FakeTrainer(Trainer):
    """Is the first process or another."""

    def __init__(self, first: bool) -> None:
        self.first = first

    @property
    def is_global_zero(self) -> bool:
        return self.first

    @property
    def strategy(self) -> Any:
        return SimpleNamespace(root_device=torch.device("cpu"))


class Run:
    """A training of fake steps.

    Args:
        view: shows it.
        validation: whether there are validation chains.
        first: whether this is the first process.
    """

    def __init__(self, view: View | None, validation: bool = True, first: bool = True) -> None:
        self.clock = Clock()
        data = DataConfig(Path("train"), Path("held_out") if validation else None)
        engine = EngineConfig(batch_size=4, steps=100, validate_every=10)
        config = TrainConfig(Path("run"), data, engine=engine)
        self.progress = TrainingProgress(config, view, self.clock)
        self.module = Module()
        self.trainer = FakeTrainer(first)

    def start(self, step: int = 0) -> None:
        """Begins at a step."""
        self.module.steps = step
        self.progress.on_fit_start(self.trainer, self.module)
        self.progress.on_train_start(self.trainer, self.module)

    def micro_batch(self, seconds: float, step: bool = True) -> None:
        """Lets time pass, and may complete a step."""
        self.clock.now += seconds
        if step:
            self.module.steps += 1
            self.progress.stepped()


def test_a_rate_is_known_after_one_step():
    rates = Rates()
    assert math.isnan(rates.steps_per_second)
    rates.observe(500, 0.0)
    assert math.isnan(rates.seconds_for(10))
    rates.observe(501, 0.25)
    assert rates.steps_per_second == 4.0
    assert rates.seconds_for(10) == 2.5


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
    rates.observe(1, 6.0)
    assert math.isnan(rates.seconds_for(3))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_memory_of_a_cpu_is_what_linux_says():
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    high_water = int(line.split()[1]) * 1024 / 2**30
    assert peak_memory(torch.device("cpu")) == pytest.approx(high_water, rel=0.05)


def test_micro_batches_are_not_counted_as_steps():
    view = Seen()
    run = Run(view)
    run.start()
    for _ in range(3):
        run.micro_batch(0.5, step=False)
        run.micro_batch(0.5)
    assert [entry[0] for entry in view.told] == ["started", *["advanced"] * 3]
    rates = run.progress.rates()
    assert rates["steps_per_second"] == 1.0
    assert rates["chains_per_second"] == 4.0
    assert rates["peak_memory_gib"] == pytest.approx(peak_memory(torch.device("cpu")), rel=0.2)


def test_a_resumed_run_counts_its_own_steps():
    run = Run(Seen())
    run.start(step=80)
    run.micro_batch(2.0)
    assert run.progress.rates()["steps_per_second"] == 0.5


def test_a_run_that_has_more_steps_than_it_is_to_have_is_at_its_end():
    """It was resumed with fewer engine.steps (100 here) than it had done."""
    view = Seen()
    run = Run(view)
    run.start(step=120)
    run.progress.validation_ended(0.5)
    status = view.told[-1][1]
    assert (status.step, status.total) == (120, 120)
    assert not status.left < 0
    assert RunStatus("converged", 120, 120).sentence() == "converged at step 120 of 120"
    said = RunStatus("converged", 120, 100).sentence()
    assert said == "converged at step 120, more than engine.steps 100"


def test_validations_slow_no_step_down_but_the_end():
    view = Seen()
    run = Run(view)
    run.start()
    for _ in range(10):
        run.micro_batch(1.0)
    assert view.told[-1][1].left == 90.0
    run.progress.validation_started(7)
    run.clock.now += 15.0
    run.progress.validation_advanced(4)
    run.clock.now += 5.0
    run.progress.validation_advanced(3)
    run.progress.validation_ended(0.5)
    assert view.told[-4:-1] == [
        ("validating", 10, 0, 7),
        ("validating", 10, 4, 7),
        ("validating", 10, 7, 7),
    ]
    status = view.told[-1][1]
    assert status.metrics["validation/lddt_ca"] == 0.5
    assert status.elapsed == 30.0
    assert status.left == 90.0 + 9 * 20.0  # at steps 20, 30 and so on to 100
    run.progress.validation_started(7)
    run.clock.now += 5.0
    run.progress.validation_ended(0.5)
    run.micro_batch(1.0)
    assert run.progress.rates()["steps_per_second"] == 1.0
    assert view.told[-1][1].left == 89.0 + 9 * 5.0


def test_a_run_without_validation_chains_is_due_as_often():
    for validation in (True, False):
        view = Seen()
        run = Run(view, validation)
        run.start()
        for _ in range(25):
            run.micro_batch(1.0)
        due = [entry[1].step for entry in view.told if entry[0] == "advanced" and entry[2]]
        assert due == ([] if validation else [10, 20])


def test_other_processes_show_nothing():
    view = Seen()
    run = Run(view, first=False)
    run.start()
    run.micro_batch(1.0)
    run.progress.validation_started(1)
    run.progress.validation_ended(0.5)
    run.progress.on_train_end(run.trainer, run.module)
    assert view.told == []
    assert run.progress.rates()["steps_per_second"] == 1.0


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_the_view_ends_with_the_training(end: str):
    view = Seen()
    run = Run(view)
    run.start()
    if end == "on_train_end":
        run.progress.on_train_end(run.trainer, run.module)
    else:
        run.progress.on_exception(run.trainer, run.module, KeyboardInterrupt())
    assert view.told[-1] == ("ended",)


def status(**changes: Any) -> Status:
    """Where a training stands at step 20."""
    values: dict[str, Any] = {
        "step": 20,
        "total": 850_000,
        "metrics": {"train/loss": 1.2344, "train/lddt_ca": 0.5, "validation/lddt_ca": 0.4},
        "steps_per_second": 2.0,
        "chains_per_second": 64.0,
        "memory": 1.5,
        "elapsed": 12.3,
        "left": 3725.2,
    }
    return Status(**values | changes)


def test_a_line_says_all(capsys: pytest.CaptureFixture[str]):
    Lines().validated(status())
    Lines().validated(
        status(metrics={"train/loss": math.nan, "train/skipped_steps": 2.0}, left=math.nan)
    )
    Lines().validated(status(metrics={}, steps_per_second=math.nan, left=math.nan))
    Lines().validated(status(metrics={}, steps_per_second=0.03125, chains_per_second=1234.5))
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
    lines.started(status(step=0))
    for step in range(1, 13):
        clock.now += 15.0
        lines.advanced(status(step=step), due=step == 6)
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["step 4", "step 6", "step 10"]


def test_a_long_validation_says_how_far_it_is(capsys: pytest.CaptureFixture[str]):
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

    bar.started(status(step=0, metrics={}, elapsed=0.0, left=math.nan))
    assert "0/850000 0:00:00 2 steps/s" in shown()
    bar.advanced(status(), due=False)
    assert shown().endswith(
        "20/850000 0:00:12, 1:02:05 left loss 1.234, lDDT 0.500, validation lDDT 0.400, 2 steps/s,"
        " 64 chains/s, peak 1.50 GiB"
    )
    bar.validating(20, 3, 7)
    bar.validating(20, 5, 7)
    assert " 5/7 " in shown()
    bar.validated(status(metrics={}))
    assert "validation" not in shown()  # neither the bar nor, here, the score
    assert bar._live.is_started
    bar.ended()
    assert not bar._live.is_started


def test_durations_are_whole_seconds():
    assert duration(59.6) == "0:01:00"
    assert duration(3 * 86400.0 + 61.0) == "3 days, 0:01:01"

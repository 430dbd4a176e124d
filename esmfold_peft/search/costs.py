"""What a search has cost, what ending trials early has saved, and how long it will still take."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from esmfold_peft.config import SearchConfig
from esmfold_peft.search.grid import Arm, baseline_of
from esmfold_peft.search.ladder import StepsLeft
from esmfold_peft.search.search_record import SearchRecord, TrialRecord, counted_devices


class Costs(NamedTuple):
    """GPU-seconds: spent by all trials so far, and saved on trials that ended early.

    By divergence: on trials that diverged. By halving: on those beaten at it, or below frozen.
    """

    spent: float
    saved_by_divergence: float
    saved_by_halving: float


class TimeLeft(NamedTuple):
    """Seconds until the end of a search.

    `least`: no trial that is asked for now is out. `most`: all ladders go down to their floors, and
    each trial is out only at its end.
    """

    least: float
    most: float


def costs_of(record: SearchRecord) -> Costs:
    """What a search has spent and saved so far."""
    halved = (
        trial
        for trial in record.trials
        if trial.state == "below frozen" or (trial.beaten and trial.state != "diverged")
    )
    return Costs(
        math.fsum(trial.gpu_seconds for trial in record.trials),
        math.fsum(_saved(t, record) for t in record.trials if t.state == "diverged"),
        math.fsum(_saved(t, record) for t in halved),
    )


def time_left(record: SearchRecord) -> TimeLeft | None:
    """Seconds until the end; None if it is not known yet how long a step takes.

    `executor.concurrent` trials run at a time. At most is Graham's bound for jobs that start as
    soon as there is room: all work shared out evenly, and after it the longest ladder, which may
    have to wait for the frozen one.
    """
    left: dict[Arm, StepsLeft] = {}
    for ladder in record.ladders:
        if ladder.is_open:
            rate = _mean_rate(ladder.trials) or _mean_rate(record.trials)
            if rate is None:
                return None
            seconds = rate / counted_devices(record.config)
            left[ladder.arm] = StepsLeft(*(seconds * steps for steps in ladder.steps_left))
    if not left:
        return TimeLeft(0.0, 0.0)
    paths: dict[Arm | None, float] = {arm: own.most_path for arm, own in left.items()}
    longest = max(paths[arm] + paths.get(baseline_of(record.config, arm), 0.0) for arm in left)
    at_once = record.config.executor.concurrent
    least = sum(own.least for own in left.values()) / at_once
    most = sum(own.most for own in left.values()) / at_once
    return TimeLeft(
        max(least, *(own.least_path for own in left.values())),
        most + longest * (1 - 1 / at_once),
    )


def hours_text(seconds: float, config: SearchConfig) -> str:
    """GPU-seconds for people: "2.5 GPU-hours"; on a CPU process-hours."""
    unit = "process-hours" if config.engine.accelerator == "cpu" else "GPU-hours"
    return f"{short_number(seconds / 3600)} {unit}"


def short_number(value: float) -> str:
    """Three digits, or all digits of the whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _saved(trial: TrialRecord, record: SearchRecord) -> float:
    """GPU-seconds from where a trial ended to the end of a whole one; 0 if nothing is known.

    The first steps of a process take longest (it starts, reads, compiles). The rate of a trial that
    diverged at once would overstate what it saved: the mean of its adapter counts if it is lower.
    """
    rates = (_mean_rate([trial]), _mean_rate(t for t in record.trials if t.arm == trial.arm))
    known = [rate for rate in rates if rate is not None]
    rate = min(known) if known else _mean_rate(record.trials) or 0.0
    return max(0, record.config.engine.steps - trial.step) * rate


def _mean_rate(trials: Iterable[TrialRecord]) -> float | None:
    """GPU-seconds of a step, over all steps of some trials; None where there are none."""
    started = [trial for trial in trials if trial.step]
    steps = sum(trial.step for trial in started)
    return sum(trial.gpu_seconds for trial in started) / steps if steps else None

"""What a search has cost, what ending trials early has saved, and how long it will yet take."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from esmfold_peft.config import SearchConfig
from esmfold_peft.search.grid import Arm, baseline_of, rules_of
from esmfold_peft.search.records import LadderRecord, SearchRecord, TrialRecord

_GOES_ON = ("running", "interrupted", "failed")
"""States of trials whose steps so far are not done again."""


@dataclass(frozen=True)
class Costs:
    """GPU-seconds of a search.

    Attributes:
        spent: by all trials so far.
        saved_by_divergence: what the trials that have diverged would have taken to their end.
        saved_by_halving: what those would have taken that did not go on after it.
    """

    spent: float
    saved_by_divergence: float
    saved_by_halving: float


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the end of a search.

    Attributes:
        least: none of the trials that are asked for now is out.
        most: all ladders go down to their floors, by trials that are out at their end.
    """

    least: float
    most: float


def costs_of(record: SearchRecord) -> Costs:
    """What a search has spent and saved so far."""
    trials = record.trials
    return Costs(
        math.fsum(trial.gpu_seconds for trial in trials),
        math.fsum(_saved(t, record) for t in trials if t.state == "diverged"),
        math.fsum(
            _saved(t, record)
            for t in trials
            if t.state == "below frozen" or (t.beaten and t.state != "diverged")
        ),
    )


def time_left(record: SearchRecord) -> TimeLeft | None:
    """Seconds until the end; None if it is not known yet how long a step takes.

    At a time there run `executor.concurrent` trials. At most is Graham's bound for jobs that start
    as soon as there is room: all work shared out evenly, and the longest ladder after it, which
    may have to wait for the frozen one.
    """
    left = {
        ladder.arm: _ladder_left(ladder, record) for ladder in record.ladders if _is_open(ladder)
    }
    known = {arm: ladder for arm, ladder in left.items() if ladder is not None}
    if len(known) < len(left):
        return None
    if not known:
        return TimeLeft(0.0, 0.0)
    at_once = record.config.executor.concurrent
    least = sum(ladder.least for ladder in known.values()) / at_once
    most = sum(ladder.most for ladder in known.values()) / at_once
    paths: dict[Arm | None, float] = {arm: ladder.most_path for arm, ladder in known.items()}
    longest = max(
        ladder.most_path + paths.get(baseline_of(record.config, arm), 0.0)
        for arm, ladder in known.items()
    )
    return TimeLeft(
        max(least, *(ladder.least_path for ladder in known.values())),
        most + longest * (1 - 1 / at_once),
    )


def counted_devices(config: SearchConfig) -> float:
    """GPUs whose time a trial costs, maybe a share of one; processes on a CPU."""
    if config.executor.kind == "ray" and config.executor.gpus:
        return config.executor.gpus
    return float(config.devices)


def hours_text(seconds: float, config: SearchConfig) -> str:
    """GPU-seconds for people, or what they are on a CPU."""
    unit = "process-hours" if config.engine.accelerator == "cpu" else "GPU-hours"
    return f"{short_number(seconds / 3600)} {unit}"


def short_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class _LadderLeft:
    """Seconds of an open ladder.

    Attributes:
        least: of its trials one after the other, if none is out that is asked for now.
        most: the same if all are out at their end.
        least_path: as least, where those of a rung run at the same time.
        most_path: as most, where those of a rung run at the same time.
    """

    least: float
    most: float
    least_path: float
    most_path: float


def _ladder_left(ladder: LadderRecord, record: SearchRecord) -> _LadderLeft | None:
    """None if it is not known how long a step takes."""
    rate = _mean_rate(ladder.trials) or _mean_rate(record.trials)
    if rate is None:
        return None
    rules = rules_of(record.config, ladder.arm)
    width, halve_at = len(rules.rungs[0]), rules.halve_at
    going = [trial for trial in ladder.trials if trial.state in _GOES_ON]
    done = sum(_done(trial, rules.steps, halve_at) for trial in going)
    least, most = (max(0, steps - done) for steps in ladder.steps_left)
    asked = ladder.steps_left[0]
    if halve_at is None:
        least_path = _longest(going, rules.steps, asked // rules.steps)
        most_path = min(most, math.ceil(most / (rules.steps * width)) * rules.steps)
    else:
        # Parts before the halving run at the same time; the better one goes on after them.
        rest = rules.steps - halve_at
        parts = round((asked - rest) / halve_at)
        least_path = _longest(going, halve_at, parts) + rest if parts > 0 else least
        most_path = most
    seconds = rate / counted_devices(record.config)
    return _LadderLeft(*(seconds * steps for steps in (least, most, least_path, most_path)))


def _longest(going: list[TrialRecord], steps: int, asked: int) -> int:
    """Steps left of that of the trials asked for which has most of them."""
    left = [steps - trial.step for trial in going if trial.trial.steps == steps]
    return max(left, default=steps if asked else 0) if len(left) >= asked else steps


def _done(trial: TrialRecord, steps: int, halve_at: int | None) -> int:
    """Steps of a trial that goes on; the ladder has left out already those before halving."""
    part = 0 if halve_at is None or trial.trial.steps < steps else halve_at
    return max(0, trial.step - part)


def _saved(trial: TrialRecord, record: SearchRecord) -> float:
    """GPU-seconds from where a trial was left to the end of a whole one; 0 if nothing is known.

    The first steps of a process take longest (it starts, reads, compiles), so that the rate of a
    trial which diverged at once would overstate what it saved: the mean of its adapter's trials
    counts where that is lower.
    """
    same = _mean_rate(t for t in record.trials if t.arm == trial.arm)
    rates = [rate for rate in (trial.seconds_per_step, same) if rate is not None]
    rate = min(rates) if rates else _mean_rate(record.trials) or 0.0
    return max(0, record.config.engine.steps - trial.step) * rate


def _mean_rate(trials: Iterable[TrialRecord]) -> float | None:
    """GPU-seconds of a step, over all steps of some trials; None where there are none."""
    begun = [trial for trial in trials if trial.step]
    steps = sum(trial.step for trial in begun)
    return sum(trial.gpu_seconds for trial in begun) / steps if steps else None


def _is_open(ladder: LadderRecord) -> bool:
    return ladder.winner is None and not ladder.exhausted

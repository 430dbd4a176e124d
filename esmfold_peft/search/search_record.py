"""All that is known of a search, read from its folder, while it runs or afterwards."""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import read_config
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import PROVENANCE
from esmfold_peft.runs.status import whole_status
from esmfold_peft.search.attempt import RUN, Attempt, attempts, last_sign
from esmfold_peft.search.executors.local import is_alive
from esmfold_peft.search.grid import Arm, arms_of, baseline_of, in_turn, rules_of, trial_folder
from esmfold_peft.search.ladder import (
    NO_STEPS,
    Outcome,
    Outcomes,
    StepsLeft,
    Trial,
    decide,
    judged,
    steps_left,
)
from esmfold_peft.search.ledger import arm_of, outcomes_of, read_ledger, trial_of
from esmfold_peft.search.preflight import SETTINGS
from esmfold_peft.search.trial_files import (
    LAST_LINES,
    below_text,
    column,
    metrics_rows,
    read_end,
    trial_score,
)

State = Literal[
    "running", "converged", "plateau", "diverged", "below frozen", "interrupted", "failed"
]


@dataclass(frozen=True)
class TrialRecord:
    """A trial that was started.

    Attributes:
        trial: with the steps that were asked for last.
        state: the search resumes an interrupted trial; a failed one ended by an error.
        step: optimizer steps done.
        score: validation lDDT-Cα by the ladder's metric, 0 to 1, finite.
        train_score: training lDDT-Cα, mean over the last lines of metrics.csv.
        parameters: trained ones in the language model; None if not known yet.
        rule: of the guard that ended it.
        message: why it ended so.
        gpu_seconds: wall time of all attempts, times the devices.
        beaten: another trial of its rung continues instead of it after the halving.
    """

    arm: Arm
    trial: Trial
    alpha: float | None
    folder: Path
    state: State
    step: int
    score: float | None = None
    train_score: float | None = None
    parameters: int | None = None
    rule: str | None = None
    message: str | None = None
    attempts: int = 1
    gpu_seconds: float = 0.0
    beaten: bool = False


@dataclass(frozen=True)
class LadderRecord:
    """One ladder.

    Attributes:
        trials: in the order in which they started.
        winner: the trial that is kept; None while the ladder is open, or if none has survived.
        exhausted: no trial has survived down to the floor.
        waits: it continues when the frozen trial of its seed has ended.
        rung: index of the rung that it has reached.
    """

    arm: Arm
    trials: tuple[TrialRecord, ...]
    winner: TrialRecord | None = None
    exhausted: bool = False
    waits: bool = False
    rung: int = 0
    steps_left: StepsLeft = NO_STEPS

    @property
    def is_open(self) -> bool:
        """Whether it has neither a winner nor tried all."""
        return self.winner is None and not self.exhausted


@dataclass(frozen=True)
class SearchRecord:
    """A whole search: all ladders of the grid, and the trials of those that it no longer has."""

    config: SearchConfig
    ladders: tuple[LadderRecord, ...]
    dropped: tuple[TrialRecord, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether a trial must beat the frozen one."""
        return any(baseline_of(self.config, ladder.arm) for ladder in self.ladders)

    @property
    def winners(self) -> list[TrialRecord]:
        """The trials that are kept, in the order of the grid."""
        return [ladder.winner for ladder in self.ladders if ladder.winner is not None]

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials, ladder by ladder; those that the grid no longer has come last."""
        return [*(trial for ladder in self.ladders for trial in ladder.trials), *self.dropped]


def read_search(output: Path) -> SearchRecord:
    """Reads the folder of a search.

    Raises:
        UserError: the folder is no search, or its files are damaged.
    """
    if not (output / SETTINGS).is_file():
        raise UserError(
            f"output: {output} is not the folder of a search (it has no {SETTINGS}); give the"
            " folder that `search --output` named"
        )
    # The folder as it is called now, not as it was when the search began.
    config = replace(read_config(output / SETTINGS, SearchConfig), output=output)
    events = read_ledger(output)
    outcomes = outcomes_of(events)
    arms = arms_of(config)
    others = [arm for arm in dict.fromkeys(map(arm_of, events)) if arm not in arms]
    ladders: dict[Arm, LadderRecord] = {}
    for arm in in_turn([*arms, *others]):
        own = [event for event in events if arm_of(event) == arm]
        ladders[arm] = _ladder(config, arm, own, outcomes)
    dropped = [trial for arm in others for trial in ladders[arm].trials]
    return SearchRecord(config, tuple(ladders[arm] for arm in arms), tuple(dropped))


def counted_devices(config: SearchConfig) -> float:
    """GPUs whose time a trial costs, maybe a share of one; processes on a CPU."""
    if config.executor.kind == "ray" and config.executor.gpus:
        return config.executor.gpus
    return float(config.devices)


def _ladder(
    config: SearchConfig,
    arm: Arm,
    events: list[dict[str, Any]],
    known: dict[Arm, dict[Trial, Outcome]],
) -> LadderRecord:
    """One ladder; adds to `known` the outcomes of trials that ended while no search ran."""
    rules = rules_of(config, arm)
    baseline = baseline_of(config, arm)
    frozen = None if baseline is None else known.get(baseline, {})
    known[arm] = _found(config, arm, known.get(arm, {}), frozen)
    decision, outcomes = decide(rules, known[arm], frozen), judged(known[arm], frozen)
    # Both parts of a trial, up to the halving and whole, are one record: its newest event counts.
    # But the end of the first part may be recorded after that of the whole.
    newest: dict[float, dict[str, Any]] = {}
    for event in events:
        if "multiple" not in event or event["event"] == "winner":
            continue
        last = newest.get(event["multiple"])
        if last is None or last["event"] != "ended" or event["steps"] >= last["steps"]:
            newest[event["multiple"]] = event
    trials = {m: _trial(config, arm, event, outcomes) for m, event in newest.items()}
    going = {trial.multiple for trial in decision.asked}
    halved = not decision.asked or decision.asked[0].steps == rules.steps
    for multiple, record in trials.items():
        ended_early = record.trial.steps < rules.steps and record.state in ("converged", "plateau")
        # A part that waits for the frozen trial may still continue.
        if halved and ended_early and multiple not in going and not outcomes[record.trial].waits:
            trials[multiple] = replace(record, beaten=True)
    done = {m: record.step for m, record in trials.items() if record.trial not in outcomes}
    return LadderRecord(
        arm=arm,
        trials=tuple(trials.values()),
        winner=None if decision.winner is None else trials.get(decision.winner.multiple),
        exhausted=decision.exhausted,
        waits=decision.waits,
        rung=decision.rung,
        steps_left=steps_left(rules, known[arm], frozen, done),
    )


def _found(
    config: SearchConfig, arm: Arm, outcomes: Outcomes, frozen: Outcomes | None
) -> dict[Trial, Outcome]:
    """The outcomes of a ladder, with those of trials that ended while no search ran."""
    known, rules = dict(outcomes), rules_of(config, arm)
    while True:
        asked = decide(rules, known, frozen).asked
        ends = {t: read_end(trial_folder(config.output, arm, t), t, config.ladder) for t in asked}
        if not any(ends.values()):
            return known
        known |= {trial: end[0] for trial, end in ends.items() if end is not None}


def _trial(
    config: SearchConfig, arm: Arm, event: dict[str, Any], outcomes: Outcomes
) -> TrialRecord:
    """A trial by its newest event, its outcome and its files."""
    trial = trial_of(event)
    folder = trial_folder(config.output, arm, trial)
    status, history, rows = whole_status(folder / RUN), attempts(folder), metrics_rows(folder)
    outcome = outcomes.get(trial)
    state = _state(config, folder, event, history) if outcome is None else outcome.ending
    message = event.get("message") or (None if status is None else status.message)
    if outcome is not None and outcome.ending == "below frozen":
        message = below_text(outcome)
    step = 0 if status is None else status.step
    if state == "running":  # also those since its last checkpoint
        step = min(trial.steps, max([step, *(k for k, _ in column(rows, "train/loss")[-1:])]))
    # An attempt that was killed, or runs on another machine, is only known by its last file.
    here = state == "running" and config.executor.kind == "local"
    now = time.time() if here else last_sign(folder) or 0.0
    seconds = sum(max(0.0, (now if a.ended is None else a.ended) - a.began) for a in history)
    training = [value for k, value in column(rows, "train/lddt_ca") if k <= trial.steps]
    return TrialRecord(
        arm=arm,
        trial=trial,
        alpha=arm.alpha(trial),
        folder=folder,
        state=state,
        step=step,
        score=trial_score(folder, trial.steps, config.ladder),
        train_score=statistics.mean(training[-LAST_LINES:]) if training else None,
        parameters=_parameters(folder),
        rule=None if status is None else status.rule,
        message=message,
        attempts=max(1, len(history)),
        gpu_seconds=seconds * counted_devices(config),
    )


def _state(
    config: SearchConfig, folder: Path, event: dict[str, Any], history: list[Attempt]
) -> State:
    """The state of a trial without an outcome, by its newest event."""
    if event["event"] in ("failed", "lost"):
        return "failed" if event["event"] == "failed" else "interrupted"
    if config.executor.kind == "local":
        return "running" if is_alive(folder) else "interrupted"
    # Only the search knows of jobs on other machines, unless the attempt has written its end.
    return "interrupted" if history and history[-1].ended is not None else "running"


def _parameters(folder: Path) -> int | None:
    try:
        return read_json(folder / RUN / PROVENANCE)["parameters"]["adapter"]
    except (UserError, KeyError, TypeError):  # not there yet, or damaged until the next resume
        return None

"""A search as its folder tells it, while it runs or afterwards."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import read_config
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import PROVENANCE
from esmfold_peft.runs.status import whole_status
from esmfold_peft.search.attempt import RUN, Attempt, attempts, last_sign
from esmfold_peft.search.beginning import SETTINGS
from esmfold_peft.search.costs import counted_devices
from esmfold_peft.search.executors.local import is_alive
from esmfold_peft.search.grid import Arm, arms_of, baseline_of, in_turn, rules_of, trial_folder
from esmfold_peft.search.ladder import (
    Decision,
    Outcome,
    Outcomes,
    Rules,
    Trial,
    decide,
    judged,
    steps_needed,
)
from esmfold_peft.search.ledger import arm_of, outcomes_of, read_ledger, trial_of
from esmfold_peft.search.outcomes import LAST_LINES, below_text, column, read_end, trial_score
from esmfold_peft.search.records import LadderRecord, SearchRecord, State, TrialRecord


def read_search(output: Path) -> SearchRecord:
    """All that is known of a search.

    Args:
        output: its folder.

    Raises:
        UserError: the folder is no search, or its files are damaged.
    """
    if not (output / SETTINGS).is_file():
        raise UserError(f"output: {output} is not the folder of a search (it has no {SETTINGS})")
    config = read_config(output / SETTINGS, SearchConfig)
    events = read_ledger(output)
    outcomes = outcomes_of(events)
    arms = arms_of(config)
    others = [arm for arm in dict.fromkeys(map(arm_of, events)) if arm not in arms]
    ladders: dict[Arm, LadderRecord] = {}
    for arm in in_turn([*arms, *others]):
        own = [event for event in events if arm_of(event) == arm]
        ladders[arm] = _ladder(output, config, arm, own, outcomes)
    dropped = [trial for arm in others for trial in ladders[arm].trials]
    return SearchRecord(output, config, tuple(ladders[arm] for arm in arms), tuple(dropped))


def _ladder(
    output: Path,
    config: SearchConfig,
    arm: Arm,
    events: list[dict[str, Any]],
    known: dict[Arm, dict[Trial, Outcome]],
) -> LadderRecord:
    """One ladder; adds to the outcomes of all what has ended while no search was there."""
    rules = rules_of(config, arm)
    baseline = baseline_of(config, arm)
    frozen = None if baseline is None else known.get(baseline, {})
    known[arm] = _found(output, config, arm, known.get(arm, {}), frozen)
    decision, outcomes = decide(rules, known[arm], frozen), judged(known[arm], frozen)
    # Before halving and after it a trial is one; the newest event tells of it.
    newest: dict[float, dict[str, Any]] = {}
    for event in events:
        if "multiple" not in event or event["event"] == "winner":
            continue
        # A part may be written down after the whole, whose files have its score too.
        last = newest.get(event["multiple"])
        if last is None or last["event"] != "ended" or event["steps"] >= last["steps"]:
            newest[event["multiple"]] = event
    trials = {m: _trial(output, config, arm, event, outcomes) for m, event in newest.items()}
    going = {trial.multiple for trial in decision.asked}
    for multiple, record in trials.items():
        ended_early = record.trial.steps < rules.steps and record.state in ("converged", "plateau")
        # Those of a rung that waits for the frozen trial at the halving may go on yet.
        open_yet = multiple in going or (ended_early and outcomes[record.trial].waits)
        if ended_early and not open_yet and _halved(decision, rules):
            trials[multiple] = replace(record, beaten=True)
    return LadderRecord(
        arm=arm,
        trials=tuple(trials.values()),
        winner=None if decision.winner is None else trials.get(decision.winner.multiple),
        exhausted=decision.exhausted,
        waits=decision.waits,
        steps_left=steps_needed(rules, known[arm], frozen),
    )


def _found(
    output: Path,
    config: SearchConfig,
    arm: Arm,
    outcomes: dict[Trial, Outcome],
    frozen: Outcomes | None,
) -> dict[Trial, Outcome]:
    """The outcomes of a ladder, also of trials that have ended while no search was there."""
    outcomes = dict(outcomes)
    while True:
        ends = {
            trial: read_end(trial_folder(output, arm, trial), trial, config.ladder)
            for trial in decide(rules_of(config, arm), outcomes, frozen).asked
        }
        found = {trial: end.outcome for trial, end in ends.items() if end is not None}
        if not found:
            return outcomes
        outcomes |= found


def _halved(decision: Decision, rules: Rules) -> bool:
    """Whether the ladder has chosen which trial of the rung goes on."""
    return not decision.asked or decision.asked[0].steps == rules.steps


def _trial(
    output: Path,
    config: SearchConfig,
    arm: Arm,
    event: dict[str, Any],
    outcomes: dict[Trial, Outcome],
) -> TrialRecord:
    trial = trial_of(event)
    folder = trial_folder(output, arm, trial)
    status = whole_status(folder / RUN)
    history = attempts(folder)
    outcome = outcomes.get(trial)
    state = _state(config, folder, event, history) if outcome is None else outcome.ending
    said = event.get("message") or (None if status is None else status.message)
    training = [value for step, value in column(folder, "train/lddt_ca") if step <= trial.steps]
    return TrialRecord(
        arm=arm,
        trial=trial,
        alpha=arm.alpha(trial),
        folder=folder,
        state=state,
        step=_step(folder, trial, state, 0 if status is None else status.step),
        score=trial_score(folder, trial.steps, config.ladder),
        train_score=statistics.mean(training[-LAST_LINES:]) if training else None,
        parameters=_parameters(folder),
        rule=None if status is None else status.rule,
        message=below_text(outcome) if outcome and outcome.ending == "below frozen" else said,
        attempts=max(1, len(history)),
        gpu_seconds=_seconds(folder, history, state, config) * counted_devices(config),
    )


def _state(
    config: SearchConfig, folder: Path, event: dict[str, Any], history: list[Attempt]
) -> State:
    """What a trial without an outcome does, by the newest event of it."""
    if event["event"] == "failed":
        return "failed"
    if event["event"] == "lost":
        return "interrupted"
    if config.executor.kind == "local":
        return "running" if is_alive(folder) else "interrupted"
    # Of other machines only the search itself knows, unless the attempt has said how it ended.
    return "interrupted" if history and history[-1].ended is not None else "running"


def _step(folder: Path, trial: Trial, state: State, saved: int) -> int:
    """Steps done: of a trial that runs also those since its last checkpoint."""
    if state != "running":
        return saved
    logged = [step for step, _ in column(folder, "train/loss")]
    return min(trial.steps, max([saved, *logged[-1:]]))


def _parameters(folder: Path) -> int | None:
    try:
        return read_json(folder / RUN / PROVENANCE)["parameters"]["adapter"]
    except (UserError, KeyError, TypeError):  # not there yet, or damaged: the next resume mends it
        return None


def _seconds(folder: Path, history: list[Attempt], state: State, config: SearchConfig) -> float:
    """Wall time of all attempts; one that was killed ended with its last file."""
    total = 0.0
    for attempt in history:
        ended = attempt.ended
        if ended is None and state == "running" and config.executor.kind == "local":
            ended = time.time()
        if ended is None:  # killed; or on another machine, and its last file is what is known
            ended = last_sign(folder) or attempt.began
        total += max(0.0, ended - attempt.began)
    return total

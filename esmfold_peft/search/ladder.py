"""The α-halving ladder as a pure function: outcomes in, the next trials or the winner out.

LoRTA (arXiv 2410.04060, appendix E.4) trains α = 256·r and 128·r and keeps the better; while both
diverge, both are divided by four. Nothing here knows of files, processes or time, so that a search
that was killed at any point decides again what it has decided before.

DISCREPANCY: in the paper a trial is out if it diverges. Ours is out too if it does not beat the
frozen language model (`ladder.beat_frozen`): a large α can destroy the language model while the
loss stays finite, and the trunk then learns to do without it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from esmfold_peft.config.search import LadderConfig

Ending = Literal["converged", "plateau", "diverged", "below frozen"]

OUT = ("diverged", "below frozen")
"""Endings of trials that the ladder does not keep."""


@dataclass(frozen=True, order=True)
class Trial:
    """One training that the ladder asks for.

    Attributes:
        multiple: α / rank; 1 where there is no α.
        steps: optimizer steps that it is to have. A trial of fewer is gone on with, not repeated.
    """

    multiple: float
    steps: int


@dataclass(frozen=True)
class Outcome:
    """How a trial has ended.

    Attributes:
        ending: converged and plateau have all their steps, diverged was ended before. Below frozen
            is a verdict (`judged`) on a trial that has all its steps.
        score: lDDT-Cα of the validation chains, 0 to 1; None if there is none.
        to_beat: score of the frozen trial at the same step; None where nothing is to be beaten.
        waits: the frozen trial has not come to this step yet.
    """

    ending: Ending
    score: float | None = None
    to_beat: float | None = None
    waits: bool = False

    @property
    def out(self) -> bool:
        """Whether the ladder does not keep the trial."""
        return self.ending in OUT

    @property
    def merit(self) -> float:
        """The score; one that is missing is worse than any."""
        return -1.0 if self.score is None or math.isnan(self.score) else self.score


Outcomes = Mapping[Trial, Outcome]
"""Of the trials of a ladder that have ended; one that was interrupted has no outcome."""


@dataclass(frozen=True)
class Rules:
    """A ladder.

    Attributes:
        rungs: multiples that are tried together, in order.
        steps: of a whole trial.
        halve_at: steps after which only the best of a rung goes on; None: all go to the end.
    """

    rungs: tuple[tuple[float, ...], ...]
    steps: int
    halve_at: int | None = None


@dataclass(frozen=True)
class Decision:
    """What follows from the outcomes so far.

    Attributes:
        asked: trials to be run, or running, in order; empty at the end, and while the ladder waits.
        rung: index of the rung that they belong to, or that decided.
        winner: the trial that is kept.
        waits: nothing can be asked for before the frozen trial has ended.
    """

    asked: tuple[Trial, ...]
    rung: int
    winner: Trial | None = None
    waits: bool = False

    @property
    def exhausted(self) -> bool:
        """Whether all trials are out, down to the floor."""
        return not self.asked and self.winner is None and not self.waits


def rungs_of(config: LadderConfig) -> tuple[tuple[float, ...], ...]:
    """The multiples of all rungs, down to the last whose multiples all reach the floor."""
    # 0.3 / 3 is 0.09999999999999999, and is to be the 0.1 of the floor or of another rung.
    known = [config.floor, *config.multiples]

    def divided(multiple: float) -> float:
        exact = multiple / config.factor
        return next((value for value in known if math.isclose(value, exact)), exact)

    rungs = [config.multiples]
    while min(lower := tuple(map(divided, rungs[-1]))) >= config.floor:
        rungs.append(lower)
        known += lower
    return tuple(rungs)


def judged(outcomes: Outcomes, frozen: Outcomes | None) -> dict[Trial, Outcome]:
    """The outcomes of a ladder, set against the frozen trial at the same step.

    A trial whose score is not above the frozen one's is out. Nothing is held against a trial where
    the frozen one has diverged or has no score.

    Args:
        outcomes: as the trials have ended.
        frozen: those of the frozen ladder of the same seed; None: there is nothing to beat.
    """
    if frozen is None:
        return dict(outcomes)
    diverged = any(outcome.ending == "diverged" for outcome in frozen.values())
    # The frozen model has no α: its multiple is 1.
    beside = {trial.steps: frozen.get(Trial(1.0, trial.steps)) for trial in outcomes}
    return {t: _judged(o, beside[t.steps], diverged) for t, o in outcomes.items()}


def _judged(outcome: Outcome, frozen: Outcome | None, diverged: bool) -> Outcome:
    if outcome.ending == "diverged":
        return outcome
    if frozen is None:
        return outcome if diverged else replace(outcome, waits=True)
    if frozen.ending == "diverged" or frozen.merit < 0:
        return outcome
    below = outcome.merit <= frozen.merit
    ending = "below frozen" if below else outcome.ending
    return replace(outcome, ending=ending, to_beat=frozen.score)


def decide(rules: Rules, outcomes: Outcomes, frozen: Outcomes | None = None) -> Decision:
    """The next trials, or the winner.

    A trial that has diverged or does not beat the frozen one is out. Of those of a rung that are
    not, the better lDDT-Cα decides, on a plateau or not; on a tie the multiple that was asked for
    first. Only a rung of which all are out is divided. While the frozen trial has not ended, a rung
    that it decides on waits.

    Args:
        rules: the ladder.
        outcomes: of its trials.
        frozen: of the frozen ladder of the same seed; None: only divergence counts.
    """
    known = judged(outcomes, frozen)
    for rung in range(len(rules.rungs)):
        decision = _decide_rung(rules, rung, known)
        if decision is not None:
            return decision
    return Decision((), len(rules.rungs) - 1)


def steps_needed(
    rules: Rules, outcomes: Outcomes, frozen: Outcomes | None = None
) -> tuple[int, int]:
    """Optimizer steps that are left at least and at most, by trials that have not ended.

    At least: those asked for now, none of which is out. At most: all down to the floor, none of
    which diverges before its end; below a rung with a survivor there are none. What a trial has
    done before halving is not counted again.

    Args:
        rules: the ladder.
        outcomes: of its trials.
        frozen: of the frozen ladder of the same seed; None: only divergence counts.
    """
    decision, known = decide(rules, outcomes, frozen), judged(outcomes, frozen)
    if not decision.asked and not decision.waits:
        return 0, 0
    rung = rules.rungs[decision.rung]
    whole = [known[t] for t in (Trial(m, rules.steps) for m in rung) if t in known]
    survives = any(not outcome.out and not outcome.waits for outcome in whole)
    rungs = rules.rungs[decision.rung : decision.rung + 1 if survives else None]
    multiples = {multiple for rung in rungs for multiple in rung}
    most = sum(rules.steps - _done(rules, m, known) for m in multiples)
    return _least(rules, decision, known), most


def _least(rules: Rules, decision: Decision, known: Outcomes) -> int:
    """Steps of the trials asked for, and of the one that goes on after halving."""
    if decision.waits:
        alive = [m for m in rules.rungs[decision.rung] if not _is_out(rules, m, known)]
        return min(rules.steps - _done(rules, m, known) for m in alive)
    more = rules.steps - decision.asked[0].steps
    done = sum(_done(rules, trial.multiple, known) for trial in decision.asked)
    return sum(trial.steps for trial in decision.asked) - done + more


def _done(rules: Rules, multiple: float, known: Outcomes) -> int:
    """Steps of a multiple that need not be run any more; all where it is out."""
    if _is_out(rules, multiple, known):
        return rules.steps
    return max((t.steps for t in _parts(rules, multiple) if t in known), default=0)


def _is_out(rules: Rules, multiple: float, known: Outcomes) -> bool:
    return any(known[t].out for t in _parts(rules, multiple) if t in known)


def _parts(rules: Rules, multiple: float) -> tuple[Trial, Trial]:
    """A trial before halving, and whole."""
    return Trial(multiple, rules.halve_at or rules.steps), Trial(multiple, rules.steps)


def _decide_rung(rules: Rules, rung: int, known: Outcomes) -> Decision | None:
    """What a rung asks for or keeps; None where all its trials are out."""
    first = [_parts(rules, multiple)[0] for multiple in rules.rungs[rung]]
    if missing := tuple(trial for trial in first if trial not in known):
        return Decision(missing, rung)
    alive = _ranked(first, known)
    if any(known[trial].waits for trial in alive):
        return Decision((), rung, waits=True)
    # One that goes on after halving may be out yet; then the next best does.
    for trial in (Trial(trial.multiple, rules.steps) for trial in alive):
        if trial not in known:
            return Decision((trial,), rung)
        if known[trial].waits:
            return Decision((), rung, waits=True)
        if not known[trial].out:
            return Decision((), rung, trial)
    return None


def _ranked(trials: Iterable[Trial], known: Outcomes) -> list[Trial]:
    """Those that are not out, the best first."""
    alive = [trial for trial in trials if not known[trial].out]
    # Stable, so that of equals the first asked for is the first kept.
    return sorted(alive, key=lambda trial: known[trial].merit, reverse=True)

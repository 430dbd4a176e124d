"""The α-halving ladder as a pure function: outcomes in, the next trials or the winner out.

LoRTA (arXiv 2410.04060, appendix E.4) trains α = 256·r and 128·r and keeps the better; while both
diverge, both are divided by four. Nothing here knows of files, processes or time, so that a search
that was killed at any point decides again what it has decided before.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from esmfold_peft.config.search import LadderConfig

Ending = Literal["converged", "plateau", "diverged"]


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
        ending: converged and plateau have all their steps, diverged was ended before.
        score: lDDT-Cα of the validation chains, 0 to 1; None if there is none.
    """

    ending: Ending
    score: float | None = None


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
        asked: trials to be run, or running, in order; empty at the end.
        rung: index of the rung that they belong to, or that decided.
        winner: the trial that is kept.
    """

    asked: tuple[Trial, ...]
    rung: int
    winner: Trial | None = None

    @property
    def exhausted(self) -> bool:
        """Whether all has diverged down to the floor."""
        return not self.asked and self.winner is None


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


def decide(rules: Rules, outcomes: Mapping[Trial, Outcome]) -> Decision:
    """The next trials, or the winner.

    A trial that has diverged is out. Of those of a rung that have not, a converged one is before
    one on a plateau, and the better lDDT-Cα decides among equals; on a tie the multiple that was
    asked for first. Only a rung of which all have diverged is divided.

    Args:
        rules: the ladder.
        outcomes: of the trials that have ended; one that was interrupted has no outcome.
    """
    rung = -1
    for rung, multiples in enumerate(rules.rungs):
        decided = _decide_rung(rules, multiples, outcomes)
        if isinstance(decided, Trial):
            return Decision((), rung, decided)
        if decided:
            return Decision(decided, rung)
    return Decision((), rung)


def steps_needed(rules: Rules, outcomes: Mapping[Trial, Outcome]) -> tuple[int, int]:
    """Optimizer steps that are left at least and at most, by trials that have not ended.

    At least: those asked for now, none of which diverges. At most: all down to the floor, none of
    which diverges before its end; below a rung with a survivor there are none. What a trial has
    done before halving is not counted again.

    Args:
        rules: the ladder.
        outcomes: of the trials that have ended.
    """
    decision = decide(rules, outcomes)
    if not decision.asked:
        return 0, 0
    more = rules.steps - decision.asked[0].steps  # of the one that goes on after halving
    done = sum(_done(rules, trial.multiple, outcomes) for trial in decision.asked)
    least = sum(trial.steps for trial in decision.asked) - done + more
    whole = [Trial(multiple, rules.steps) for multiple in rules.rungs[decision.rung]]
    survives = any(outcomes[t].ending != "diverged" for t in whole if t in outcomes)
    rungs = rules.rungs[decision.rung : decision.rung + 1 if survives else None]
    multiples = {multiple for rung in rungs for multiple in rung}
    return least, sum(rules.steps - _done(rules, m, outcomes) for m in multiples)


def _done(rules: Rules, multiple: float, outcomes: Mapping[Trial, Outcome]) -> int:
    """Steps of a multiple that need not be run any more; all where it has diverged."""
    parts = (rules.steps, rules.halve_at or rules.steps)
    ended = [outcomes[t] for t in (Trial(multiple, steps) for steps in parts) if t in outcomes]
    if any(outcome.ending == "diverged" for outcome in ended):
        return rules.steps
    return max((steps for steps in parts if Trial(multiple, steps) in outcomes), default=0)


def _decide_rung(
    rules: Rules, multiples: tuple[float, ...], outcomes: Mapping[Trial, Outcome]
) -> Trial | tuple[Trial, ...]:
    """The winner of a rung, its trials that have not ended, or nothing where all have diverged."""
    trials = [Trial(multiple, rules.steps) for multiple in multiples]
    if rules.halve_at is not None and len(multiples) > 1:
        first = [Trial(multiple, rules.halve_at) for multiple in multiples]
        if missing := _missing(first, outcomes):
            return missing
        # One that goes on may diverge yet; then the next best does.
        trials = [Trial(trial.multiple, rules.steps) for trial in _ranked(first, outcomes)]
        for trial in trials:
            if trial not in outcomes:
                return (trial,)
            if outcomes[trial].ending != "diverged":
                return trial
        return ()
    if missing := _missing(trials, outcomes):
        return missing
    alive = _ranked(trials, outcomes)
    return alive[0] if alive else ()


def _missing(trials: Iterable[Trial], outcomes: Mapping[Trial, Outcome]) -> tuple[Trial, ...]:
    return tuple(trial for trial in trials if trial not in outcomes)


def _ranked(trials: Iterable[Trial], outcomes: Mapping[Trial, Outcome]) -> list[Trial]:
    """Those that have not diverged, the best first."""
    alive = [trial for trial in trials if outcomes[trial].ending != "diverged"]

    def merit(trial: Trial) -> tuple[bool, float]:
        score = outcomes[trial].score
        if score is None or math.isnan(score):
            score = -1.0  # worse than any
        return outcomes[trial].ending == "converged", score

    return sorted(alive, key=merit, reverse=True)  # stable: first asked, first kept

"""The α-halving ladder as a pure function: outcomes in, the next trials or the winner out.

LoRTA (arXiv 2410.04060, appendix E.4) trains α = 256·r and 128·r and keeps the better. If both
diverge, the paper says that "α was halved" and trains the next lower pair, 64·r and 32·r. Halving
both would train 128·r again: a pair spans two halvings, so all α are divided by four
(`ladder.factor`).

DISCREPANCY: in the paper a trial is out if it diverges. Ours is out too if it does not beat the
frozen language model (`ladder.beat_frozen`): a large α can destroy the language model while the
loss stays finite, and the trunk then learns to do without it.

Nothing here knows of files, processes or time. A search that was killed decides again as before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from esmfold_peft.config.search import LadderConfig

Ending = Literal["converged", "plateau", "diverged", "below frozen"]

OUT = ("diverged", "below frozen")
"""Endings of trials that the ladder does not keep."""


@dataclass(frozen=True, order=True)
class Trial:
    """One training: α / rank (1 where there is no α), and its optimizer steps in all.

    A trial that has done fewer steps is resumed, not repeated.
    """

    multiple: float
    steps: int


@dataclass(frozen=True)
class Outcome:
    """How a trial has ended.

    Attributes:
        ending: a converged or plateau trial has done all its steps; a diverged one was ended early.
            `judged` makes a trial with all its steps below frozen.
        score: lDDT-Cα of the validation chains, 0 to 1; None if there is none.
        to_beat: score of the frozen trial at the same step; None if there is nothing to beat.
        waits: the frozen trial has not reached this step yet.
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
        """The score; a missing one is worse than any."""
        return -1.0 if self.score is None or math.isnan(self.score) else self.score


Outcomes = Mapping[Trial, Outcome]
"""Of the trials of a ladder that have ended; an interrupted trial has no outcome."""


@dataclass(frozen=True)
class Rules:
    """A ladder: rungs of multiples that are tried together, and the steps of a whole trial.

    After `halve_at` steps only the best trial of a rung continues; None: all do.
    """

    rungs: tuple[tuple[float, ...], ...]
    steps: int
    halve_at: int | None = None

    def parts(self, multiple: float) -> tuple[Trial, Trial]:
        """A trial up to the halving, and whole."""
        return Trial(multiple, self.halve_at or self.steps), Trial(multiple, self.steps)


@dataclass(frozen=True)
class Decision:
    """What follows from the outcomes so far.

    Attributes:
        asked: trials to run, or running, in order; empty at the end and while the ladder waits.
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


class StepsLeft(NamedTuple):
    """Optimizer steps (or their seconds) until the end of a ladder.

    Attributes:
        least: if no trial that is asked for now is out.
        most: if all rungs down to the floor are tried, by trials that are out at their end.
        least_path: as least, if trials of a rung run at the same time.
        most_path: as most, if trials of a rung run at the same time.
    """

    least: float = 0
    most: float = 0
    least_path: float = 0
    most_path: float = 0


NO_STEPS = StepsLeft()


def rungs_of(config: LadderConfig) -> tuple[tuple[float, ...], ...]:
    """The multiples of all rungs, down to the last whose multiples all reach the floor."""
    # 0.3 / 3 is 0.09999999999999999, but must be the 0.1 of the floor or of another rung.
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
    """The outcomes of a ladder, compared with the frozen trial at the same step.

    A trial whose score is not above the frozen one's is out. Where the frozen trial has diverged or
    has no score, only divergence counts.

    Args:
        outcomes: of its trials.
        frozen: of the frozen ladder of the same seed; None: there is nothing to beat.
    """
    if frozen is None:
        return dict(outcomes)
    diverged = any(outcome.ending == "diverged" for outcome in frozen.values())
    # The frozen model has no α: its multiple is 1.
    return {t: _judged(o, frozen.get(Trial(1.0, t.steps)), diverged) for t, o in outcomes.items()}


def _judged(outcome: Outcome, frozen: Outcome | None, diverged: bool) -> Outcome:
    if outcome.ending == "diverged":
        return outcome
    if frozen is None:
        return outcome if diverged else replace(outcome, waits=True)
    if frozen.ending == "diverged" or frozen.merit < 0:
        return outcome
    ending = "below frozen" if outcome.merit <= frozen.merit else outcome.ending
    return replace(outcome, ending=ending, to_beat=frozen.score)


def decide(rules: Rules, outcomes: Outcomes, frozen: Outcomes | None = None) -> Decision:
    """The next trials, or the winner.

    Of the trials of a rung that are not out, the one with the best lDDT-Cα wins, on a plateau or
    not; on a tie the one that was asked for first. Only if all are out, the next rung is tried. A
    rung that the frozen trial decides on waits until that has ended. See `judged` for `frozen`.
    """
    known = judged(outcomes, frozen)
    decisions = (_decide_rung(rules, rung, known) for rung in range(len(rules.rungs)))
    end = Decision((), len(rules.rungs) - 1)
    return next((decision for decision in decisions if decision is not None), end)


def _decide_rung(rules: Rules, rung: int, known: Outcomes) -> Decision | None:
    """What a rung asks for or keeps; None where all its trials are out."""
    first = [rules.parts(multiple)[0] for multiple in rules.rungs[rung]]
    if missing := tuple(trial for trial in first if trial not in known):
        return Decision(missing, rung)
    alive = [trial for trial in first if not known[trial].out]
    if any(known[trial].waits for trial in alive):
        return Decision((), rung, waits=True)
    # The sort is stable: of equals the first asked for is kept. A trial may yet be out after the
    # halving; then the next best continues.
    for part in sorted(alive, key=lambda trial: known[trial].merit, reverse=True):
        trial = Trial(part.multiple, rules.steps)
        if trial not in known:
            return Decision((trial,), rung)
        if known[trial].waits:
            return Decision((), rung, waits=True)
        if not known[trial].out:
            return Decision((), rung, trial)
    return None


def steps_left(
    rules: Rules,
    outcomes: Outcomes,
    frozen: Outcomes | None = None,
    done: Mapping[float, int] | None = None,
) -> StepsLeft:
    """Optimizer steps until the end of a ladder.

    No rung below one with a survivor is tried. A trial that continues after the halving has only
    the steps after it left. `done` has the steps of trials that have not ended, by multiple.
    """
    decision, known = decide(rules, outcomes, frozen), judged(outcomes, frozen)
    if not decision.asked and not decision.waits:
        return NO_STEPS

    def is_out(multiple: float) -> bool:
        return any(known[trial].out for trial in rules.parts(multiple) if trial in known)

    def left(multiple: float, steps: int = rules.steps) -> int:
        ended = [trial.steps for trial in rules.parts(multiple) if trial in known]
        so_far = max([(done or {}).get(multiple, 0), *ended])
        return 0 if is_out(multiple) else max(0, steps - so_far)

    rung = rules.rungs[decision.rung]
    whole = [known[t] for t in (Trial(m, rules.steps) for m in rung) if t in known]
    survives = any(not outcome.out and not outcome.waits for outcome in whole)
    rungs = rules.rungs[decision.rung : decision.rung + 1 if survives else None]
    most = sum(map(left, {multiple for rung in rungs for multiple in rung}))
    # With halving, trials of a rung may continue one after the other.
    most_path = most if rules.halve_at else sum(max(map(left, rung)) for rung in rungs)
    if decision.waits:
        least = min(left(multiple) for multiple in rung if not is_out(multiple))
        return StepsLeft(least, most, least, most_path)
    goes_on = rules.steps - decision.asked[0].steps
    now = [left(trial.multiple, trial.steps) for trial in decision.asked]
    return StepsLeft(sum(now) + goes_on, most, max(now) + goes_on, most_path)

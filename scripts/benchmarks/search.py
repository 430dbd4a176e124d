"""The α-halving search on synthetic trials: is its logic right, and what does giving up early save?

    python scripts/benchmarks/search.py [--ladders 5000] [--output search_simulated.json]

Nothing is trained: the endings of trials are drawn, and GPU-hours are steps times an assumed
duration of a step. A ladder is the paper's (256·r and 128·r, divided by four while both diverge,
down to r / 2) with trials of 850,000 steps. What is assumed of an adapter:

- Its trials diverge above some α / r, which is log-uniform between 1/4 and 512.
- They diverge after a number of steps that is (each is a row of the table)
  early: log-uniform between 10 and 8,500, a hundredth of a trial;
  anytime: log-uniform between 10 and 850,000;
  late: uniform over the trial.
- The others end with lDDT-Cα 0.66, less 0.02 for each factor of two below the largest α / r that
  does not diverge, with normal noise of 0.01; one in twenty ends on a plateau, which changes
  nothing. When halving compares them, their score is 0.1 lower, with further noise of 0.02. All
  beat the frozen model.

Each ladder is climbed in three ways: every trial does all its steps, as without a guard; a trial
that has diverged ends at once, as in this project's searches; the same with halving (only the
better of a pair continues after a tenth of the steps). All rows have the same adapters. Trials end
in a random order, and some are interrupted. Every ladder is checked: it must ask for the paper's
trials, for none twice, and keep the right one.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from measuring import command_line, table, write_report
from rich.console import Console

from esmfold_peft.config import LadderConfig
from esmfold_peft.search.ladder import Outcome, Rules, Trial, decide, rungs_of

STEPS = 850_000
HALVE_AT = STEPS // 10
RUNGS = rungs_of(LadderConfig())
SECONDS_PER_STEP = 13.34
ASSUMED = (
    f"assumed; the default of {SECONDS_PER_STEP} is the mean step of the paper's configuration (32"
    " chains, 0 to 3 recycles) measured on one H100 by scripts/gpu_check.py; reading, validation"
    " and saving are not in it"
)

INTERRUPTED = 0.1
"""Share of attempts that come to no end."""

SYNTHETIC = "synthetic: endings of trials are drawn as the script describes, nothing was trained"

WHEN: dict[str, Callable[[random.Random], float]] = {
    "early": lambda chance: log_uniform(chance, 10, STEPS / 100),
    "anytime": lambda chance: log_uniform(chance, 10, STEPS),
    "late": lambda chance: chance.uniform(1, STEPS),
}
"""Steps after which a trial that diverges does so."""


@dataclass(frozen=True)
class Fate:
    """What becomes of the trials of one α.

    Attributes:
        diverges: the step of it; None if it does not.
        whole: the ending of a trial with all steps that does not diverge.
        part: the same where halving looks at it.
    """

    diverges: int | None
    whole: Outcome
    part: Outcome

    def outcome(self, steps: int) -> Outcome:
        """How a trial of so many steps ends."""
        if self.diverges is not None and self.diverges <= steps:
            return Outcome("diverged")
        return self.whole if steps == STEPS else self.part


Fates = dict[float, Fate]
"""By α / rank."""


@dataclass(frozen=True)
class Climbed:
    """A ladder to its end.

    Attributes:
        asked: all trials, in the order in which they were asked for.
        kept: α / rank of the winner; None where all have diverged.
    """

    asked: tuple[Trial, ...]
    kept: float | None

    def steps(self, fates: Fates, guarded: bool) -> int:
        """Optimizer steps of all trials; a part before halving is not done again.

        If `guarded`, a trial that has diverged ends at once.
        """
        longest = {trial.multiple: trial.steps for trial in sorted(self.asked)}
        ends = {m: fates[m].diverges if guarded else None for m in longest}
        return sum(min(steps, ends[m] or steps) for m, steps in longest.items())


def main(words: list[str] | None = None) -> None:
    """Simulates, prints a table, and writes all numbers."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--ladders", type=int, default=5000, help="for each row of the table")
    add("--seed", type=int, default=0)
    add("--seconds_per_step", type=float, default=SECONDS_PER_STEP, help=ASSUMED)
    args = parser.parse_args(words)
    rows = {when: simulate(when, args) for when in WHEN}
    trial = STEPS * args.seconds_per_step / 3600
    cells = (
        (
            name,
            f"{row['trials']:.1f}",
            f"{row['hours_all_steps']:,.0f}",
            f"{row['hours_early_divergence']:,.0f}",
            f"{row['saved_by_early_divergence']:.0%}",
            f"{row['hours_with_halving']:,.0f}",
            f"{row['saved_with_halving']:.0%}",
            f"{row['halving_keeps_the_same']:.0%}",
        )
        for name, row in rows.items()
    )
    counts = ("trials", "all steps", "early end", "saved", "halving", "saved", "same α")
    title = f"GPU-hours of a ladder, mean over {args.ladders:,}"
    drawn = table(("diverges", *counts), cells, title)
    drawn.caption = f"synthetic outcomes; a whole trial is {trial:,.0f} GPU-hours, by assumption"
    Console(highlight=False).print(drawn)
    args.steps, args.halve_at, args.rungs = STEPS, HALVE_AT, RUNGS
    args.seconds_per_step_is = ASSUMED
    found = {
        "outcomes": SYNTHETIC,
        "unit": "GPU-hours of a ladder, mean over ladders",
        "divergence": rows,
    }
    write_report(args, found)


def simulate(when: str, args: argparse.Namespace) -> dict[str, float]:
    """Climbs ladders whose trials diverge at such a time, checks each, and gives means."""
    adapters, order = random.Random(args.seed), random.Random(f"order {args.seed}")
    plain, halving = Rules(RUNGS, STEPS), Rules(RUNGS, STEPS, HALVE_AT)
    unguarded, guarded, halved, trials, losses, same = [], [], [], [], [], 0
    for _ in range(args.ladders):
        fates = draw_fates(adapters, WHEN[when])
        one, other = climb(plain, fates, order), climb(halving, fates, order)
        check(one, by_the_rule(fates, STEPS))
        check(other, by_the_rule(fates, HALVE_AT))
        unguarded.append(one.steps(fates, guarded=False))
        guarded.append(one.steps(fates, guarded=True))
        halved.append(other.steps(fates, guarded=True))
        trials.append(len(one.asked))
        same += one.kept == other.kept
        if one.kept is not None and other.kept is not None:
            losses.append(score(fates, one.kept) - score(fates, other.kept))
    hours = args.seconds_per_step / 3600
    without, early, halves = (
        hours * statistics.fmean(steps) for steps in (unguarded, guarded, halved)
    )
    return {
        "trials": statistics.fmean(trials),
        "without_a_survivor": 1 - len(losses) / args.ladders,
        "hours_all_steps": without,
        "hours_early_divergence": early,
        "hours_with_halving": halves,
        "saved_by_early_divergence": 1 - early / without,
        "saved_with_halving": 1 - halves / without,
        "halving_keeps_the_same": same / args.ladders,
        "halving_costs_lddt_ca": statistics.fmean(losses) if losses else 0.0,
    }


def draw_fates(chance: random.Random, when: Callable[[random.Random], float]) -> Fates:
    """What becomes of each α / rank with one adapter."""
    limit = log_uniform(chance, 1 / 4, 512)
    fates = {}
    for multiple in (multiple for rung in RUNGS for multiple in rung):
        value = 0.66 - 0.02 * math.log2(max(1.0, limit / multiple)) + chance.gauss(0, 0.01)
        ending = "plateau" if chance.random() < 0.05 else "converged"
        part = value - 0.1 + chance.gauss(0, 0.02)
        step = math.ceil(when(chance))  # drawn for all, so that rows differ in nothing else
        diverges = step if multiple > limit else None
        fates[multiple] = Fate(diverges, Outcome(ending, value), Outcome("converged", part))
    return fates


def log_uniform(chance: random.Random, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return math.exp(chance.uniform(math.log(low), math.log(high)))


def climb(rules: Rules, fates: Fates, chance: random.Random) -> Climbed:
    """Asks the ladder what to run until it has decided; trials end in any order, or not yet."""
    asked: list[Trial] = []
    ended: dict[Trial, Outcome] = {}
    while (decision := decide(rules, ended)).asked:
        asked += [trial for trial in decision.asked if trial not in asked]
        trial = chance.choice(decision.asked)
        if trial in ended:
            raise SystemExit(f"{trial} was asked for again")
        if chance.random() >= INTERRUPTED:
            ended[trial] = fates[trial.multiple].outcome(trial.steps)
    return Climbed(tuple(asked), decision.winner.multiple if decision.winner else None)


def by_the_rule(fates: Fates, first: int) -> Climbed:
    """The paper's rule, stated apart from the ladder that is checked: pair after pair.

    Both have their `first` steps. If these are not all, only the better one continues.
    """
    asked: list[Trial] = []
    for pair in ((256 / 4**k, 128 / 4**k) for k in range(5)):
        asked += [Trial(multiple, first) for multiple in pair]
        alive = [m for m in pair if fates[m].outcome(first).ending != "diverged"]
        alive.sort(key=lambda m: fates[m].outcome(first).score or 0.0, reverse=True)
        for multiple in alive:
            asked += [Trial(multiple, STEPS)] if first < STEPS else []
            if fates[multiple].diverges is None:
                return Climbed(tuple(asked), multiple)
    return Climbed(tuple(asked), None)


def check(found: Climbed, expected: Climbed) -> None:
    """Raises an error if a ladder was not climbed by the rule."""
    if found != expected:
        raise SystemExit(f"the rule gives {expected}, the ladder {found}")
    if len(set(found.asked)) < len(found.asked):
        raise SystemExit(f"a trial was asked for twice: {found.asked}")


def score(fates: Fates, multiple: float) -> float:
    """Of the whole trial."""
    return fates[multiple].whole.score or 0.0


if __name__ == "__main__":
    main()

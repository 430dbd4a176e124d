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
- Others have learnt by the end to lDDT-Cα 0.66, less 0.02 for each factor of two below the
  largest that does not diverge, with normal noise of 0.01; one in twenty ends on a plateau, which
  changes nothing. What they have where halving looks at them is 0.1 lower, with further noise of
  0.02. All beat the frozen model.

Each ladder is climbed in three ways: every trial has all its steps, as without a guard; a trial
that has diverged ends at once, as this project's searches do; the same with halving (only the
better of a pair goes on beyond a tenth of the steps). All rows have the same adapters. Trials end
in a random order, and now and then one is interrupted. Of every ladder it is checked that the
trials asked for are the paper's, none twice, and that the right one is kept.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import circumstances
from rich.console import Console
from rich.table import Table

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

        Args:
            fates: of the trials.
            guarded: a trial that has diverged ends at once.
        """
        longest = {trial.multiple: trial.steps for trial in sorted(self.asked)}
        ends = {m: fates[m].diverges if guarded else None for m in longest}
        return sum(min(steps, ends[m] or steps) for m, steps in longest.items())


def main(words: list[str] | None = None) -> None:
    """Simulates, prints a table, and writes all numbers."""
    args = parser().parse_args(words)
    rows = {when: simulate(when, args) for when in WHEN}
    found = {
        "outcomes": SYNTHETIC,
        "settings": {
            "ladders": args.ladders,
            "seed": args.seed,
            "steps": STEPS,
            "seconds_per_step": args.seconds_per_step,
            "seconds_per_step_is": ASSUMED,
            "halve_at": HALVE_AT,
            "rungs": RUNGS,
        },
        "circumstances": circumstances(torch.device("cpu")),
        "unit": "GPU-hours of a ladder, mean over ladders",
        "divergence": rows,
    }
    Console(highlight=False).print(table(rows, args))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    made.add_argument("--ladders", type=int, default=5000, help="for each row of the table")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--seconds_per_step", type=float, default=SECONDS_PER_STEP, help=ASSUMED)
    made.add_argument("--output", type=Path, help="JSON file for all numbers")
    return made


def simulate(when: str, args: argparse.Namespace) -> dict[str, float]:
    """Climbs ladders, checks each, and gives means over them.

    Args:
        when: trials diverge, by name.
        args: see the command line.
    """
    adapters, order = random.Random(args.seed), random.Random(f"order {args.seed}")
    plain, halving = Rules(RUNGS, STEPS), Rules(RUNGS, STEPS, HALVE_AT)
    unguarded, guarded, halved, trials, losses, same = [], [], [], [], [], 0
    for _ in range(args.ladders):
        fates = draw_fates(adapters, WHEN[when])
        one, other = climb(plain, fates, order), climb(halving, fates, order)
        check(one, by_the_rule(fates))
        check(other, by_the_rule_with_halving(fates))
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


def by_the_rule(fates: Fates) -> Climbed:
    """The paper's rule, stated apart from the ladder that is checked: pair after pair."""
    asked: list[Trial] = []
    for high, low in ((256 / 4**k, 128 / 4**k) for k in range(5)):
        asked += [Trial(high, STEPS), Trial(low, STEPS)]
        alive = [multiple for multiple in (high, low) if fates[multiple].diverges is None]
        if alive:
            return Climbed(tuple(asked), max(alive, key=lambda m: score(fates, m)))
    return Climbed(tuple(asked), None)


def by_the_rule_with_halving(fates: Fates) -> Climbed:
    """The same where both have a tenth of their steps first, and then the better one goes on."""
    asked: list[Trial] = []
    for pair in ((256 / 4**k, 128 / 4**k) for k in range(5)):
        asked += [Trial(multiple, HALVE_AT) for multiple in pair]
        alive = [m for m in pair if fates[m].outcome(HALVE_AT).ending != "diverged"]
        for multiple in sorted(alive, key=lambda m: fates[m].part.score or 0.0, reverse=True):
            asked.append(Trial(multiple, STEPS))
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


def table(rows: dict[str, dict[str, float]], args: argparse.Namespace) -> Table:
    """A row for each way to diverge."""
    trial = STEPS * args.seconds_per_step / 3600
    made = Table(
        title=f"GPU-hours of a ladder, mean over {args.ladders:,}",
        caption=f"synthetic outcomes; a whole trial is {trial:,.0f} GPU-hours, by assumption",
    )
    made.add_column("diverges")
    for column in ("trials", "all steps", "early end", "saved", "halving", "saved", "same α"):
        made.add_column(column, justify="right")
    for name, row in rows.items():
        made.add_row(
            name,
            f"{row['trials']:.1f}",
            f"{row['hours_all_steps']:,.0f}",
            f"{row['hours_early_divergence']:,.0f}",
            f"{row['saved_by_early_divergence']:.0%}",
            f"{row['hours_with_halving']:,.0f}",
            f"{row['saved_with_halving']:.0%}",
            f"{row['halving_keeps_the_same']:.0%}",
        )
    return made


if __name__ == "__main__":
    main()

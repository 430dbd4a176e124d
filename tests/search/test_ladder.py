"""The ladder against the rule as the paper states it, for whatever may happen to its trials."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.config import LadderConfig
from esmfold_peft.search.ladder import (
    Decision,
    Outcome,
    Rules,
    StepsLeft,
    Trial,
    decide,
    rungs_of,
    steps_left,
)

STEPS, HALF = 100, 10
PAPER = rungs_of(LadderConfig())
many = settings(deadline=None, max_examples=100)


def needed(*given) -> tuple[float, float]:
    """Steps that are left at least and at most; see `steps_left`."""
    return steps_left(*given)[:2]


@dataclass(frozen=True)
class Fate:
    """How a multiple ends, whoever runs it.

    Attributes:
        diverges: at this step; None if it never does.
        ending: of a whole trial that does not diverge.
        score: of the whole trial.
        early: score at HALF.
    """

    diverges: int | None = None
    ending: str = "converged"
    score: float | None = 0.5
    early: float | None = 0.3

    def outcome(self, steps: int) -> Outcome:
        """How a trial of so many steps ends."""
        if self.diverges is not None and self.diverges <= steps:
            return Outcome("diverged", self.score)
        return Outcome(self.ending, self.score if steps == STEPS else self.early)

    def cost(self, steps: int) -> int:
        """Optimizer steps that it does, of so many."""
        return min(steps, self.diverges or steps)


@dataclass(frozen=True)
class Case:
    """A ladder in exact numbers, and the fate of every scale that it may reach."""

    multiples: tuple[Fraction, ...]
    factor: Fraction
    floor: Fraction
    fates: tuple[Fate, ...]

    def fate(self, multiple: float | Fraction) -> Fate:
        """The same for a scale wherever it is on the ladder, and however it was computed."""
        return self.fates[random.Random(f"{float(multiple):.9g}").randrange(len(self.fates))]

    def rules(self, halve_at: int | None = None) -> Rules:
        """The ladder as the settings make it."""
        multiples = tuple(map(float, self.multiples))
        config = LadderConfig(multiples, float(self.factor), float(self.floor))
        return Rules(rungs_of(config), STEPS, halve_at if len(multiples) > 1 else None)


decimals = st.sampled_from("256 128 64 32 27 9 3 1 100 0.9 0.3 0.1 0.7".split()).map(Fraction)
factors = st.sampled_from("4 2 3 10 1.5 7".split()).map(Fraction)
scores = st.sampled_from([None, math.nan, 0.0, 0.25, 0.5, 0.5, 0.75])
alive = st.builds(Fate, st.none(), st.sampled_from(["converged", "plateau"]), scores, scores)
dead = st.builds(Fate, st.integers(1, STEPS), st.just("converged"), scores, scores)
fates = st.lists(st.one_of(dead, dead, dead, dead, alive), min_size=1, max_size=12).map(tuple)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    multiples = draw(st.lists(decimals, min_size=1, max_size=3, unique=True).map(tuple))
    factor = draw(factors)
    below = draw(st.sampled_from([Fraction(1), 1 / factor, 1 / factor**2, Fraction("0.003")]))
    return Case(multiples, factor, min(multiples) * below, draw(fates))


def better(one: Outcome, other: Outcome) -> bool:
    """Whether one is kept and the other not; neither has diverged."""
    known = [o.score is not None and o.score == o.score for o in (one, other)]
    return one.score > other.score if all(known) else known[0] and not known[1]


def best_of(alive: list[Fraction], outcome: Callable[[Fraction], Outcome]) -> Fraction:
    """The one that is kept; the one that was asked for first among equals."""
    kept = alive[0]
    for multiple in alive[1:]:
        if better(outcome(multiple), outcome(kept)):
            kept = multiple
    return kept


def by_the_paper(case: Case, halve_at: int | None = None):
    """The trials that the rule asks for, in order, and the scale that it keeps.

    α is tried in pairs (256·r, 128·r); when both diverge they are divided by four.
    """
    asked: list[tuple[Fraction, int]] = []

    def run(multiple: Fraction, steps: int) -> Outcome:
        if (multiple, steps) not in asked:
            asked.append((multiple, steps))
        return case.fate(multiple).outcome(steps)

    k = 0
    while all(multiple / case.factor**k >= case.floor for multiple in case.multiples):
        rung = [multiple / case.factor**k for multiple in case.multiples]
        halving = halve_at is not None and len(rung) > 1
        steps = halve_at if halving and halve_at is not None else STEPS
        left = [m for m in rung if run(m, steps).ending != "diverged"]
        while left:
            best = best_of(left, lambda m, n=steps: case.fate(m).outcome(n))
            if not halving or run(best, STEPS).ending != "diverged":
                return asked, best
            left.remove(best)
        k += 1
    return asked, None


def climb(case: Case, rules: Rules, seed: int) -> tuple[list[Trial], Decision]:
    """Runs to the end; trials end in any order, and are interrupted and asked for again."""
    chance = random.Random(seed)
    asked: list[Trial] = []
    ended: dict[Trial, Outcome] = {}
    while (decision := decide(rules, ended)).asked:
        assert len(set(decision.asked)) == len(decision.asked)
        asked += [trial for trial in decision.asked if trial not in asked]
        for trial in chance.sample(decision.asked, chance.randint(0, len(decision.asked))):
            assert trial not in ended  # none is run again
            ended[trial] = case.fate(trial.multiple).outcome(trial.steps)
    assert set(ended) == set(asked)
    return asked, decision


def same(multiple: float, exact: Fraction) -> bool:
    return math.isclose(multiple, exact, rel_tol=1e-10)


@many
@given(cases(), st.sampled_from([None, None, HALF]), st.integers(0, 2**32))
def test_trials_order_and_winner_are_those_of_the_rule(case: Case, halve_at: int | None, seed: int):
    rules = case.rules(halve_at)
    expected, kept = by_the_paper(case, halve_at)
    asked, end = climb(case, rules, seed)
    assert [trial.steps for trial in asked] == [steps for _, steps in expected]
    assert all(same(t.multiple, exact) for t, (exact, _) in zip(asked, expected, strict=True))
    assert end.exhausted == (kept is None)
    if kept is None or end.winner is None:
        assert (kept, end.winner, end.rung) == (None, None, len(rules.rungs) - 1)
    else:
        assert same(end.winner.multiple, kept)
        assert end.winner.steps == STEPS
        assert end.winner.multiple in rules.rungs[end.rung]


@many
@given(cases(), st.sampled_from([None, HALF]), st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_end_does_not_depend_on_who_ends_first_or_is_interrupted(
    case: Case, halve_at: int | None, one: int, other: int
):
    rules = case.rules(halve_at)
    assert climb(case, rules, one) == climb(case, rules, other)


@many
@given(cases(), st.sampled_from([None, HALF]), st.integers(0, 2**32))
def test_a_decision_depends_on_the_outcomes_and_not_on_their_order(
    case: Case, halve_at: int | None, seed: int
):
    rules, chance = case.rules(halve_at), random.Random(seed)
    asked, _ = climb(case, rules, seed)
    known = [(t, case.fate(t.multiple).outcome(t.steps)) for t in asked]
    known = known[: chance.randint(0, len(known))]
    decision = decide(rules, dict(known))
    assert decide(rules, dict(chance.sample(known, len(known)))) == decision
    assert not set(decision.asked) & {trial for trial, _ in known}


@many
@given(cases(), st.sampled_from([None, HALF]), st.integers(0, 2**32))
def test_the_steps_that_are_left_lie_between_at_least_and_at_most(
    case: Case, halve_at: int | None, seed: int
):
    rules, chance = case.rules(halve_at), random.Random(seed)
    ended: dict[Trial, Outcome] = {}
    moments: list[tuple[tuple[int, int], int]] = []  # what was foretold, and steps done by then
    done = 0
    while (decision := decide(rules, ended)).asked:
        moments.append((needed(rules, ended), done))
        trial = chance.choice(decision.asked)
        fate = case.fate(trial.multiple)
        ended[trial] = fate.outcome(trial.steps)
        before = HALF if trial.steps == STEPS and Trial(trial.multiple, HALF) in ended else 0
        done += fate.cost(trial.steps) - before
        if ended[trial].ending == "diverged":
            moments = [((0, most), then) for (_, most), then in moments]
    assert needed(rules, ended) == (0, 0)
    for (least, most), then in moments:
        assert least <= done - then <= most


def rules(*rungs: tuple[float, ...], halve_at: int | None = None) -> Rules:
    return Rules(tuple(tuple(map(float, rung)) for rung in rungs), STEPS, halve_at)


def whole(*multiples: float) -> tuple[Trial, ...]:
    return tuple(Trial(float(multiple), STEPS) for multiple in multiples)


def part(*multiples: float) -> tuple[Trial, ...]:
    return tuple(Trial(float(multiple), HALF) for multiple in multiples)


DIVERGED = Outcome("diverged")


def test_the_papers_pairs():
    assert PAPER == ((256, 128), (64, 32), (16, 8), (4, 2), (1, 0.5))


@pytest.mark.parametrize(
    ("multiples", "factor", "floor", "rungs"),
    [
        ((256.0, 128.0), 4.0, 128.0, ((256, 128),)),
        ((256.0, 128.0), 4.0, 33.0, ((256, 128),)),
        ((256.0, 128.0), 4.0, 32.0, ((256, 128), (64, 32))),
        ((0.3,), 3.0, 0.1, ((0.3,), (0.1,))),  # 0.3 / 3 < 0.1 in floating point
        ((0.3, 0.1), 3.0, 0.1, ((0.3, 0.1),)),
        ((0.9, 0.3), 3.0, 0.1, ((0.9, 0.3), (0.3, 0.1))),
        ((1.0,), 3.0, 0.3333333333, ((1,), (0.3333333333,))),
        ((1.0,), 3.0, 0.33334, ((1,),)),
        ((8.0,), math.inf, 1e-9, ((8,),)),
    ],
)
def test_a_ladder_goes_down_to_its_floor(
    multiples: tuple[float, ...], factor: float, floor: float, rungs: tuple[tuple[float, ...], ...]
):
    assert rungs_of(LadderConfig(multiples, factor, floor)) == rungs


TABLE_10 = [
    ("lora", 1, 128.0, 2),
    ("lorta", 64, 128.0, 8),
    ("lorta", 8, 256.0, 4),
    ("lorta", 1, 2.0, 8),
]


@pytest.mark.parametrize("mate", [DIVERGED, Outcome("converged", 0.3), Outcome("plateau", 0.5)])
@pytest.mark.parametrize(("kind", "rank", "alpha", "trials"), TABLE_10)
def test_the_alphas_of_table_10(kind: str, rank: int, alpha: float, trials: int, mate: Outcome):
    """Each is the lower of its pair: of the higher one we know that it was not kept."""
    found = Outcome("converged", 0.6)

    def outcome(trial: Trial) -> Outcome:
        times = trial.multiple * rank / alpha
        return {1: found, 2: mate}.get(times, DIVERGED if times > 2 else Outcome("converged", 0.9))

    ended: dict[Trial, Outcome] = {}
    paper = Rules(PAPER, 850_000)
    while (decision := decide(paper, ended)).asked:
        ended |= {trial: outcome(trial) for trial in decision.asked}
    assert decision.winner is not None
    assert decision.winner.multiple * rank == alpha
    assert len(ended) == trials
    assert {trial.steps for trial in ended} == {850_000}


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (Outcome("converged", 0.5), Outcome("converged", 0.6), 1),
        (Outcome("converged", 0.6), Outcome("converged", 0.5), 0),
        (Outcome("converged", 0.5), Outcome("converged", 0.5), 0),
        (Outcome("plateau", 0.5), Outcome("converged", 0.45), 0),
        (Outcome("converged", 0.45), Outcome("plateau", 0.5), 1),
        (Outcome("plateau", 0.5), Outcome("converged", 0.5), 0),
        (Outcome("plateau", 0.2), Outcome("plateau", 0.3), 1),
        (Outcome("diverged", 0.9), Outcome("plateau", None), 1),
        (Outcome("converged", None), Outcome("converged", 0.0), 1),
        (Outcome("converged", math.nan), Outcome("converged", 0.0), 1),
        (Outcome("converged", 0.0), Outcome("converged", math.nan), 0),
        (Outcome("converged", math.nan), Outcome("converged", None), 0),
        (Outcome("converged", None), Outcome("plateau", 0.0), 1),
    ],
)
def test_what_is_kept_of_a_pair(one: Outcome, other: Outcome, kept: int):
    pair = whole(256, 128)
    decision = decide(rules((256, 128), (64, 32)), dict(zip(pair, (one, other), strict=True)))
    assert decision == Decision((), 0, pair[kept])


def test_a_survivor_waits_for_its_mate_and_keeps_the_rest_from_being_tried():
    ladder, (first, second) = rules((256, 128), (64, 32)), whole(256, 128)
    assert decide(ladder, {}).asked == (first, second)
    assert decide(ladder, {second: Outcome("converged", 0.5)}).asked == (first,)
    assert decide(ladder, {first: DIVERGED}).asked == (second,)
    assert decide(ladder, dict.fromkeys((first, second), DIVERGED)).asked == whole(64, 32)


def test_a_scale_of_two_rungs_is_run_once():
    ladder = rules((256, 64), (64, 16))
    decision = decide(ladder, dict.fromkeys(whole(256, 64), DIVERGED))
    assert decision == Decision(whole(16), 1)


def test_halving_sends_the_better_on_and_the_other_where_that_one_diverges():
    ladder = rules((256, 128), (64, 32), halve_at=HALF)
    assert decide(ladder, {}).asked == part(256, 128)
    ended = {part(256)[0]: Outcome("converged", 0.3)}
    assert decide(ladder, ended).asked == part(128)
    ended[part(128)[0]] = Outcome("converged", 0.4)
    assert decide(ladder, ended).asked == whole(128)
    good = ended | {whole(128)[0]: Outcome("plateau", 0.2)}
    assert decide(ladder, good) == Decision((), 0, whole(128)[0])
    ended[whole(128)[0]] = DIVERGED
    assert decide(ladder, ended).asked == whole(256)
    kept = ended | {whole(256)[0]: Outcome("converged", 0.2)}
    assert decide(ladder, kept) == Decision((), 0, whole(256)[0])
    ended[whole(256)[0]] = DIVERGED
    assert decide(ladder, ended) == Decision(part(64, 32), 1)


def test_halving_leaves_a_lone_survivor_alone():
    ladder = rules((256, 128), (64, 32), halve_at=HALF)
    ended = {part(256)[0]: DIVERGED, part(128)[0]: Outcome("converged", None)}
    assert decide(ladder, ended).asked == whole(128)


def test_steps_that_are_left():
    ladder = rules((256, 128), (64, 32))
    first, second = whole(256, 128)
    assert needed(ladder, {}) == (200, 400)
    assert needed(ladder, {first: DIVERGED}) == (100, 300)
    assert needed(ladder, {first: Outcome("converged", 0.5)}) == (100, 100)  # no rung below
    assert needed(ladder, dict.fromkeys((first, second), DIVERGED)) == (200, 200)
    assert needed(ladder, dict.fromkeys((first, second), Outcome("plateau"))) == (0, 0)
    assert needed(ladder, dict.fromkeys(whole(256, 128, 64, 32), DIVERGED)) == (0, 0)
    assert needed(rules((256, 64), (64, 16)), {}) == (200, 300)  # 64 is run once


def test_steps_that_are_left_with_halving():
    ladder = rules((256, 128), (64, 32), halve_at=HALF)
    good = Outcome("converged", 0.5)
    assert needed(ladder, {}) == (2 * 10 + 90, 400)
    ended = {part(256)[0]: good}
    assert needed(ladder, ended) == (10 + 90, 90 + 100 + 200)  # both may yet go to the end
    ended[part(128)[0]] = Outcome("converged", 0.4)
    assert needed(ladder, ended) == (90, 90 + 90 + 200)  # 128 goes on if 256 diverges
    ended[whole(256)[0]] = DIVERGED
    assert needed(ladder, ended) == (90, 90 + 200)


def test_steps_that_trials_have_done_are_not_left():
    ladder = rules((256, 128), (64, 32))
    both = steps_left(ladder, {}, None, {256.0: 10, 128.0: 40})
    assert both == StepsLeft(90 + 60, 90 + 60 + 200, 90, 90 + 100)
    # The other of a pair cannot be shared out.
    lone = steps_left(ladder, {whole(256)[0]: DIVERGED}, None, {128.0: 50})
    assert lone == StepsLeft(50, 250, 50, 150)


def test_steps_up_to_the_halving_are_left_out_once():
    ladder = rules((256, 128), (64, 32), halve_at=HALF)
    # Parts up to the halving run at the same time, and the better one after them.
    parts = steps_left(ladder, {}, None, {256.0: 5, 128.0: 4})
    assert parts == StepsLeft(5 + 6 + 90, 400 - 9, 6 + 90, 400 - 9)
    ended = {part(256)[0]: Outcome("converged", 0.5), part(128)[0]: Outcome("converged", 0.4)}
    goes_on = steps_left(ladder, ended, None, {256.0: 50})
    assert goes_on == StepsLeft(50, 50 + 90 + 200, 50, 50 + 90 + 200)


@many
@given(cases(), st.sampled_from([None, HALF]))
def test_the_worst_is_that_all_diverge_at_their_last_step(case: Case, halve_at: int | None):
    rules = case.rules(halve_at)
    multiples = {multiple for rung in rules.rungs for multiple in rung}
    late = Case(case.multiples, case.factor, case.floor, (Fate(STEPS),))
    asked, end = climb(late, rules, 0)
    assert end.exhausted
    assert {trial.multiple for trial in asked if trial.steps == STEPS} == multiples
    assert needed(rules, {})[1] == STEPS * len(multiples)

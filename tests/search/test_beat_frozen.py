"""A trial that does not beat the frozen model is out: the rule, with planted outcomes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.search.ladder import (
    Decision,
    Outcome,
    Outcomes,
    Rules,
    Trial,
    decide,
    judged,
)
from tests.search.test_ladder import DIVERGED, HALF, STEPS, needed, part, whole

FROZEN_RULES = Rules(((1.0,),), STEPS)
LADDER = Rules(((256.0, 128.0), (64.0, 32.0)), STEPS)
HALVED = Rules(LADDER.rungs, STEPS, HALF)
ALL_OUT = Decision((), 1)


def scored(trials: tuple[Trial, ...], *scores: float | None) -> dict[Trial, Outcome]:
    pairs = zip(trials, scores, strict=True)
    return {trial: Outcome("converged", score) for trial, score in pairs}


def frozen(score: float | None, steps: int = STEPS) -> dict[Trial, Outcome]:
    return scored((Trial(1.0, steps),), score)


@pytest.mark.parametrize(
    ("scores", "decided"),
    [
        ((0.3, 0.4), Decision(whole(64, 32), 1)),
        ((0.3, 0.6), Decision((), 0, whole(128)[0])),
        ((0.6, 0.3), Decision((), 0, whole(256)[0])),
        ((0.5, 0.5), Decision(whole(64, 32), 1)),  # ties do not beat it
        ((None, 0.51), Decision((), 0, whole(128)[0])),
        ((None, float("nan")), Decision(whole(64, 32), 1)),
    ],
)
def test_a_rung_below_the_frozen_model_is_divided(scores: tuple, decided: Decision):
    ended = scored(whole(256, 128), *scores)
    assert decide(LADDER, ended, frozen(0.5)) == decided
    # What the paper's text says: nothing has diverged, the better is kept.
    assert decide(LADDER, ended).winner in whole(256, 128)


def test_a_plateau_is_judged_as_the_others_and_divergence_stays_divergence():
    ended = {
        whole(256)[0]: Outcome("diverged", 0.9),
        whole(128)[0]: Outcome("plateau", 0.4),
    }
    assert [o.ending for o in judged(ended, frozen(0.5)).values()] == ["diverged", "below frozen"]
    assert decide(LADDER, ended, frozen(0.5)).asked == whole(64, 32)
    assert decide(LADDER, ended, frozen(0.3)).winner == whole(128)[0]
    assert ended[whole(128)[0]].ending == "plateau"  # the ledger's outcome is left as it was


def test_all_below_the_frozen_model_down_to_the_floor_is_exhausted():
    ended = scored(whole(256, 128, 64, 32), 0.1, 0.2, 0.3, 0.4)
    assert decide(LADDER, ended, frozen(0.5)) == ALL_OUT
    assert ALL_OUT.exhausted


def test_a_ladder_waits_for_the_frozen_trial_and_then_decides():
    ended = scored(whole(256, 128), 0.6, 0.7)
    waits = decide(LADDER, ended, {})
    assert waits == Decision((), 0, waits=True)
    assert not waits.exhausted
    assert decide(LADDER, ended, frozen(0.65)).winner == whole(128)[0]
    assert decide(LADDER, ended, frozen(0.8)).asked == whole(64, 32)


def test_what_the_frozen_trial_does_not_decide_does_not_wait_for_it():
    assert decide(LADDER, {}, {}).asked == whole(256, 128)
    one = scored(whole(128), 0.6)
    assert decide(LADDER, one, {}).asked == whole(256)
    both = dict.fromkeys(whole(256, 128), DIVERGED)
    assert decide(LADDER, both, {}).asked == whole(64, 32)
    assert decide(LADDER, dict.fromkeys(whole(256, 128, 64, 32), DIVERGED), {}) == ALL_OUT


@pytest.mark.parametrize(
    "beside", [{Trial(1.0, STEPS): Outcome("diverged", 0.9)}, frozen(None), frozen(float("nan"))]
)
def test_nothing_is_held_against_a_trial_where_the_frozen_one_has_no_score(beside: Outcomes):
    ended = scored(whole(256, 128), 0.1, None)
    assert decide(LADDER, ended, beside) == decide(LADDER, ended)
    assert decide(LADDER, ended, beside).winner == whole(256)[0]


def test_halving_compares_at_its_own_step_and_again_at_the_end():
    ended = scored(part(256, 128), 0.2, 0.4)
    assert decide(HALVED, ended, {}) == Decision((), 0, waits=True)
    at_half = frozen(0.3, HALF)
    assert decide(HALVED, ended, at_half).asked == whole(128)
    assert judged(ended, at_half)[part(256)[0]].ending == "below frozen"
    ended |= scored(whole(128), 0.6)
    assert decide(HALVED, ended, at_half) == Decision((), 0, waits=True)
    assert decide(HALVED, ended, at_half | frozen(0.5)).winner == whole(128)[0]
    # 256 was below at the halving, and does not go on in its place.
    assert decide(HALVED, ended, at_half | frozen(0.6)) == Decision(part(64, 32), 1)
    # Where both were above, it does.
    low = frozen(0.1, HALF) | frozen(0.6)
    assert decide(HALVED, ended, low).asked == whole(256)
    assert decide(HALVED, ended | scored(whole(256), 0.7), low).winner == whole(256)[0]


def test_a_frozen_trial_that_diverges_after_the_halving_takes_nothing_back():
    ended = scored(part(256, 128), 0.2, 0.4)
    late = frozen(0.3, HALF) | {Trial(1.0, STEPS): DIVERGED}
    assert decide(HALVED, ended, late).asked == whole(128)
    early = {Trial(1.0, HALF): DIVERGED}  # and is not gone on with
    assert decide(HALVED, ended | scored(whole(128), 0.1), early).winner == whole(128)[0]


def test_the_frozen_ladder_stops_at_the_halving_and_goes_on():
    rules = Rules(FROZEN_RULES.rungs, STEPS, HALF)
    assert decide(rules, {}).asked == part(1)
    assert decide(rules, frozen(0.3, HALF)).asked == whole(1)
    assert needed(rules, {}) == (STEPS, STEPS)
    assert needed(rules, frozen(0.3, HALF)) == (STEPS - HALF, STEPS - HALF)
    both = frozen(0.3, HALF) | frozen(0.5)
    assert decide(rules, both).winner == whole(1)[0]


def test_steps_that_are_left_of_a_ladder_that_waits():
    ended = scored(whole(256, 128), 0.6, 0.7)
    assert needed(LADDER, ended, {}) == (0, 2 * STEPS)
    assert needed(LADDER, ended, frozen(0.5)) == (0, 0)
    assert needed(LADDER, ended, frozen(0.7)) == (2 * STEPS, 2 * STEPS)
    parts = scored(part(256, 128), 0.6, 0.7)
    assert needed(HALVED, parts, {}) == (90, 90 + 90 + 200)
    assert needed(HALVED, parts, frozen(0.6, HALF)) == (90, 90 + 200)
    assert needed(HALVED, parts | scored(whole(128), 0.9), frozen(0.6, HALF)) == (0, 200)


endings = st.sampled_from(["converged", "converged", "plateau", "diverged"])
scores = st.sampled_from([None, 0.1, 0.2, 0.3, 0.4, 0.5])
outcomes = st.builds(Outcome, endings, scores)


@st.composite
def fates(draw: st.DrawFn) -> dict[Trial, Outcome]:
    """How every trial would end, the frozen one (multiple 1) too; what has diverged stays so."""
    found = {}
    for multiple in (1.0, 256.0, 128.0, 64.0, 32.0):
        first, last = draw(outcomes), draw(outcomes)
        ended_early = first.ending == "diverged"
        found |= {
            Trial(multiple, HALF): first,
            Trial(multiple, STEPS): first if ended_early else last,
        }
    return found


def search(fates: dict[Trial, Outcome], halve_at: int | None, seed: int):
    """Ends the trials of both ladders in any order; the moments, and how it has ended."""
    chance = random.Random(seed)
    rules = {1: Rules(FROZEN_RULES.rungs, STEPS, halve_at), 2: Rules(LADDER.rungs, STEPS, halve_at)}
    ended: dict[int, dict[Trial, Outcome]] = {1: {}, 2: {}}
    moments: list[tuple[int, int]] = []  # steps left at most, and steps done by then
    done = 0
    while True:
        decision = decide(rules[2], ended[2], ended[1])
        asked = [(2, t) for t in decision.asked] + [
            (1, t) for t in decide(rules[1], ended[1]).asked
        ]
        if not asked:
            return decision, frozenset(ended[2]), moments, done
        moments.append((needed(rules[2], ended[2], ended[1])[1], done))
        which, trial = chance.choice(asked)
        assert trial not in ended[which]
        ended[which][trial] = fates[trial]
        if which == 2:
            before = HALF if trial.steps == STEPS and Trial(trial.multiple, HALF) in ended[2] else 0
            done += trial.steps - before


@settings(deadline=None, max_examples=100)
@given(fates(), st.sampled_from([None, HALF]), st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_end_is_the_same_whenever_the_frozen_trial_ends(fates, halve_at, one: int, other: int):
    end, asked, moments, done = search(fates, halve_at, one)
    assert (end, asked) == search(fates, halve_at, other)[:2]
    assert end.exhausted or end.winner is not None  # none waits for ever
    assert all(done - then <= most for most, then in moments)

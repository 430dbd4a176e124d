"""The rules of divergence at their boundaries, and the laws of judging step by step."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.config import GuardConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training.divergence import (
    GuardState,
    Observation,
    Verdict,
    judge,
    observe,
    on_plateau,
)

# No smoothing: what a step says is what counts.
PLAIN = GuardConfig(smoothing=1)
SHORT = replace(PLAIN, loss_steps=20)
NAN, INF = math.nan, math.inf


def steps(losses: list[float], norms: list[float] | None = None, first: int = 1):
    """Observations of steps one after the other."""
    norms = norms or [1.0] * len(losses)
    pairs = enumerate(zip(losses, norms, strict=True), first)
    return [Observation(step, loss, norm) for step, (loss, norm) in pairs]


def scored(score: float, step: int) -> Observation:
    """A step that was validated."""
    return Observation(step, 1.0, 1.0, None, score)


def learning(scores: list[float], config: GuardConfig, warmup_steps: int = 0) -> GuardState:
    """The state after steps with these training scores."""
    state = GuardState()
    for step, score in enumerate(scores, 1):
        state = observe(state, Observation(step, 1.0, 1.0, score), config, warmup_steps)
    return state


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        ([NAN] * 10, [1.0] * 10),
        ([1.0] * 10, [INF] * 10),
        ([NAN, INF] * 5, [1.0, NAN] * 5),
        ([NAN] * 5 + [1.0] * 5, [1.0] * 5 + [NAN] * 5),
    ],
)
def test_ten_steps_in_a_row_that_are_not_finite_are_divergence(
    losses: list[float], norms: list[float]
):
    before, after = steps([2.0] * 3), steps([2.0], first=14)
    bad = steps(losses, norms, first=4)
    verdict = judge([*before, *bad, *after], PLAIN, 1000)
    assert verdict is not None
    assert (verdict.rule, verdict.step, verdict.since) == ("nonfinite", 13, 4)
    assert judge([*before, *bad[:-1], *after], PLAIN, 1000) is None


def test_a_finite_step_breaks_the_row():
    losses = [NAN] * 9 + [1.0] + [NAN] * 9
    assert judge(steps(losses), PLAIN, 0) is None
    assert judge(steps([*losses, NAN]), PLAIN, 0) is not None


def test_a_skipped_step_may_have_the_number_of_the_last_done():
    log = [Observation(7, NAN, 1.0)] * 10
    verdict = judge(log, PLAIN, 0)
    assert verdict is not None
    assert (verdict.step, verdict.since) == (7, 7)


def test_the_message_names_the_numbers():
    verdict = judge(steps([NAN] * 10, [0.5] * 10, first=1200), PLAIN, 0)
    assert verdict is not None
    assert verdict.message == (
        "the loss or the gradient was not finite in 10 steps in a row (since step 1,200; at step"
        " 1,209 the loss was nan and the norm of the gradient 0.5)"
    )
    verdict = judge(steps([10.0, *[25.0] * 20], first=1000), SHORT, 0)
    assert verdict is not None
    assert verdict.message == (
        "the smoothed loss was above 2 x its best of 10 in 20 steps in a row (since step 1,001; at"
        " step 1,020 it was 25)"
    )


@pytest.mark.parametrize(
    ("risen", "length", "diverged"),
    [(19.9, 2000, False), (20.0, 2000, False), (20.1, 2000, True), (20.1, 1999, False)],
)
def test_a_loss_of_more_than_twice_its_best_for_2000_steps(
    risen: float, length: int, diverged: bool
):
    verdict = judge(steps([12.0, 10.0, 11.0, *[risen] * length, 15.0]), PLAIN, 0)
    assert (verdict is not None) == diverged
    if verdict is not None:
        assert (verdict.rule, verdict.step, verdict.since) == ("loss", 2003, 4)


def test_a_loss_that_recovers_for_one_step_begins_anew():
    row = [10.0, *[30.0] * 19, 19.0]
    assert judge(steps(row + [30.0] * 19), SHORT, 0) is None
    verdict = judge(steps(row + [30.0] * 20), SHORT, 0)
    assert verdict is not None
    assert (verdict.step, verdict.since) == (41, 22)


def test_steps_that_are_not_finite_neither_enter_the_smoothing_nor_break_the_row():
    losses = [10.0, *[30.0, NAN, INF] * 6, 30.0, NAN]
    verdict = judge(steps(losses), SHORT, 0)
    assert verdict is not None
    assert (verdict.step, verdict.since) == (21, 2)
    norms = [1.0, INF, 1.0, 1.0]  # a gradient that is not finite condemns its loss too
    state = GuardState()
    for observation in steps([10.0, 1e-9, 10.0, 10.0], norms):
        state = observe(state, observation, PLAIN, 0)
    assert state.best_loss == 10.0


def test_what_rises_in_the_warm_up_counts_from_its_end_on():
    losses = [0.1] * 50 + [10.0] * 30
    for warmup, step in ((0, 70), (50, 70), (55, 75), (60, 80)):
        verdict = judge(steps(losses), SHORT, warmup)
        assert verdict is not None
        assert (verdict.step, verdict.since) == (step, step - 19)
    assert judge(steps(losses), SHORT, 61) is None


def test_the_best_is_taken_of_full_averages_only():
    config = replace(SHORT, smoothing=100)
    lucky = [1.0, *[10.0] * 300]  # alone, the first would make all others ten times the best
    assert judge(steps(lucky), SHORT, 0) is not None
    assert judge(steps(lucky), config, 0) is None
    state = GuardState()
    for observation in steps(lucky[:99]):
        state = observe(state, observation, config, 0)
    assert state.best_loss is None
    state = observe(state, Observation(100, 10.0, 1.0), config, 0)
    assert state.best_loss == pytest.approx(9.91)  # the mean of a hundred


def test_smoothing_hides_single_losses_and_follows_a_rise():
    config = replace(SHORT, smoothing=100)
    spikes = [10.0] * 200 + [10.0, 10.0, 10.0, 30.0] * 100  # a mean of 15
    assert judge(steps(spikes), config, 0) is None
    verdict = judge(steps([10.0] * 200 + [30.0] * 100), config, 0)
    assert verdict is not None
    # 10 + 20 (1 - 0.99^n) is above 20 from n = 69 on: 0.99^68 > 1/2 > 0.99^69.
    assert (verdict.since, verdict.step) == (269, 288)


@pytest.mark.parametrize(("score", "diverged"), [(0.2499, True), (0.25, False), (0.0, True)])
def test_the_first_validation_at_the_fixed_step_is_judged_by_the_floor(
    score: float, diverged: bool
):
    log = [scored(0.01, 19_999), scored(score, 20_000), scored(0.01, 20_001)]
    verdict = judge(log, PLAIN, 1000)
    assert (verdict is not None) == diverged
    if verdict is not None:
        assert (verdict.rule, verdict.step, verdict.since) == ("score", 20_000, 20_000)
        assert f"{score:.3f} at step 20,000, below the floor of 0.25" in verdict.message


def test_a_validation_without_a_score_is_not_the_first():
    log = [scored(NAN, 20_000), Observation(20_500, 1.0, 1.0), scored(0.1, 21_000)]
    verdict = judge(log, PLAIN, 1000)
    assert verdict is not None
    assert verdict.step == 21_000
    assert judge(log, replace(PLAIN, score_step=None), 1000) is None


@pytest.mark.parametrize(
    "off",
    [{"nonfinite_steps": 0}, {"loss_steps": 0}, {"score_step": None}],
    ids=lambda x: next(iter(x)),
)
def test_every_rule_can_be_switched_off(off: dict[str, Any]):
    rules = GuardConfig(3, 2.0, 3, 1, score_step=10)
    logs = {
        "nonfinite_steps": steps([NAN] * 5),
        "loss_steps": steps([1.0, *[5.0] * 5]),
        "score_step": [scored(0.1, 12)],
    }
    for rule, log in logs.items():
        assert judge(log, rules, 0) is not None
        assert (judge(log, replace(rules, **off), 0) is None) == (rule in off)


def test_the_first_rule_that_fires_stays():
    rules = GuardConfig(3, 2.0, 3, 1, score_step=10)
    log = [*steps([1.0, *[5.0] * 3]), *steps([NAN] * 5, first=5), scored(0.1, 10)]
    verdict = judge(log, rules, 0)
    assert verdict is not None
    assert (verdict.rule, verdict.step) == ("loss", 4)


def test_steps_out_of_order_are_an_error():
    with pytest.raises(ValueError, match="step 1 is observed after step 2"):
        judge(steps([1.0, 1.0], first=2)[:1] + steps([1.0]), PLAIN, 0)


# A gain is 1/8 and a plateau 100 steps, which floating point keeps exactly.
FLAT = GuardConfig(smoothing=1, plateau_steps=100, plateau_gain=0.125, plateau_score=0.5)


def test_a_low_flat_score_is_a_plateau_but_no_divergence():
    state = learning([0.25] * 101, FLAT)
    assert on_plateau(state, FLAT)
    assert state.verdict is None
    assert not on_plateau(learning([0.25] * 100, FLAT), FLAT)
    assert not on_plateau(state, replace(FLAT, plateau_steps=0))


def test_a_high_flat_score_has_learnt():
    assert not on_plateau(learning([0.5] * 500, FLAT), FLAT)
    assert on_plateau(learning([0.499] * 500, FLAT), FLAT)


@pytest.mark.parametrize(("length", "expected"), [(200, False), (250, True)])
def test_a_slow_learner_is_on_no_plateau(length: int, expected: bool):
    state, found = GuardState(), False
    for step in range(1, length + 1):  # 200: a gain in exactly 100 steps
        state = observe(state, Observation(step, 1.0, 1.0, 0.25 * step / length), FLAT, 0)
        found |= on_plateau(state, FLAT)
    assert found == expected


def test_a_score_that_falls_and_recovers_has_gained_nothing():
    assert on_plateau(learning([0.375] * 50 + [0.125] * 50 + [0.375] * 50, FLAT), FLAT)


def test_a_plateau_ends_with_a_gain():
    late = [0.25] * 300
    assert on_plateau(learning(late, FLAT), FLAT)
    assert not on_plateau(learning([*late, 0.375], FLAT), FLAT)


def test_a_plateau_is_counted_after_warm_up_and_smoothing():
    assert not on_plateau(learning([0.25] * 150, FLAT, warmup_steps=50), FLAT)
    assert on_plateau(learning([0.25] * 151, FLAT, warmup_steps=50), FLAT)
    smooth = replace(FLAT, smoothing=20)
    assert not on_plateau(learning([0.25] * 119, smooth), smooth)
    assert on_plateau(learning([0.25] * 120, smooth), smooth)


def test_crops_without_a_score_leave_the_average_alone():
    state = learning([0.25, NAN, 0.25], FLAT)
    assert state.score.value == 0.25
    without = observe(state, Observation(4, 1.0, 1.0, None), FLAT, 0)
    assert without == replace(state, step=4, loss=without.loss)
    # An overflow says nothing of the model's score either.
    assert observe(state, Observation(4, 1.0, INF, 0.9), FLAT, 0).score.value == 0.25


@pytest.mark.parametrize(
    ("sizes", "limit", "step"),
    [
        ([9.9, 10.0, None], 10.0, None),
        ([None, 3.0, 10.1, 4.0], 10.0, 3),
        ([INF, NAN], 10.0, 1),
        ([NAN, 1e6], 0.0, None),
    ],
)
def test_an_update_that_outweighs_the_language_model_is_divergence(
    sizes: list[float | None], limit: float, step: int | None
):
    # The loss tells nothing: it stays what it was, in the warm-up and after it.
    log = [Observation(n, 5.0, 1.0, update=size) for n, size in enumerate(sizes, 1)]
    verdict = judge(log, replace(PLAIN, update_limit=limit), 1000)
    found = None if verdict is None else (verdict.rule, verdict.step, verdict.since)
    assert found == (None if step is None else ("update", step, step))


def test_the_message_on_an_update_names_its_size_and_the_limit():
    verdict = judge([Observation(1200, 5.0, 1.0, update=123.456)], PLAIN, 0)
    assert verdict is not None
    assert verdict.message == (
        "the adapter's update of a matrix was 123.5 x the matrix at step 1,200, above"
        " guard.update_limit 10; a smaller adapter.alpha keeps it lower"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonfinite_steps", -1),
        ("update_limit", -0.1),
        ("loss_factor", 0.99),
        ("loss_factor", NAN),
        ("smoothing", 0),
        ("score_floor", 1.1),
        ("score_step", 0),
        ("plateau_gain", -0.1),
    ],
)
def test_wrong_settings_are_named(name: str, value: Any):
    with pytest.raises(UserError, match=rf"^guard\.{name}: "):
        GuardConfig(**{name: value})


# Small bounds, so that drawn logs reach every rule.
QUICK = GuardConfig(3, 2.0, 4, 2, 10.0, score_floor=0.25, score_step=8, plateau_steps=5)
numbers = st.one_of(st.floats(0.125, 64.0), st.sampled_from([1.0, 3.0, NAN, INF, 1e300]))
scores = st.one_of(st.none(), st.floats(0.0, 1.0), st.just(NAN))
sizes = st.one_of(st.none(), st.floats(0.0, 10.5), st.just(NAN))


@st.composite
def logs(draw: st.DrawFn, losses: st.SearchStrategy[float] = numbers) -> list[Observation]:
    """Up to thirty steps, some of them skipped ones that keep their number."""
    row = st.tuples(losses, losses, scores, scores, st.integers(0, 2), sizes)
    step, log = 0, []
    for loss, norm, train, validation, more, size in draw(st.lists(row, max_size=30)):
        step += more
        log.append(Observation(step, loss, norm, train, validation, size))
    return log


def folded(state: GuardState, log: list[Observation]) -> GuardState:
    """The state after a part of a log."""
    for observation in log:
        state = observe(state, observation, QUICK, 2)
    return state


@settings(max_examples=100, deadline=None)
@given(logs(), st.lists(st.integers(0, 30), max_size=3))
def test_a_run_that_is_resumed_is_judged_as_a_whole_one(log: list[Observation], cuts: list[int]):
    state, begin = GuardState(), 0
    for cut in [*sorted(cuts), len(log)]:
        state = folded(state, log[begin : max(begin, cut)])
        begin = max(begin, cut)
        # allow_nan=False: a state holds finite numbers only, which all readers of JSON agree on.
        state = GuardState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    whole = folded(GuardState(), log)
    assert state == whole
    assert state.verdict == judge(log, QUICK, 2)
    assert on_plateau(state, QUICK) == on_plateau(whole, QUICK)


@settings(max_examples=100, deadline=None)
@given(logs(), logs())
def test_a_verdict_does_not_depend_on_later_steps(log: list[Observation], later: list[Observation]):
    verdict = judge(log, QUICK, 2)
    if verdict is not None:
        shifted = [replace(o, step=o.step + log[-1].step) for o in later]
        assert judge([*log, *shifted], QUICK, 2) == verdict
        until = [n for n in range(len(log)) if judge(log[:n], QUICK, 2) is None]
        assert verdict.step == log[max(until)].step


@settings(max_examples=100, deadline=None)
@given(logs(), st.integers(-20, 20))
def test_the_scale_of_the_loss_does_not_matter(log: list[Observation], power: int):
    def verdict_at(scale: float) -> tuple[str, int, int] | None:
        verdict = judge([replace(o, loss=o.loss * scale) for o in log], QUICK, 2)
        return None if verdict is None else (verdict.rule, verdict.step, verdict.since)

    assert verdict_at(2.0**power) == verdict_at(1.0)  # powers of two leave every digit


@settings(max_examples=100, deadline=None)
@given(logs(losses=st.floats(1.0, 2.0)))
def test_a_log_without_faults_is_never_divergence(log: list[Observation]):
    good = [
        o if o.validation_score is None else replace(o, validation_score=0.25 + o.step / 1000)
        for o in (replace(o, update=o.update and min(o.update, 10.0)) for o in log)
    ]
    assert judge(good, QUICK, 2) is None


def test_drawn_logs_reach_every_rule():
    """The laws above would say little if no log that they draw diverged."""
    found: dict[str, Verdict] = {}

    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    @given(logs())
    def collect(log: list[Observation]) -> None:
        if (verdict := judge(log, QUICK, 2)) is not None:
            found[verdict.rule] = verdict

    collect()
    assert found.keys() == {"nonfinite", "loss", "update", "score"}

"""The rules of divergence at their boundaries, and the laws of judging step by step."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.config import GuardConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training.divergence import (
    GuardState,
    Observation,
    observe,
    observe_validation,
    on_plateau,
)

# No smoothing: what a step says is what counts.
PLAIN = GuardConfig(smoothing=1)
SHORT = replace(PLAIN, loss_steps=20)
NAN, INF = math.nan, math.inf

Validation = tuple[int, float]
"""A step and the score of its validation."""

Log = list[Observation | Validation]


def folded(
    log: Sequence[Observation | Validation],
    config: GuardConfig,
    warmup_steps: int = 0,
    state: GuardState | None = None,
) -> GuardState:
    """The state after a part of a log."""
    state = state or GuardState()
    for entry in log:
        if isinstance(entry, Observation):
            state = observe(state, entry, config, warmup_steps)
        else:
            state = observe_validation(state, *entry, config)
    return state


def fired(
    log: Sequence[Observation | Validation], config: GuardConfig, warmup_steps: int = 0
) -> tuple[str, int, int] | None:
    """The rule that a log fulfils, where, and since when."""
    verdict = folded(log, config, warmup_steps).verdict
    return verdict and (verdict.rule, verdict.step, verdict.since)


def message(log: Sequence[Observation | Validation], config: GuardConfig = PLAIN) -> str:
    verdict = folded(log, config).verdict
    assert verdict is not None
    return verdict.message


def steps(losses: list[float], norms: list[float] | None = None, first: int = 1):
    """Observations of steps one after the other."""
    norms = norms or [1.0] * len(losses)
    pairs = enumerate(zip(losses, norms, strict=True), first)
    return [Observation(step, loss, norm) for step, (loss, norm) in pairs]


def learning(scores: list[float], config: GuardConfig, warmup_steps: int = 0) -> GuardState:
    """The state after steps with these training scores."""
    log = [Observation(step, 1.0, 1.0, score) for step, score in enumerate(scores, 1)]
    return folded(log, config, warmup_steps)


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
    assert fired([*before, *bad, *after], PLAIN, 1000) == ("nonfinite", 13, 4)
    assert fired([*before, *bad[:-1], *after], PLAIN, 1000) is None


def test_a_finite_step_breaks_the_row():
    losses = [NAN] * 9 + [1.0] + [NAN] * 9
    assert fired(steps(losses), PLAIN) is None
    assert fired(steps([*losses, NAN]), PLAIN) is not None


def test_a_skipped_step_may_have_the_number_of_the_last_done():
    assert fired([Observation(7, NAN, 1.0)] * 10, PLAIN) == ("nonfinite", 7, 7)


def test_the_messages_name_the_numbers():
    assert message(steps([NAN] * 10, [0.5] * 10, first=1200)) == (
        "the loss or the gradient was not finite in 10 steps in a row (since step 1,200; at step"
        " 1,209 the loss was nan and the norm of the gradient 0.5)"
    )
    assert message(steps([10.0, *[25.0] * 20], first=1000), SHORT) == (
        "the smoothed loss was above 2 x its best of 10 in 20 steps in a row (since step 1,001; at"
        " step 1,020 it was 25)"
    )
    assert message([Observation(1200, 5.0, 1.0, update=123.456)]) == (
        "the adapter's update of a matrix was 123.5 x the matrix at step 1,200, above"
        " guard.update_limit 10; a smaller adapter.alpha keeps it lower"
    )
    assert message([(20_000, 0.2)]) == (
        "validation lDDT-Cα was 0.200 at step 20,000, below the floor of 0.25"
    )


@pytest.mark.parametrize(
    ("risen", "length", "diverged"),
    [(19.9, 2000, False), (20.0, 2000, False), (20.1, 2000, True), (20.1, 1999, False)],
)
def test_a_loss_of_more_than_twice_its_best_for_2000_steps(
    risen: float, length: int, diverged: bool
):
    log = steps([12.0, 10.0, 11.0, *[risen] * length, 15.0])
    assert fired(log, PLAIN) == (("loss", 2003, 4) if diverged else None)


def test_a_loss_that_recovers_for_one_step_begins_anew():
    row = [10.0, *[30.0] * 19, 19.0]
    assert fired(steps(row + [30.0] * 19), SHORT) is None
    assert fired(steps(row + [30.0] * 20), SHORT) == ("loss", 41, 22)


def test_steps_that_are_not_finite_neither_enter_the_smoothing_nor_break_the_row():
    losses = [10.0, *[30.0, NAN, INF] * 6, 30.0, NAN]
    assert fired(steps(losses), SHORT) == ("loss", 21, 2)
    norms = [1.0, INF, 1.0, 1.0]  # a gradient that is not finite condemns its loss too
    assert folded(steps([10.0, 1e-9, 10.0, 10.0], norms), PLAIN).best_loss == 10.0


def test_what_rises_in_the_warm_up_counts_from_its_end_on():
    losses = [0.1] * 50 + [10.0] * 30
    for warmup, step in ((0, 70), (50, 70), (55, 75), (60, 80)):
        assert fired(steps(losses), SHORT, warmup) == ("loss", step, step - 19)
    assert fired(steps(losses), SHORT, 61) is None


def test_the_best_is_taken_of_full_averages_only():
    config = replace(SHORT, smoothing=100)
    lucky = [1.0, *[10.0] * 300]  # alone, the first would make all others ten times the best
    assert fired(steps(lucky), SHORT) is not None
    assert fired(steps(lucky), config) is None
    assert folded(steps(lucky[:99]), config).best_loss is None
    assert folded(steps(lucky[:100]), config).best_loss == pytest.approx(9.91)  # a plain mean


def test_smoothing_hides_single_losses_and_follows_a_rise():
    config = replace(SHORT, smoothing=100)
    spikes = [10.0] * 200 + [10.0, 10.0, 10.0, 30.0] * 100  # a mean of 15
    assert fired(steps(spikes), config) is None
    # 10 + 20 (1 - 0.99^n) is above 20 from n = 69 on: 0.99^68 > 1/2 > 0.99^69.
    assert fired(steps([10.0] * 200 + [30.0] * 100), config) == ("loss", 288, 269)


@pytest.mark.parametrize(("score", "diverged"), [(0.2499, True), (0.25, False), (0.0, True)])
def test_the_first_validation_at_the_fixed_step_is_judged_by_the_floor(
    score: float, diverged: bool
):
    log: Log = [(19_999, 0.01), (20_000, score), (20_001, 0.01)]
    assert fired(log, PLAIN, 1000) == (("score", 20_000, 20_000) if diverged else None)


def test_a_validation_without_a_score_is_not_the_first():
    log = [(20_000, NAN), Observation(20_500, 1.0, 1.0), (21_000, 0.1)]
    assert fired(log, PLAIN, 1000) == ("score", 21_000, 21_000)
    assert fired(log, replace(PLAIN, score_step=None), 1000) is None


@pytest.mark.parametrize(
    "off",
    [{"nonfinite_steps": 0}, {"loss_steps": 0}, {"score_step": None}],
    ids=lambda x: next(iter(x)),
)
def test_every_rule_can_be_switched_off(off: dict[str, Any]):
    rules = GuardConfig(3, 2.0, 3, 1, score_step=10)
    logs: dict[str, Log] = {
        "nonfinite_steps": [*steps([NAN] * 5)],
        "loss_steps": [*steps([1.0, *[5.0] * 5])],
        "score_step": [(12, 0.1)],
    }
    for rule, log in logs.items():
        assert fired(log, rules) is not None
        assert (fired(log, replace(rules, **off)) is None) == (rule in off)


def test_the_first_rule_that_fires_stays():
    rules = GuardConfig(3, 2.0, 3, 1, score_step=10)
    log = [*steps([1.0, *[5.0] * 3]), *steps([NAN] * 5, first=5), (10, 0.1)]
    assert fired(log, rules) == ("loss", 4, 2)


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
    found = fired(log, replace(PLAIN, update_limit=limit), 1000)
    assert found == (step and ("update", step, step))


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
def logs(draw: st.DrawFn, losses: st.SearchStrategy[float] = numbers) -> Log:
    """Up to thirty steps, some of them validated, some skipped ones that keep their number."""
    row = st.tuples(losses, losses, scores, scores, st.integers(0, 2), sizes)
    step, log = 0, []
    for loss, norm, train, validation, more, size in draw(st.lists(row, max_size=30)):
        step += more
        log.append(Observation(step, loss, norm, train, size))
        if validation is not None:
            log.append((step, validation))
    return log


def step_of(entry: Observation | Validation) -> int:
    return entry.step if isinstance(entry, Observation) else entry[0]


@settings(max_examples=100, deadline=None)
@given(logs(), st.lists(st.integers(0, 60), max_size=3))
def test_a_run_that_is_resumed_is_judged_as_a_whole_one(log: Log, cuts: list[int]):
    state, begin = GuardState(), 0
    for cut in [*sorted(cuts), len(log)]:
        state = folded(log[begin : max(begin, cut)], QUICK, 2, state)
        begin = max(begin, cut)
        # allow_nan=False: a state holds finite numbers only, which all readers of JSON agree on.
        state = GuardState.from_dict(json.loads(json.dumps(asdict(state), allow_nan=False)))
    whole = folded(log, QUICK, 2)
    assert state == whole
    assert on_plateau(state, QUICK) == on_plateau(whole, QUICK)


@settings(max_examples=100, deadline=None)
@given(logs(), logs())
def test_a_verdict_does_not_depend_on_later_steps(log: Log, later: Log):
    verdict = folded(log, QUICK, 2).verdict
    if verdict is not None:
        last = step_of(log[-1])
        shifted = [
            replace(e, step=e.step + last) if isinstance(e, Observation) else (e[0] + last, e[1])
            for e in later
        ]
        assert folded([*log, *shifted], QUICK, 2).verdict == verdict
        until = [n for n in range(len(log)) if fired(log[:n], QUICK, 2) is None]
        assert verdict.step == step_of(log[max(until)])


@settings(max_examples=100, deadline=None)
@given(logs(), st.integers(-20, 20))
def test_the_scale_of_the_loss_does_not_matter(log: Log, power: int):
    scale = 2.0**power  # powers of two leave every digit
    scaled = [replace(e, loss=e.loss * scale) if isinstance(e, Observation) else e for e in log]
    assert fired(scaled, QUICK, 2) == fired(log, QUICK, 2)


@settings(max_examples=100, deadline=None)
@given(logs(losses=st.floats(1.0, 2.0)))
def test_a_log_without_faults_is_never_divergence(log: Log):
    good = [
        replace(e, update=e.update and min(e.update, 10.0))
        if isinstance(e, Observation)
        else (e[0], 0.25 + e[0] / 1000)
        for e in log
    ]
    assert fired(good, QUICK, 2) is None


def test_drawn_logs_reach_every_rule():
    """The laws above would say little if no log that they draw diverged."""
    found: set[str] = set()

    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    @given(logs())
    def collect(log: Log) -> None:
        if (verdict := fired(log, QUICK, 2)) is not None:
            found.add(verdict[0])

    collect()
    assert found == {"nonfinite", "loss", "update", "score"}

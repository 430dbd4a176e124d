"""Whether a run has diverged or is on a plateau: pure functions over what its steps logged.

`observe` folds one step after the other into a small state, which a checkpoint keeps, so that a
resumed run is judged as if it had never stopped. LoRTA gives no rule; these are ours.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from esmfold_peft.config import GuardConfig

Rule = Literal["nonfinite", "loss", "update", "score"]


@dataclass(frozen=True)
class Observation:
    """What one optimizer step says of a run.

    Attributes:
        step: optimizer steps done with this one, 1 after the first. A step that was skipped is
            observed too, and may have the number of the step before.
        loss: above 0 where it is finite, because it is compared with a multiple of its best.
        gradient_norm: before clipping.
        train_score: lDDT-Cα of the step's crops, 0 to 1; None or NaN if none has a score.
        validation_score: mean lDDT-Cα of the validation chains, 0 to 1, where this step was
            validated; NaN counts as no score.
        update: the largest ‖ΔW‖ / ‖W‖ of the adapted matrices; None where it was not measured.
    """

    step: int
    loss: float
    gradient_norm: float
    train_score: float | None = None
    validation_score: float | None = None
    update: float | None = None

    @property
    def finite(self) -> bool:
        """Whether both loss and gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class Verdict:
    """A run has diverged.

    Attributes:
        rule: nonfinite (loss or gradient is not finite), loss (it has risen and stays so), update
            (the adapter's update outweighs the language model), or score (validation lDDT-Cα is
            below the floor).
        step: where the rule was fulfilled.
        since: first step of what fulfilled it.
        message: one line that names the numbers.
    """

    rule: Rule
    step: int
    since: int
    message: str


@dataclass(frozen=True)
class Streak:
    """Steps in a row of which something holds: how many, and the first one's number."""

    length: int = 0
    since: int = 0

    def after(self, step: int, holds: bool) -> "Streak":
        """The streak with one step more, or none where the row breaks."""
        if not holds:
            return Streak()
        return Streak(self.length + 1, self.since if self.length else step)


@dataclass(frozen=True)
class Average:
    """An exponential average that starts as a plain mean.

    A fixed rate would give the first value the weight of a whole time constant.
    """

    count: int = 0
    value: float = 0.0

    def after(self, value: float, smoothing: int) -> "Average":
        """The average with one value more, and a time constant of `smoothing` values."""
        count = min(self.count + 1, smoothing)
        return Average(count, self.value + (value - self.value) / count)


@dataclass(frozen=True)
class GuardState:
    """What the steps so far leave to judge the next ones by; the default is that of a new run.

    Attributes:
        step: the last one observed.
        nonfinite: steps in a row that were not finite.
        loss: smoothed, of finite steps.
        best_loss: lowest smoothed loss since the average was full.
        risen: steps in a row whose smoothed loss is a multiple of the best.
        score: smoothed training lDDT-Cα, of finite steps after the warm-up.
        mark: smoothed score at the last gain.
        mark_step: when that was.
        scored: the one validation that is judged has been.
        verdict: the first one; later steps change nothing any more.
    """

    step: int = 0
    nonfinite: Streak = field(default_factory=Streak)
    loss: Average = field(default_factory=Average)
    best_loss: float | None = None
    risen: Streak = field(default_factory=Streak)
    score: Average = field(default_factory=Average)
    mark: float | None = None
    mark_step: int = 0
    scored: bool = False
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, which JSON keeps exactly."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GuardState":
        """The state that `to_dict` took apart.

        Raises:
            TypeError, KeyError: these are no such values.
        """
        parts: dict[str, Any] = {name: Streak(**values[name]) for name in ("nonfinite", "risen")}
        parts |= {name: Average(**values[name]) for name in ("loss", "score")}
        if values["verdict"] is not None:
            parts["verdict"] = Verdict(**values["verdict"])
        return cls(**values | parts)


def judge(log: Iterable[Observation], config: GuardConfig, warmup_steps: int) -> Verdict | None:
    """The verdict on a whole log, which has one observation for each step.

    Args:
        log: in order of the steps.
        config: the rules.
        warmup_steps: steps until the learning rate is whole.
    """
    state = GuardState()
    for observation in log:
        state = observe(state, observation, config, warmup_steps)
    return state.verdict


def observe(
    state: GuardState, observation: Observation, config: GuardConfig, warmup_steps: int
) -> GuardState:
    """Takes one step into account.

    Args:
        state: of the steps before.
        observation: the next step.
        config: the rules; the same ones as for the steps before.
        warmup_steps: steps until the learning rate is whole. A loss that rises in them counts from
            their end on: a run may explode in its warm-up and never come back.

    Raises:
        ValueError: the step is an earlier one.
    """
    if state.verdict is not None:
        return state
    if observation.step < state.step:
        raise ValueError(f"step {observation.step} is observed after step {state.step}")
    nonfinite = state.nonfinite.after(observation.step, not observation.finite)
    state = replace(state, step=observation.step, nonfinite=nonfinite)
    warm = observation.step > warmup_steps
    state = _with_loss(state, observation, config, warm)
    if warm:
        state = _with_score(state, observation, config)
    judged = _validation_to_judge(state, observation, config)
    verdict = (
        _nonfinite_verdict(state, observation, config)
        or _loss_verdict(state, config)
        or _update_verdict(observation, config)
        or _score_verdict(observation, judged, config)
    )
    return replace(state, scored=state.scored or judged is not None, verdict=verdict)


def observe_validation(
    state: GuardState, step: int, score: float, config: GuardConfig
) -> GuardState:
    """Takes a validation into account that comes after its step was observed.

    Args:
        state: of the steps so far.
        step: optimizer steps done.
        score: mean lDDT-Cα of the validation chains, 0 to 1; NaN counts as no score.
        config: the rules.
    """
    if state.verdict is not None:
        return state
    observation = Observation(step, math.nan, math.nan, validation_score=score)
    judged = _validation_to_judge(state, observation, config)
    verdict = _score_verdict(observation, judged, config)
    return replace(state, scored=state.scored or judged is not None, verdict=verdict)


def on_plateau(state: GuardState, config: GuardConfig) -> bool:
    """Whether the smoothed training lDDT-Cα is low and has not risen for long.

    Its rise is counted from mark to mark: each is the first score that is higher by a gain than the
    mark before, so that a score that falls and recovers has gained nothing.
    """
    return (
        config.plateau_steps > 0
        and state.mark is not None
        and state.score.value < config.plateau_score
        and state.step - state.mark_step >= config.plateau_steps
    )


def _with_loss(
    state: GuardState, observation: Observation, config: GuardConfig, warm: bool
) -> GuardState:
    # A step that is not finite leaves the average where it was: its streak goes on.
    loss = state.loss
    if observation.finite:
        loss = loss.after(observation.loss, config.smoothing)
    if loss.count < config.smoothing:
        return replace(state, loss=loss)
    best = loss.value if state.best_loss is None else min(state.best_loss, loss.value)
    high = warm and loss.value > config.loss_factor * best
    risen = state.risen.after(observation.step, high)
    return replace(state, loss=loss, best_loss=best, risen=risen)


def _with_score(state: GuardState, observation: Observation, config: GuardConfig) -> GuardState:
    value = observation.train_score
    if value is None or not math.isfinite(value) or not observation.finite:
        return state
    score = state.score.after(value, config.smoothing)
    state = replace(state, score=score)
    if score.count < config.smoothing:
        return state
    if state.mark is None or score.value - state.mark >= config.plateau_gain:
        return replace(state, mark=score.value, mark_step=observation.step)
    return state


def _validation_to_judge(
    state: GuardState, observation: Observation, config: GuardConfig
) -> float | None:
    """The first validation score at `score_step` or later."""
    score = observation.validation_score
    if state.scored or config.score_step is None or observation.step < config.score_step:
        return None
    return score if score is not None and math.isfinite(score) else None


def _nonfinite_verdict(
    state: GuardState, observation: Observation, config: GuardConfig
) -> Verdict | None:
    length, since = state.nonfinite.length, state.nonfinite.since
    if not 0 < config.nonfinite_steps <= length:
        return None
    message = (
        f"the loss or the gradient was not finite in {length:,} steps in a row (since step"
        f" {since:,}; at step {state.step:,} the loss was {observation.loss:g} and the norm of the"
        f" gradient {observation.gradient_norm:g})"
    )
    return Verdict("nonfinite", state.step, since, message)


def _loss_verdict(state: GuardState, config: GuardConfig) -> Verdict | None:
    length, since = state.risen.length, state.risen.since
    if not 0 < config.loss_steps <= length:
        return None
    message = (
        f"the smoothed loss was above {config.loss_factor:g} x its best of {state.best_loss:.4g} in"
        f" {length:,} steps in a row (since step {since:,}; at step {state.step:,} it was"
        f" {state.loss.value:.4g})"
    )
    return Verdict("loss", state.step, since, message)


def _update_verdict(observation: Observation, config: GuardConfig) -> Verdict | None:
    size = observation.update
    if not config.update_limit or size is None or not size > config.update_limit:
        return None
    message = (
        f"the adapter's update of a matrix was {size:.4g} x the matrix at step"
        f" {observation.step:,}, above guard.update_limit {config.update_limit:g}; a smaller"
        " adapter.alpha keeps it lower"
    )
    return Verdict("update", observation.step, observation.step, message)


def _score_verdict(
    observation: Observation, score: float | None, config: GuardConfig
) -> Verdict | None:
    if score is None or score >= config.score_floor:
        return None
    message = (
        f"validation lDDT-Cα was {score:.3f} at step {observation.step:,}, below the floor of"
        f" {config.score_floor:g}"
    )
    return Verdict("score", observation.step, observation.step, message)

"""Whether a run has diverged or is on a plateau: pure functions of its logged steps.

`observe` folds one step after the other into a small state, which a checkpoint keeps, so that a
resumed run is judged as if it had never stopped. LoRTA gives no rule; these are ours.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from esmfold_peft.config import GuardConfig


@dataclass(frozen=True)
class Observation:
    """What the guard sees of an optimizer step.

    Attributes:
        step: optimizer steps done with this one, 1 after the first. A step that was skipped is
            observed too, and may have the number of the step before.
        loss: above 0 where it is finite, because it is compared with a multiple of its best.
        gradient_norm: before clipping.
        train_score: lDDT-Cα of the step's crops, 0 to 1; None or NaN if none has a score.
        update: the largest ‖ΔW‖ / ‖W‖ of the adapted matrices; None where it was not measured.
    """

    step: int
    loss: float
    gradient_norm: float
    train_score: float | None = None
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
        message: one line with the numbers.
    """

    rule: Literal["nonfinite", "loss", "update", "score"]
    step: int
    since: int
    message: str


@dataclass(frozen=True)
class Streak:
    """Steps in a row with some property: how many, and the number of the first."""

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
    """What the guard remembers of earlier steps. A new run starts with the defaults.

    Attributes:
        step: the last one observed.
        nonfinite: steps in a row that were not finite.
        loss: smoothed, of finite steps.
        best_loss: lowest smoothed loss since the average was full.
        risen: steps in a row whose smoothed loss is a multiple of the best.
        score: smoothed training lDDT-Cα, of finite steps after the warm-up.
        mark: smoothed score at the last gain.
        mark_step: when that was.
        scored: whether the one validation that counts has been judged.
        verdict: the first one; later steps change nothing.
    """

    step: int = 0
    nonfinite: Streak = Streak()
    loss: Average = Average()
    best_loss: float | None = None
    risen: Streak = Streak()
    score: Average = Average()
    mark: float | None = None
    mark_step: int = 0
    scored: bool = False
    verdict: Verdict | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GuardState":
        """The state from its `asdict`, whose plain numbers and text JSON keeps exactly."""
        parts: dict[str, Any] = {name: Streak(**values[name]) for name in ("nonfinite", "risen")}
        parts |= {name: Average(**values[name]) for name in ("loss", "score")}
        if values["verdict"] is not None:
            parts["verdict"] = Verdict(**values["verdict"])
        return cls(**values | parts)


def observe(
    state: GuardState, observation: Observation, config: GuardConfig, warmup_steps: int
) -> GuardState:
    """Takes the next step into account, by the same rules as the steps before.

    A loss that has risen during the warm-up counts once the warm-up is over: a run may explode in
    it and never recover.
    """
    if state.verdict is not None:
        return state
    nonfinite = state.nonfinite.after(observation.step, not observation.finite)
    state = replace(state, step=observation.step, nonfinite=nonfinite)
    warm = observation.step > warmup_steps
    state = _with_loss(state, observation, config, warm)
    if warm:
        state = _with_score(state, observation, config)
    return replace(state, verdict=_verdict(state, observation, config))


def observe_validation(
    state: GuardState, step: int, score: float, config: GuardConfig
) -> GuardState:
    """Judges the first validation at `score_step` or later that has a score, which NaN is not."""
    early = config.score_step is None or step < config.score_step
    if state.verdict is not None or state.scored or early or not math.isfinite(score):
        return state
    verdict = None
    if score < config.score_floor:
        message = (
            f"validation lDDT-Cα was {score:.3f} at step {step:,}, below the floor of"
            f" {config.score_floor:g}"
        )
        verdict = Verdict("score", step, step, message)
    return replace(state, scored=True, verdict=verdict)


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
    # A step that is not finite leaves the average where it was: it does not end the streak.
    if observation.finite:
        state = replace(state, loss=state.loss.after(observation.loss, config.smoothing))
    if state.loss.count < config.smoothing:
        return state
    loss = state.loss.value
    best = loss if state.best_loss is None else min(state.best_loss, loss)
    risen = state.risen.after(observation.step, warm and loss > config.loss_factor * best)
    return replace(state, best_loss=best, risen=risen)


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


def _verdict(state: GuardState, observation: Observation, config: GuardConfig) -> Verdict | None:
    """The first rule that a step fulfils."""
    step, bad, risen, size = state.step, state.nonfinite, state.risen, observation.update
    if 0 < config.nonfinite_steps <= bad.length:
        message = (
            f"the loss or the gradient was not finite in {bad.length:,} steps in a row (since step"
            f" {bad.since:,}; at step {step:,} the loss was {observation.loss:g} and the norm of"
            f" the gradient {observation.gradient_norm:g})"
        )
        return Verdict("nonfinite", step, bad.since, message)
    if 0 < config.loss_steps <= risen.length:
        message = (
            f"the smoothed loss was above {config.loss_factor:g} x its best of"
            f" {state.best_loss:.4g} in {risen.length:,} steps in a row (since step"
            f" {risen.since:,}; at step {step:,} it was {state.loss.value:.4g})"
        )
        return Verdict("loss", step, risen.since, message)
    if config.update_limit and size is not None and size > config.update_limit:
        message = (
            f"the adapter's update of a matrix was {size:.4g} x the matrix at step {step:,}, above"
            f" guard.update_limit {config.update_limit:g}; a smaller adapter.alpha keeps it lower"
        )
        return Verdict("update", step, step, message)
    return None

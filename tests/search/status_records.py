"""A search made by hand, of which every number is known."""

from pathlib import Path

from esmfold_peft.config import (
    DataConfig,
    EngineConfig,
    ExecutorConfig,
    LadderConfig,
    SearchConfig,
)
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import StepsLeft, Trial
from esmfold_peft.search.search_record import LadderRecord, SearchRecord, State, TrialRecord

STEPS = 1000
HALF = 100
LORTA, LORA = Arm("lorta", 8, 0), Arm("lora", 1, 0)
LORTA_1, FULL = Arm("lorta", 1, 3), Arm("full", None, 0)
NONE = Arm("none", None, 0)
MESSAGE = "the loss was not finite in 10 steps in a row (since step 41)"


def trial(
    arm: Arm, multiple: float, state: State, step: int, seconds: float, **more
) -> TrialRecord:
    """A trial of an arm; `seconds` are GPU-seconds."""
    steps = more.pop("steps", STEPS)
    alpha = arm.alpha(Trial(multiple, steps))
    folder = Path("out/trials", arm.name, f"alpha_{multiple * (arm.rank or 1):g}")
    asked = Trial(multiple, steps)
    return TrialRecord(arm, asked, alpha, folder, state, step, gpu_seconds=seconds, **more)


def diverged(arm: Arm, multiple: float, step: int, seconds: float, **more) -> TrialRecord:
    return trial(arm, multiple, "diverged", step, seconds, rule="nonfinite", **more)


def config(concurrent: int = 1, halve_at: int | None = None, **engine) -> SearchConfig:
    """Ladders of 256·r and 128·r, 64·r and 32·r, with trials of 1,000 steps."""
    return SearchConfig(
        output=Path("out"),
        data=DataConfig(train=Path("train"), validation=Path("validation")),
        grid={"lorta": [8, 1], "lora": [1], "full": []},
        ladder=LadderConfig(floor=32.0, halve_at=halve_at),
        executor=ExecutorConfig(concurrent=concurrent),
        engine=EngineConfig(steps=STEPS, **engine),
    )


def record(*ladders: LadderRecord, **settings) -> SearchRecord:
    return SearchRecord(config(**settings), ladders)


def won() -> LadderRecord:
    """The first pair diverged, both of the second converged."""
    better = trial(LORTA, 32.0, "converged", 1000, 2000.0, score=0.667)
    trials = (
        diverged(LORTA, 256.0, 50, 150.0, message=MESSAGE),
        diverged(LORTA, 128.0, 400, 800.0),
        trial(LORTA, 64.0, "converged", 1000, 2050.0, score=0.6, attempts=3),
        better,
    )
    return LadderRecord(LORTA, trials, winner=better)


def climbing() -> LadderRecord:
    """The first pair diverged; one of the second runs, the other was interrupted."""
    trials = (
        diverged(LORA, 256.0, 0, 30.0),
        diverged(LORA, 128.0, 200, 600.0),
        trial(LORA, 64.0, "running", 500, 1500.0, score=0.41),
        trial(LORA, 32.0, "interrupted", 300, 900.0),
    )
    return LadderRecord(LORA, trials, rung=1, steps_left=StepsLeft(1200, 1200, 700, 700))


def exhausted() -> LadderRecord:
    """All have diverged, at half their steps and 4 GPU-seconds a step."""
    trials = tuple(diverged(LORTA_1, m, 500, 2000.0) for m in (256.0, 128.0, 64.0, 32.0))
    return LadderRecord(LORTA_1, trials, exhausted=True)


def waiting() -> LadderRecord:
    """Full fine-tuning, which has one trial and no α, is not begun."""
    return LadderRecord(FULL, (), steps_left=StepsLeft(*[1000] * 4))

"""What is known of a search, as its status and its report read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esmfold_peft.config import SearchConfig
from esmfold_peft.search.grid import Arm, baseline_of
from esmfold_peft.search.ladder import Trial

State = Literal[
    "running", "converged", "plateau", "diverged", "below frozen", "interrupted", "failed"
]


@dataclass(frozen=True)
class TrialRecord:
    """A trial that was begun.

    Attributes:
        arm: adapter, rank and seed.
        trial: multiple and steps asked for last.
        alpha: None where there is none.
        folder: of the trial; its training is in folder/run.
        state: the search resumes an interrupted trial; a failed one ended by an error; one that is
            below frozen has ended and does not beat the frozen trial of its seed.
        step: optimizer steps done.
        score: validation lDDT-Cα by the ladder's metric, 0 to 1; None if there is none.
        train_score: training lDDT-Cα, mean over the last lines of metrics.csv; None if none.
        parameters: trained ones in the language model; None if not known yet.
        rule: of the guard that ended it; None if it has not diverged.
        message: why it ended so.
        attempts: how often it was begun.
        gpu_seconds: wall time of all attempts, times the devices.
        beaten: a rung's other trial goes on instead of it after halving.
    """

    arm: Arm
    trial: Trial
    alpha: float | None
    folder: Path
    state: State
    step: int
    score: float | None = None
    train_score: float | None = None
    parameters: int | None = None
    rule: str | None = None
    message: str | None = None
    attempts: int = 1
    gpu_seconds: float = 0.0
    beaten: bool = False

    @property
    def seconds_per_step(self) -> float | None:
        """GPU-seconds of an optimizer step; None before the first."""
        return self.gpu_seconds / self.step if self.step else None


@dataclass(frozen=True)
class LadderRecord:
    """One ladder.

    Attributes:
        arm: what it is climbed for.
        trials: in the order in which they were begun.
        winner: the trial that is kept; None while it is open, or where none has survived.
        exhausted: no trial has survived down to the floor.
        waits: it goes on when the frozen trial of its seed has ended.
        steps_left: optimizer steps of trials that are left at least and at most; that of trials
            which run now is counted whole.
    """

    arm: Arm
    trials: tuple[TrialRecord, ...]
    winner: TrialRecord | None = None
    exhausted: bool = False
    waits: bool = False
    steps_left: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SearchRecord:
    """A whole search.

    Attributes:
        output: its folder.
        config: its settings.
        ladders: in the order of the grid, those without a trial too.
        dropped: trials of ladders that the grid no longer has.
    """

    output: Path
    config: SearchConfig
    ladders: tuple[LadderRecord, ...]
    dropped: tuple[TrialRecord, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether a trial is to beat the frozen one."""
        return any(baseline_of(self.config, ladder.arm) for ladder in self.ladders)

    @property
    def winners(self) -> list[TrialRecord]:
        """The trials that are kept, in the order of the grid."""
        return [ladder.winner for ladder in self.ladders if ladder.winner is not None]

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials, ladder by ladder; those that the grid no longer has at the end."""
        return [*(trial for ladder in self.ladders for trial in ladder.trials), *self.dropped]

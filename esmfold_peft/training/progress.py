"""What a person sees of a training, and how fast it goes."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from esmfold_peft.config import TrainConfig
from esmfold_peft.console import report

_SHOWN = {"train/loss": "loss", "train/lddt_ca": "lDDT", "validation/lddt_ca": "validation lDDT"}
_SECONDS_BETWEEN_LINES = 60.0
_WINDOW = 30.0  # s


@dataclass(frozen=True)
class Snapshot:
    """Where a training stands: steps of the run, the latest metrics, speed, and peak memory in GiB.

    The speed is without validations, times in seconds are with them. NaN stands for what is not
    known yet.
    """

    step: int
    total: int
    metrics: Mapping[str, float]
    skipped: int
    steps_per_second: float
    chains_per_second: float
    memory: float
    elapsed: float
    left: float

    def __str__(self) -> str:
        parts = [f"{_SHOWN[k]} {self.metrics[k]:.3f}" for k in _SHOWN if k in self.metrics]
        if math.isfinite(self.steps_per_second):
            parts.append(f"{_rounded(self.steps_per_second)} steps/s")
            parts.append(f"{_rounded(self.chains_per_second)} chains/s")
        parts.append(f"peak {self.memory:.2f} GiB")
        if self.skipped:
            parts.append(f"{self.skipped:,} skipped")
        return ", ".join(parts)

    @property
    def time_left(self) -> str:
        """The time left, after a comma; nothing if it is not known yet."""
        return f", {duration(self.left)} left" if math.isfinite(self.left) else ""


class View:
    """Shows nothing, for every process but the first."""

    def show(self, now: Snapshot, due: bool) -> None:
        """Shows where the steps stand; `due` asks for a line of its own."""

    def validating(self, step: int, done: int, total: int) -> None:
        """Shows how many chains of a validation are done."""

    def end(self) -> None:
        """Gives the terminal back."""


class Lines(View):
    """Prints a line at every validation, and after a minute without one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed_at: float | None = None

    def show(self, now: Snapshot, due: bool) -> None:
        """Prints a line if one is due, or after a minute."""
        if self._waited() or due:
            self._printed_at = self._clock()
            of = f"{now.elapsed:.0f} s{now.time_left} of {now.total:,} steps"
            print(f"step {now.step}: {now}, {of}", flush=True)

    def validating(self, step: int, done: int, total: int) -> None:
        """Reports how far a long validation is."""
        if self._waited():
            self._printed_at = self._clock()
            report(f"validation at step {step:,}: {done:,} of {total:,} chains")

    def _waited(self) -> bool:
        """Whether a minute has passed since the last line, or since the first call."""
        if self._printed_at is None:
            self._printed_at = self._clock()
        return self._clock() - self._printed_at >= _SECONDS_BETWEEN_LINES


class Bar(View):
    """A bar of optimizer steps, another of chains while they are validated, and the latest numbers.

    Lightning's own bar counts only the steps of this process, and does not see our validation.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}"),
        )
        self._training = self._bars.add_task("training", total=None, times="")
        self._validation: TaskID | None = None
        # Below the bars, because in a narrow terminal they would have no room beside it.
        self._numbers = Text()
        self._live = Live(Group(self._bars, self._numbers), console=console or Console(stderr=True))

    def show(self, now: Snapshot, due: bool) -> None:
        """Moves the bar, and removes that of a validation."""
        self._live.start()
        if self._validation is not None:
            self._bars.remove_task(self._validation)
            self._validation = None
        times = duration(now.elapsed) + now.time_left
        self._bars.update(self._training, completed=now.step, total=now.total, times=times)
        self._numbers.plain = str(now)

    def validating(self, step: int, done: int, total: int) -> None:
        """Shows the second bar."""
        self._live.start()
        if self._validation is None:
            self._validation = self._bars.add_task("validation", times="")
        self._bars.update(self._validation, completed=done, total=total)

    def end(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        self._live.stop()


class Rates:
    """Steps per second over the last half minute, or over the last step if it took longer.

    A mean since the start would keep the slow first steps for hours.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()

    def observe(self, step: int, seconds: float) -> None:
        """Takes note of the steps done after some seconds of training, without validations."""
        self._seen.append((step, seconds))
        while len(self._seen) > 2 and seconds - self._seen[1][1] >= _WINDOW:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float:
        """NaN until a step has been made."""
        if len(self._seen) < 2:
            return math.nan
        (first, began), (last, ended) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began else math.nan


class TrainingProgress:
    """Counts steps and time, and shows them.

    Args:
        config: of the run.
        step: optimizer steps done before.
        device: whose memory is measured.
        view: how it is shown; None takes a bar in a terminal, and otherwise lines.
        clock: gives seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        step: int,
        device: torch.device,
        view: View | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._device = device
        self._view = view or (Bar() if sys.stderr.isatty() else Lines())
        self._clock = clock
        self._latest: dict[str, float] = {}
        self._skipped = 0
        self._validated, self._to_validate = 0, 0  # chains
        self._pause_began = self._last_pause = 0.0  # s; a pause is a validation
        self.start(step)

    def start(self, step: int) -> None:
        """Starts the clock."""
        self._rates = Rates()
        self._started, self._paused = self._clock(), 0.0
        self._count(step)

    def stepped(self, step: int, metrics: Mapping[str, float], skipped: int = 0) -> None:
        """Takes in the metrics of a step, and how many steps of the run were skipped so far."""
        self._latest |= metrics
        self._skipped = skipped
        self._count(step)
        # Without validation chains there are as many lines as with them.
        alone = self._config.data.validation is None
        self.show(due=alone and step % self._config.engine.validate_every == 0)

    def validation_started(self, total_chains: int) -> None:
        """Stops the clock of the steps while this process validates some chains."""
        self._pause_began = self._clock()
        self._validated, self._to_validate = 0, total_chains
        self.validation_advanced(0)

    def validation_advanced(self, chains: int) -> None:
        """Counts chains that are done."""
        self._validated += chains
        self._view.validating(self._step, self._validated, self._to_validate)

    def validation_ended(self, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of a validation; the steps continue."""
        self._last_pause = self._clock() - self._pause_began
        self._paused += self._last_pause
        self._latest |= metrics
        self.show(due=True)

    def end(self) -> None:
        """Gives the terminal back."""
        self._view.end()

    def rates(self) -> dict[str, float]:
        """Steps and chains per second (NaN before the first step), and the peak memory in GiB.

        All are of the run but the memory, which is this process's.
        """
        rate = self._rates.steps_per_second
        return {
            "steps_per_second": rate,
            "chains_per_second": rate * self._config.engine.batch_size,
            "peak_memory_gib": self._memory,
        }

    def show(self, *, due: bool = False) -> None:
        """Shows where the training stands; see `View`."""
        steps, chains, memory = self.rates().values()
        end = max(self._config.engine.steps, self._step)
        every = self._config.engine.validate_every
        validations = end // every - self._step // every  # that will take as long as the last one
        left = (end - self._step) / (steps or math.nan) + validations * self._last_pause
        elapsed = self._clock() - self._started
        now = Snapshot(
            self._step, end, self._latest, self._skipped, steps, chains, memory, elapsed, left
        )
        self._view.show(now, due)

    def _count(self, step: int) -> None:
        self._step = step
        self._rates.observe(step, self._clock() - self._started - self._paused)
        self._memory = peak_memory(self._device)


def peak_memory(device: torch.device) -> float:
    """Most memory in GiB that this process has had: of a GPU in tensors, of a CPU resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, with days where there are some."""
    return str(timedelta(seconds=round(seconds)))


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

"""How a training is shown: a bar in a terminal, lines in a log file, or nothing."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from esmfold_peft.console import report

_SHOWN = {"train/loss": "loss", "train/lddt_ca": "lDDT", "validation/lddt_ca": "validation lDDT"}
_SKIPPED = "train/skipped_steps"
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class Status:
    """Where a training stands.

    Attributes:
        step: optimizer steps done.
        total: steps of the whole run, at least `step`.
        metrics: the latest values by name.
        steps_per_second: without validations; NaN if not known yet.
        chains_per_second: the same in chains.
        memory: most memory taken so far in GiB.
        elapsed: seconds since the start, with validations.
        left: seconds until the end, with validations; NaN if not known yet.
    """

    step: int
    total: int
    metrics: Mapping[str, float]
    steps_per_second: float
    chains_per_second: float
    memory: float
    elapsed: float
    left: float

    def __str__(self) -> str:
        return ", ".join([*self._scores(), *self._speed()])

    def _scores(self) -> list[str]:
        return [f"{_SHOWN[k]} {self.metrics[k]:.3f}" for k in _SHOWN if k in self.metrics]

    def _speed(self) -> list[str]:
        parts = []
        if math.isfinite(self.steps_per_second):
            parts.append(f"{_rounded(self.steps_per_second)} steps/s")
            parts.append(f"{_rounded(self.chains_per_second)} chains/s")
        parts.append(f"peak {self.memory:.2f} GiB")
        if skipped := round(self.metrics.get(_SKIPPED, 0)):
            parts.append(f"{skipped:,} skipped")
        return parts


class View:
    """Shows nothing: that of all processes but the first."""

    def started(self, status: Status) -> None:
        """The training begins, or goes on from a checkpoint."""

    def advanced(self, status: Status, due: bool) -> None:
        """A step is done.

        Args:
            status: after it.
            due: this is where a run without validation chains would validate.
        """

    def validating(self, step: int, done: int, total: int) -> None:
        """Some chains of a validation are done, at first none."""

    def validated(self, status: Status) -> None:
        """A validation is done."""

    def ended(self) -> None:
        """The training is over, or has failed."""


class Lines(View):
    """Prints a line at every validation, and after a minute without one.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed_at = clock()

    def started(self, status: Status) -> None:
        """Starts the minute."""
        self._printed_at = self._clock()

    def advanced(self, status: Status, due: bool) -> None:
        """Prints where it is time to."""
        if due or self._waited():
            self._print(status)

    def validating(self, step: int, done: int, total: int) -> None:
        """Says after a minute how far it is."""
        if self._waited():
            self._printed_at = self._clock()
            report(f"validation at step {step:,}: {done:,} of {total:,} chains")

    def validated(self, status: Status) -> None:
        """Prints the score."""
        self._print(status)

    def _waited(self) -> bool:
        return self._clock() - self._printed_at >= _SECONDS_BETWEEN_LINES

    def _print(self, status: Status) -> None:
        self._printed_at = self._clock()
        left = f", {duration(status.left)} left" if math.isfinite(status.left) else ""
        of = f"{status.elapsed:.0f} s{left} of {status.total:,} steps"
        print(f"step {status.step}: {status}, {of}", flush=True)


class Bar(View):
    """A bar of optimizer steps, another of chains while they are validated, and the latest numbers.

    Lightning's own bar counts micro-batches, so that it runs past its end where they are
    accumulated.

    Args:
        console: where it is drawn.
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

    def started(self, status: Status) -> None:
        """Shows the bar."""
        self._live.start()
        self._show(status)

    def advanced(self, status: Status, due: bool) -> None:
        """Moves the bar."""
        self._show(status)

    def validating(self, step: int, done: int, total: int) -> None:
        """Shows the second bar."""
        if self._validation is None:
            self._validation = self._bars.add_task("validation", times="")
        self._bars.update(self._validation, completed=done, total=total)

    def validated(self, status: Status) -> None:
        """Takes the second bar away."""
        if self._validation is not None:
            self._bars.remove_task(self._validation)
            self._validation = None
        self._show(status)

    def ended(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        self._live.stop()

    def _show(self, status: Status) -> None:
        left = f", {duration(status.left)} left" if math.isfinite(status.left) else ""
        times = duration(status.elapsed) + left
        self._bars.update(self._training, completed=status.step, total=status.total, times=times)
        self._numbers.plain = str(status)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, with days where there are some."""
    return str(timedelta(seconds=round(seconds)))


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

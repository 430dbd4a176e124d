"""Running the checks one after the other: none can lose the others, and none outlasts the time."""

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from gpu_checks.report import Report, Row, failed, skipped
from gpu_checks.sizes import Sizes

if TYPE_CHECKING:
    from gpu_checks.paper_step import Setup

NO_TIME = "no time left"


class OutOfTimeError(BaseException):
    """A check took longer than it may; no TimeoutError, which code of checks would catch."""


@dataclass(eq=False)
class Context:
    """What the checks share.

    Attributes:
        device: under check.
        sizes: of everything.
        scratch: folder that is removed at the end.
        tiles: file of the kernels' tiles, which a sweep writes.
        setup: the fastest way to compute a training step, once it is known.
    """

    device: torch.device
    sizes: Sizes
    scratch: Path
    tiles: Path
    setup: "Setup | None" = None


@dataclass(frozen=True)
class Check:
    """A function that gives rows.

    Attributes:
        name: also of the row that says that it broke off or was not begun.
        call: of the two, so that a GPU is needed for 6 minutes at a time.
        run: gives its rows as it finds them.
        seconds: at most.
        benchmark: without a verdict, so that it may be left out where time is short.
        needs: seconds without which it is not begun.
    """

    name: str
    call: int
    run: Callable[[Context], Iterator[Row]]
    seconds: float
    benchmark: bool = False
    needs: float = 0.0


def run_checks(
    checks: list[Check],
    context: Context,
    report: Report,
    *,
    deadline: float,
    say: Callable[[Row], None],
) -> None:
    """Runs the checks that have not ended, each guarded.

    A check has ended if it was not broken off, whatever its rows say.

    Args:
        checks: in order.
        context: passed to each.
        report: receives the rows.
        deadline: by `time.monotonic`.
        say: called with every row.
    """
    for check in checks:
        if check.name in report.ended:
            continue

        def add(row: Row, check: Check = check) -> None:
            report.add(replace(row, check=check.name))
            say(row)

        left = deadline - time.monotonic()
        if left <= check.needs:
            add((skipped if check.benchmark else failed)(check.name, NO_TIME))
            continue
        if _run(check, context, min(left, check.seconds), add):
            report.end(check.name)
        tidy(context.device)


def _run(check: Check, context: Context, seconds: float, add: Callable[[Row], None]) -> bool:
    """Whether the check ended, in success or failure, within its time."""
    last = started = time.monotonic()
    try:
        with time_limit(seconds):
            for row in check.run(context):
                now = time.monotonic()
                add(replace(row, seconds=now - last))
                last = now
    except OutOfTimeError:
        taken = time.monotonic() - started
        reason = f"{NO_TIME} after {taken:.0f} s of it"
        add((skipped if check.benchmark else failed)(check.name, reason))
        return False
    # Whatever went wrong, the other checks are run: benchmarks leave by SystemExit.
    except (Exception, SystemExit) as error:
        add(replace(failed(check.name, _reason(error)), seconds=time.monotonic() - last))
    return True


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Breaks off what is inside after some time, by an alarm of the operating system.

    Raises:
        OutOfTimeError: in the code inside.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reason(error: BaseException) -> str:
    """One line: what, and where in these scripts or the package."""
    text = str(error).strip().partition("\n")[0][:300]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}"


def tidy(device: torch.device) -> None:
    """Frees what is no longer used, so that what follows has the memory.

    Args:
        device: under check.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""Runs the checks one after the other, each within its time; a failed one stops no other."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from gpu_checks.models import Sizes
from gpu_checks.report import Report, Row, failed, skipped

if TYPE_CHECKING:
    from gpu_checks.step import Setup

ROOT = Path(__file__).parents[2]
NO_TIME = "no time left"


class OutOfTimeError(BaseException):
    """A check took longer than it may. Not a TimeoutError, which code of checks would catch."""


@dataclass(eq=False)
class Context:
    """What the checks share.

    Attributes:
        device: under check.
        sizes: of everything.
        scratch: folder that is removed at the end.
        report: of this call.
        tiles: file of the kernels' tiles, which a sweep writes.
        setup: the fastest way to compute a training step, once it is known.
    """

    device: torch.device
    sizes: Sizes
    scratch: Path
    report: Report
    tiles: Path
    setup: "Setup | None" = None


@dataclass(frozen=True)
class Check:
    """A function that gives rows.

    Attributes:
        name: also of the row that reports that it failed or was not started.
        call: 1 or 2; each needs a GPU for 6 minutes.
        run: gives its rows as it finds them.
        seconds: at most.
        needs: with less time left (seconds) it is not started.
        required: without time it counts as failed; others are skipped.
    """

    name: str
    call: int
    run: Callable[[Context], Generator[Row]]
    seconds: float
    needs: float = 0.0
    required: bool = False


def run_checks(
    checks: list[Check], context: Context, *, deadline: float, say: Callable[[Row], None]
) -> None:
    """Runs the checks that have not ended; an error in one does not stop the others.

    A check that ran to its end has ended, also if its rows are failures. `deadline` is a time of
    `time.monotonic`; `say` is called with every row.
    """
    report = context.report

    def add(check: str, row: Row) -> None:
        report.add(replace(row, check=row.check or check))
        say(row)

    for check in checks:
        if check.name in report.ended:
            continue
        left = deadline - time.monotonic()
        if left <= check.needs:
            add(check.name, (failed if check.required else skipped)(check.name, NO_TIME))
            continue
        if _run(check, context, min(left, check.seconds), partial(add, check.name)):
            report.end(check.name)
        tidy(context.device)


def _run(check: Check, context: Context, seconds: float, add: Callable[[Row], None]) -> bool:
    """Whether the check ended, in success or failure, within its time."""
    last = started = time.monotonic()
    try:
        with time_limit(seconds), closing(check.run(context)) as rows:
            for row in rows:
                now = time.monotonic()
                add(replace(row, seconds=now - last))
                last = now
    except OutOfTimeError:
        reason = f"{NO_TIME} after {time.monotonic() - started:.0f} s of it"
        add((failed if check.required else skipped)(check.name, reason))
        return False
    # Whatever went wrong, the other checks are run: benchmarks leave by SystemExit.
    except (Exception, SystemExit) as error:
        add(replace(failed(check.name, _reason(error)), seconds=time.monotonic() - last))
    return True


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stops the code inside after some time, by an alarm of the operating system.

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


def gpu_tests(context: Context) -> Generator[Row]:
    """Runs `pytest -m gpu tests/gpu` in a process of its own, so that a fault there ends it alone.

    Each test is a row, and is not run again by a resumed call. What pytest prints is in a file
    beside the report.
    """
    report, log = context.report, context.report.path.with_suffix(".log")
    ended = [name for name in report.ended if "::" in name]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    command += [word for name in ended for word in ("--deselect", name)]
    read, write = os.pipe()
    environment = os.environ | {
        "GPU_CHECK_ROWS": str(write),
        "JAXTYPING_DISABLE": "1",  # code with checks of shapes cannot be compiled
        "GPU_CHECK_TINY": "1" if context.sizes.tiny else "",
    }
    if context.device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[write], stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    os.close(write)
    found = len(ended)
    try:
        with open(read) as lines:
            for line in lines:
                row = Row(**json.loads(line))
                yield row
                report.end(row.check)
                found += 1
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code not in ((0, 1, 5) if ended else (0, 1)) or not found:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        yield failed("pytest", f"ended with code {code}: {last} ({log})")


def _reason(error: BaseException) -> str:
    """One line: what, and where in these scripts or the package."""
    text = str(error).strip().partition("\n")[0][:300]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}"


def tidy(device: torch.device) -> None:
    """Frees unused memory for the next check."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

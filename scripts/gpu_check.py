"""Checks and measures everything on a GPU, in two calls of 6 minutes each.

    python scripts/gpu_check.py --call 1         # is it right? how fast are card and kernels?
    python scripts/gpu_check.py --call 2         # how fast are training and inference?
    python scripts/gpu_check.py --tiny           # both, everything tiny, on a CPU: does it run?

Call 1 runs the tests of tests/gpu (`pytest -m gpu`): does the GPU compute what the CPU computes, do
the commands work, does the host never wait? Then it measures the card, and the attention kernels
with several tiles; the fastest are kept in tiles/<card>.json beside the report (copy that file into
esmfold_peft/model/trunks/tiles so that the package uses it). Call 2 times one block, an optimizer
step of the paper's configuration (crop 256, 12 blocks, 32 chains) and its parts, adapters, and
inference by length, and draws loss curves. Language models are random; nothing is downloaded.

Prints a table and writes JSON after every row. Exit code 1 if a check failed. When --minutes run
out, measurements are skipped and checks count as failed. --resume FILE continues a report: checks
that had ended are not run again.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_checks.card import card_speed, environment, environment_rows
from gpu_checks.costs import adapters, inference
from gpu_checks.kernels import attention_times, sweeps
from gpu_checks.models import FULL, TINY
from gpu_checks.report import Report, Row, shown
from gpu_checks.running import Check, Context, gpu_tests, run_checks
from gpu_checks.step import block, pair_track, paper_step, profiling
from measuring import quieten
from rich.console import Console

from esmfold_peft.errors import UserError
from esmfold_peft.model.trunks.tiling import card, file_name, read_tiles, tiles_on

CALLS = (1, 2)

CHECKS = [
    Check("environment", 1, environment_rows, 60),
    Check("card", 1, card_speed, 20),
    Check("tests", 1, gpu_tests, 300, required=True),
    Check("sweeps", 1, sweeps, 150, needs=10),
    Check("attention", 1, attention_times, 60, needs=5),
    Check("block", 2, block, 80, needs=10),
    Check("step", 2, paper_step, 140, needs=20),
    Check("profile", 2, profiling, 60, needs=10),
    Check("adapters", 2, adapters, 30, needs=5),
    Check("inference", 2, inference, 40, needs=5),
    Check("pair track", 2, pair_track, 90, needs=20),
]
"""In order, each with its call and the most seconds that it may take."""


def main(words: list[str] | None = None) -> int:
    """Runs all checks and returns the exit code."""
    started = time.monotonic()
    args = parser().parse_args(words)
    checks = chosen_checks(args.only, args.call)
    device = chosen_device(args.device, tiny=args.tiny)
    quieten()
    torch.set_num_threads(1 if device.type == "cpu" else min(8, os.cpu_count() or 1))
    # A file has no width; narrower, the table's words would break.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    report = Report(args.output or args.resume or default_output(device, tiny=args.tiny))
    alike = {"tiny": args.tiny, "card": card(device)}
    if args.resume:
        report.resume(args.resume, alike)
    report.header = {**alike, "minutes": args.minutes, "environment": environment(device)}
    report.write()
    tiles = report.path.parent / "tiles" / file_name(card(device))
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        sizes = TINY if args.tiny else FULL
        context = Context(device, sizes, Path(scratch), report, tiles)
        use_tiles(context)
        for call in CALLS:
            own = [check for check in checks if check.call == call]
            run_checks(own, context, deadline=started + 60 * args.minutes, say=sayer(console))
            started = time.monotonic()
    console.print(report.table())
    failures = sum(row.status == "failed" for row in report.rows)
    console.print(f"{len(report.rows)} rows, {failures} failed; all numbers: {report.path}")
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--tiny", action="store_true", help="everything as small as it can be, also on a CPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is")
    add("--call", type=int, choices=CALLS, help="one of the two calls (default: both)")
    add("--minutes", type=float, default=6.0, help="for each call (default: 6)")
    add("--only", nargs="+", metavar="NAME", help="these checks")
    add("--resume", type=Path, metavar="FILE", help="report of an earlier call, to continue")
    add("--output", type=Path, help="JSON file (default: FILE, or gpu_check_<device>.json)")
    return parser


def chosen_checks(names: list[str] | None, call: int | None) -> list[Check]:
    """The checks of `--only` and `--call`, in the order of all; None takes all.

    Raises:
        SystemExit: a check is not known.
    """
    known = [check.name for check in CHECKS]
    for name in names or ():
        if name not in known:
            listed = ", ".join(known)
            raise SystemExit(f'gpu_check: --only: no check is named "{name}"; there are: {listed}')
    return [
        check
        for check in CHECKS
        if (names is None or check.name in names) and call in (None, check.call)
    ]


def use_tiles(context: Context) -> None:
    """Has the kernels use the tiles that a sweep of an earlier call found.

    Raises:
        SystemExit: their file is not valid.
    """
    if context.tiles.exists():
        table = tiles_on(context.device)
        try:
            table.update(read_tiles(context.tiles, table))
        except UserError as error:
            raise SystemExit(f"gpu_check: {error}") from error


def chosen_device(name: str, *, tiny: bool) -> torch.device:
    """The device of `--device`; full sizes are for a GPU.

    Raises:
        SystemExit: a GPU is needed and there is none.
    """
    if torch.cuda.is_available() and name != "cpu":
        return torch.device("cuda", torch.cuda.current_device())  # with its index, as tensors have
    if name == "cuda" or not (tiny or name == "cpu"):
        raise SystemExit("gpu_check: PyTorch finds no GPU; --tiny runs everything small on the CPU")
    return torch.device("cpu")


def default_output(device: torch.device, *, tiny: bool) -> Path:
    """A file here that is named by the device."""
    stem = Path(file_name(card(device))).stem
    return Path(f"gpu_check_{stem}{'_tiny' if tiny else ''}.json")


def sayer(console: Console) -> Callable[[Row], None]:
    """Prints a line for every row, with the seconds since the call began."""
    started = time.monotonic()

    def say(row: Row) -> None:
        found = shown(row.value, row.unit)
        text = f"{time.monotonic() - started:5.0f} s  {row.status:7}  {row.name}: {found}"
        more = row.detail if row.status != "passed" or row.value is None else ""
        console.print(f"{text} {more}".rstrip(" :"), markup=False, soft_wrap=True)

    return say


if __name__ == "__main__":
    raise SystemExit(main())

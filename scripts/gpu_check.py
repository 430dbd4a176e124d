"""Checks and measures everything on a GPU, in two calls of 6 minutes each.

    python scripts/gpu_check.py --call 1         # is it right? how fast are card and kernels?
    python scripts/gpu_check.py --call 2         # how fast are training and inference?
    python scripts/gpu_check.py --tiny           # both, everything tiny, on a CPU: does it run?

Call 1: speed of the card; outputs, losses and gradients as on the CPU in float32 and in bfloat16;
training on the chains of data/example, by DeepSpeed ZeRO 2 too, and continued; predictions, also
with too little memory; attention kernels against their formula; their tiles, of which the fastest
are kept in tiles/<card>.json beside the report (copy that file into esmfold_peft/model/trunks/tiles
so that the package uses it); attention beside others'. Call 2: one block; an optimizer step of the
paper's configuration (crop 256, 12 blocks, 32 chains), with its profile, in which the host must not
wait; adapters; inference by length; loss curves. Language models are random; nothing is downloaded.

A table on stdout, and JSON that is written after every row. Exit code 1 if a check failed. What no
longer fits into --minutes is left out: a benchmark is skipped, a check has then failed. --resume
FILE goes on with a report: checks that had ended are not run again.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_checks.attention import attention_kernel, attention_times
from gpu_checks.block import block
from gpu_checks.costs import adapters, inference
from gpu_checks.environment import card_speed, environment, environment_rows
from gpu_checks.paper_step import pair_track, paper_step
from gpu_checks.parity import parity
from gpu_checks.predicting import predicting
from gpu_checks.profiling import profiling
from gpu_checks.report import Report, Row, shown
from gpu_checks.running import Check, Context, run_checks
from gpu_checks.scarce import scarce_memory
from gpu_checks.sizes import full_sizes, tiny_sizes
from gpu_checks.sweeps import sweeps
from gpu_checks.training import learning, resuming, zero2
from rich.console import Console

from esmfold_peft.errors import UserError
from esmfold_peft.model.trunks.tiling import card, file_name, read_tiles, tiles_on

CALLS = (1, 2)

CHECKS = [
    Check("environment", 1, environment_rows, 60),
    Check("card", 1, card_speed, 20, benchmark=True),
    Check("parity", 1, parity, 90),
    Check("training", 1, learning, 90),
    Check("DeepSpeed ZeRO 2", 1, zero2, 120),
    Check("resuming", 1, resuming, 60),
    Check("predict", 1, predicting, 120),
    Check("scarce memory", 1, scarce_memory, 60),
    Check("attention kernel", 1, attention_kernel, 120),
    Check("sweeps", 1, sweeps, 150, benchmark=True, needs=10),
    Check("attention", 1, attention_times, 60, benchmark=True, needs=5),
    Check("block", 2, block, 80, benchmark=True, needs=10),
    Check("step", 2, paper_step, 140, benchmark=True, needs=20),
    Check("profile", 2, profiling, 60),
    Check("adapters", 2, adapters, 30, benchmark=True, needs=5),
    Check("inference", 2, inference, 40, benchmark=True, needs=5),
    Check("pair track", 2, pair_track, 90, benchmark=True, needs=20),
]
"""In order, each with its call and the most seconds that it may take."""


def main(words: list[str] | None = None) -> int:
    """Runs all checks and returns the exit code.

    Args:
        words: of the command line.
    """
    started = time.monotonic()
    args = parser().parse_args(words)
    checks = chosen_checks(args.only, args.call)
    device = chosen_device(args.device, tiny=args.tiny)
    quieten()
    # The CPU is half of the parity check on a GPU; on a busy CPU threads wait for each other.
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
    sizes = tiny_sizes() if args.tiny else full_sizes()
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        context = Context(device, sizes, Path(scratch), tiles)
        use_tiles(context)
        for call in CALLS:
            own = [check for check in checks if check.call == call]
            deadline = started + 60 * args.minutes
            run_checks(own, context, report, deadline=deadline, say=sayer(console))
            started = time.monotonic()
    console.print(report.table())
    failures = report.failures
    console.print(f"{len(report.rows)} rows, {len(failures)} failed; all numbers: {report.path}")
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
    add("--resume", type=Path, metavar="FILE", help="report of an earlier call, to go on with")
    add("--output", type=Path, help="JSON file (default: FILE, or gpu_check_<device>.json)")
    return parser


def chosen_checks(names: list[str] | None, call: int | None) -> list[Check]:
    """The checks of `--only` and `--call`, in the order of all.

    Args:
        names: of checks; None takes all.
        call: 1 or 2; None takes both.

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

    Args:
        context: see there.

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

    Args:
        name: auto, cpu or cuda.
        tiny: sizes for a CPU.

    Raises:
        SystemExit: a GPU is needed and there is none.
    """
    if torch.cuda.is_available() and name != "cpu":
        return torch.device("cuda", torch.cuda.current_device())  # with its index, as tensors have
    if name == "cuda" or not (tiny or name == "cpu"):
        raise SystemExit("gpu_check: PyTorch finds no GPU; --tiny runs everything small on the CPU")
    return torch.device("cpu")


def default_output(device: torch.device, *, tiny: bool) -> Path:
    """A file here that is named by the device.

    Args:
        device: under check.
        tiny: sizes for a CPU.
    """
    stem = Path(file_name(card(device))).stem
    return Path(f"gpu_check_{stem}{'_tiny' if tiny else ''}.json")


def sayer(console: Console) -> Callable[[Row], None]:
    """What prints a line for every row, so that one sees how far it is.

    Args:
        console: to print on.
    """
    started = time.monotonic()

    def say(row: Row) -> None:
        found = shown(row.value, row.unit)
        text = f"{time.monotonic() - started:5.0f} s  {row.status:7}  {row.name}: {found}"
        more = row.detail if row.status != "passed" else ""
        console.print(f"{text} {more}".rstrip(), markup=False, soft_wrap=True)

    return say


def quieten() -> None:
    """Keeps out of the output what is not about the checks."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's log
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reports that it found no GPU


if __name__ == "__main__":
    raise SystemExit(main())

"""Proves the whole on a GPU, and measures it: one command, under 9 minutes on one H100.

    python scripts/gpu_check.py                  # on a GPU
    python scripts/gpu_check.py --tiny           # everything at tiny sizes on a CPU: does it run?

Checks: the attention kernel against its formula; outputs, losses and gradients as on the CPU in
float32, and in bfloat16; training in bfloat16 on the chains of data/example; DeepSpeed ZeRO 2
against the plain engine; going on with a run; predictions, also with too little memory. Benchmarks:
an optimizer step of the paper's configuration (crop 256, 12 blocks, 32 chains by accumulation,
recycling) with its parts, memory, operations and profile, also by openfold3's blocks, with a pair
track in bfloat16 and compiled; one block and its attention alone, beside others'; adapters;
inference by length. Language models are random; nothing is downloaded.

A table on stdout, and JSON that is written after every row. Exit code 1 if a check failed. What no
longer fits into --minutes is left out: a benchmark is skipped, a check has then failed.
"""

import argparse
import os
import re
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
from gpu_checks.environment import environment, environment_rows
from gpu_checks.paper_step import compiled, fastest, otherwise, paper_step
from gpu_checks.parity import parity
from gpu_checks.predicting import predicting
from gpu_checks.profiling import profiling
from gpu_checks.report import Report, Row, shown
from gpu_checks.running import Check, Context, run_checks
from gpu_checks.scarce import scarce_memory
from gpu_checks.sizes import full_sizes, tiny_sizes
from gpu_checks.training import learning, resuming, zero2
from rich.console import Console

CHECKS = [
    Check("environment", environment_rows, 60),
    Check("attention kernel", attention_kernel, 120),
    Check("parity", parity, 120),
    Check("training", learning, 120),
    Check("DeepSpeed ZeRO 2", zero2, 120),
    Check("resuming", resuming, 60),
    Check("predict", predicting, 60),
    Check("scarce memory", scarce_memory, 60),
    Check("setup", fastest, 90, benchmark=True, needs=20),
    Check("paper step", paper_step, 180, benchmark=True, needs=20),
    Check("profile", profiling, 60, benchmark=True, needs=10),
    Check("inference", inference, 60, benchmark=True, needs=5),
    Check("adapters", adapters, 60, benchmark=True, needs=5),
    Check("attention", attention_times, 60, benchmark=True, needs=5),
    Check("step otherwise", otherwise, 60, benchmark=True, needs=10),
    Check("step compiled", compiled, 120, benchmark=True, needs=20),
    Check("block", block, 300, benchmark=True, needs=10),
]
"""In order, with the most seconds of each: the most telling first, compiling last."""


def main(words: list[str] | None = None) -> int:
    """Runs all checks and returns the exit code.

    Args:
        words: of the command line.
    """
    started = time.monotonic()
    args = parser().parse_args(words)
    checks = chosen_checks(args.only)
    device = chosen_device(args.device, tiny=args.tiny)
    quieten()
    # The CPU is half of the parity check on a GPU; on a busy CPU threads wait for each other.
    torch.set_num_threads(1 if device.type == "cpu" else min(8, os.cpu_count() or 1))
    # A file has no width; narrower, the table's words would break.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    report = Report(args.output or default_output(device, tiny=args.tiny))
    report.header = {"tiny": args.tiny, "minutes": args.minutes, "environment": environment(device)}
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        context = Context(device, tiny_sizes() if args.tiny else full_sizes(), Path(scratch))
        deadline = started + 60 * args.minutes
        run_checks(checks, context, report, deadline=deadline, say=sayer(console))
    report.header["seconds"] = round(time.monotonic() - started, 1)
    report.write()
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
    add("--minutes", type=float, default=9.0, help="in all (default: 9)")
    add("--only", nargs="+", metavar="NAME", help="these checks; predict needs training before it")
    add("--output", type=Path, help="JSON file (default: gpu_check_<device>.json)")
    return parser


def chosen_checks(names: list[str] | None) -> list[Check]:
    """The checks of `--only`, in the order of all.

    Args:
        names: of checks; None takes all.

    Raises:
        SystemExit: a check is not known.
    """
    known = [check.name for check in CHECKS]
    for name in names or ():
        if name not in known:
            listed = ", ".join(known)
            raise SystemExit(f'gpu_check: --only: no check is named "{name}"; there are: {listed}')
    return [check for check in CHECKS if names is None or check.name in names]


def chosen_device(name: str, *, tiny: bool) -> torch.device:
    """The device of `--device`; full sizes are for a GPU.

    Args:
        name: auto, cpu or cuda.
        tiny: sizes for a CPU.

    Raises:
        SystemExit: a GPU is needed and there is none.
    """
    if torch.cuda.is_available() and name != "cpu":
        return torch.device("cuda")
    if name == "cuda" or not (tiny or name == "cpu"):
        raise SystemExit("gpu_check: PyTorch finds no GPU; --tiny runs everything small on the CPU")
    return torch.device("cpu")


def default_output(device: torch.device, *, tiny: bool) -> Path:
    """A file here that is named by the device.

    Args:
        device: under check.
        tiny: sizes for a CPU.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    safe = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
    return Path(f"gpu_check_{safe}{'_tiny' if tiny else ''}.json")


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

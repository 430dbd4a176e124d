"""Calling the commands of esmfold-peft, here or in a process of their own, without their output."""

import csv
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from esmfold_peft.cli import main as main_of_esmfold_peft


class CommandError(Exception):
    """A command failed; says its last line."""


def command(*words: object) -> None:
    """Runs one command here, which saves importing PyTorch again.

    Args:
        words: of the command line.

    Raises:
        CommandError: its exit code is not 0.
    """
    arguments, output = [str(word) for word in words], io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            code = main_of_esmfold_peft(arguments)
        except SystemExit as leaving:
            code = leaving.code
    if code != 0:
        raise CommandError(_said(arguments, output.getvalue()))


def command_apart(*words: object, seconds: float) -> None:
    """Runs one command in a process of its own: one that changes the process, or may kill it.

    Args:
        words: of the command line.
        seconds: at most.

    Raises:
        CommandError: its exit code is not 0, or it took too long.
    """
    arguments = [str(word) for word in words]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "esmfold_peft", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{arguments[0]}: not done after {seconds:.0f} s") from error
    if done.returncode != 0:
        raise CommandError(_said(arguments, done.stdout))


def column(run: Path, name: str) -> list[float]:
    """A column of a run's metrics.csv, without empty cells.

    Args:
        run: folder of the run.
        name: of the column.
    """
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run: Path) -> dict[str, Tensor]:
    """The trained tensors of a run by name.

    Args:
        run: its folder.
    """
    return load_file(run / "model.safetensors")


def _said(arguments: list[str], output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return f"{arguments[0]}: {lines[-1].strip() if lines else 'no output'}"

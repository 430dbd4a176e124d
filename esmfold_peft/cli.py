"""The command line.

Help, settings and their errors need no torch: a command is imported when it runs.
"""

import os
import sys
from importlib import import_module

from jsonargparse import ArgumentParser

from esmfold_peft import __version__, config
from esmfold_peft.config_io import OneLineParser, config_parser, to_config
from esmfold_peft.errors import UserError

_COMMANDS: dict[str, tuple[type, str | None]] = {
    "prepare": (config.PrepareConfig, "sources"),
    "train": (config.TrainConfig, None),
    "evaluate": (config.EvaluateConfig, None),
    "predict": (config.PredictConfig, "fasta"),
}
"""Each command's settings, and which of them is given without a flag.

The code of a command is `esmfold_peft.<command>.run`.
"""


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = OneLineParser(
        prog="esmfold-peft",
        description="Fine-tune ESMFold with an adapted ESM-2, evaluate it, and predict structures.",
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command")
    for name, (kind, positional) in _COMMANDS.items():
        command = config_parser(kind, positional)
        commands.add_subcommand(name, command, help=command.description)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        0 if all went well, 1 if the run failed for some inputs, 2 if a setting or an input is
        wrong.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    kind, positional = _COMMANDS[parsed.command]
    try:
        settings = to_config(config_parser(kind, positional), parsed[parsed.command], kind)
        return import_module(f"esmfold_peft.{parsed.command}").run(settings)
    except UserError as error:
        # From a loader's process an error comes with that process's traceback in front of it.
        line = str(error).strip().splitlines()[-1].split("UserError: ")[-1]
        print(f"esmfold-peft {parsed.command}: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output left (`| head`); Python must not complain again when it closes
        # stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

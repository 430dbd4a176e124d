"""The command line.

Help, settings and their errors need no torch: a command is imported when it runs.
"""

import ctypes
import io
import os
import sys
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings

from esmfold_peft import __version__, config
from esmfold_peft.config.parsing import (
    HelpFormatter,
    OneLineParser,
    config_parser,
    summary,
    to_config,
)
from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import after_the_first, is_first, wait_for_the_first


@dataclass(frozen=True)
class _Command:
    """One command.

    Attributes:
        settings: dataclass of its settings.
        function: that takes them, as `commands.module:function`; `run` where no function is named.
        positional: the setting that is given without a flag.
        note: the end of its help.
        common: settings that its help shows first, after the required ones.
    """

    settings: type
    function: str
    positional: str | None = None
    note: str | None = None
    common: tuple[str, ...] = ()


_COMMANDS: dict[str, dict[str, _Command]] = {
    "": {
        "prepare": _Command(config.PrepareConfig, "commands.prepare", "sources"),
        "train": _Command(
            config.TrainConfig,
            "commands.train",
            note="`train --replay FILE` repeats a step that was not finite; see its own --help.",
            common=(
                *("data.validation", "adapter.kind", "adapter.rank", "adapter.alpha"),
                "engine.steps",
            ),
        ),
        "evaluate": _Command(config.EvaluateConfig, "commands.evaluate"),
        "predict": _Command(
            config.PredictConfig,
            "commands.predict",
            "fasta",
            note="scripts/predict_ray.py distributes the sequences over a Ray cluster.",
            common=("run", "esmfold", "html", "pae", "resume"),
        ),
        "search": _Command(
            config.SearchConfig,
            "commands.search",
            note="`search CONFIG` is `search --config CONFIG`. `search status FOLDER` shows a"
            " search's status. `search report FOLDER` writes its table and figures.",
            common=("data.validation", "seeds", "engine.steps", "executor.kind"),
        ),
        "completion": _Command(config.CompletionConfig, "cli:print_completion", "shell"),
    },
    "adapters": {
        "count": _Command(config.CountConfig, "commands.adapters:count"),
        "merge": _Command(config.MergeConfig, "commands.adapters:merge"),
        "export": _Command(config.ExportConfig, "commands.adapters:export", "adapter"),
        "import": _Command(config.ImportConfig, "commands.adapters:import_adapter", "adapter"),
    },
    "weights": {
        "fetch": _Command(config.FetchConfig, "commands.weights:fetch", "name"),
        "inspect": _Command(config.InspectConfig, "commands.weights:inspect", "file"),
    },
}
"""Commands by the word before them, if any."""

_BY_FLAG = {("train", "--replay"): _Command(config.ReplayConfig, "commands.replay")}
"""Commands that a flag selects."""

_BY_WORD = {
    ("search", "status"): _Command(config.SearchStatusConfig, "commands.search:status", "output"),
    ("search", "report"): _Command(config.SearchReportConfig, "commands.search:report", "output"),
}
"""Commands that a second word selects."""

_DESCRIPTIONS = {
    "": "Fine-tune ESMFold with an adapted ESM-2, evaluate it, and predict structures.",
    "adapters": "Count, merge, export and import adapters of ESM-2.",
    "weights": "Download and inspect published weights of ESMFold and ESM-2.",
}

_AFTER_CTRL_C = {
    "prepare": "; resume with the same command",
    "train": "; resume with the same command and --resume auto",
    "predict": "; resume with the same command and --resume",
    "search": "; resume with the same command",
    "weights fetch": "; resume with the same command",
}
"""How to resume a command that was interrupted."""


@dataclass(frozen=True)
class Parsed:
    """A command line, read.

    Attributes:
        name: of the command, as it is typed.
        function: of this package that runs it, as `module:function`.
        settings: dataclass of its settings.
        parser: what read it.
        values: what the parser found in files and flags.
    """

    name: str
    function: str
    settings: type
    parser: OneLineParser
    values: Any


def parse(arguments: list[str]) -> Parsed:
    """Reads a command line, or prints help or one line of error and leaves.

    A command has a parser of its own, whose errors begin with the command's name; jsonargparse's
    subcommands would name a wrong file or flag in the name of the whole program.

    Args:
        arguments: without the program's name.
    """
    grouped = bool(arguments) and arguments[0] in _COMMANDS.keys() - {""}
    group, rest = (arguments[0], arguments[1:]) if grouped else ("", arguments)
    command = _command(group, rest)
    if command is None:
        _overview(group).parse_args(rest)
        raise AssertionError(f"{rest} is no command")
    words = 2 if not group and tuple(rest[:2]) in _BY_WORD else 1
    name, rest = " ".join([group, *rest[:words]]).strip(), rest[words:]
    parser = config_parser(command.settings, command.positional, command.common)
    parser.prog = f"esmfold-peft {name}"
    parser.epilog = command.note
    if command.settings is config.SearchConfig and rest and not rest[0].startswith("-"):
        if rest[1:] and not rest[1].startswith("-"):
            parser.error(f"{rest[1]}: give every file after the first as --config {rest[1]}")
        rest = ["--config", *rest]
    return Parsed(name, command.function, command.settings, parser, parser.parse_args(rest))


def _parsed(arguments: list[str]) -> Parsed:
    """As `parse`; if a launcher started several processes, only the first prints an error."""
    if is_first(os.environ):
        return parse(arguments)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse(arguments)
    except SystemExit as leaving:
        if leaving.code:
            wait_for_the_first(os.environ)
        sys.stderr.write(said.getvalue())
        raise


def _command(group: str, words: list[str]) -> _Command | None:
    """The command that words begin with; None if it is no command."""
    if not words:
        return None
    for (name, flag), other in _BY_FLAG.items():
        if not group and words[0] == name and any(w.split("=")[0] == flag for w in words[1:]):
            return other
    by_word = None if group else _BY_WORD.get(tuple(words[:2]))  # pyright: ignore
    return by_word or _COMMANDS[group].get(words[0])


def _overview(group: str) -> OneLineParser:
    """A parser that knows the names of a group's commands and what they are for."""
    parser = OneLineParser(
        prog=f"esmfold-peft {group}".strip(),
        description=_DESCRIPTIONS[group],
        formatter_class=HelpFormatter,
        version=None if group else __version__,
    )
    commands = parser.add_subcommands(dest="command")
    purposes = {name: summary(command.settings) for name, command in _COMMANDS[group].items()}
    if not group:
        purposes |= {name: text for name, text in _DESCRIPTIONS.items() if name}
    for name, purpose in purposes.items():
        commands.add_subcommand(name, OneLineParser(description=purpose), help=purpose)
    return parser


def print_completion(settings: config.CompletionConfig) -> NoReturn:
    """Prints what a shell must read to complete all commands and their settings."""
    set_parsing_settings(add_print_completion_argument=True)
    whole = OneLineParser(prog="esmfold-peft")
    commands = _add_commands(whole, "")
    for group in filter(None, _COMMANDS):
        parser = OneLineParser()
        commands.add_subcommand(group, parser)
        _add_commands(parser, group)
    whole.parse_args(["--print_completion", f"shtab-{settings.shell}"])
    raise AssertionError("jsonargparse prints and leaves")


def _add_commands(parser: OneLineParser, group: str) -> Any:
    commands = parser.add_subcommands(dest="command")
    for name, command in _COMMANDS[group].items():
        known = config_parser(command.settings, command.positional, command.common)
        commands.add_subcommand(name, known)
    return commands


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _REUSED = -1, -3, 1 << 30


def _reuse_freed_memory() -> None:
    """Lets this process keep up to 1 GiB of freed memory for its next tensors.

    By default glibc returns each large block to the kernel, which must then clear new pages for the
    next one: evaluating 60 chains of 256 residues cost 2.0 million page faults and 11 % more CPU
    time; now 0.19 million. Variables of the environment that set glibc's allocator take precedence;
    other C libraries are left as they are.
    """
    own = ("MALLOC_", "GLIBC_TUNABLES")
    if sys.platform == "linux" and not any(name.startswith(own) for name in os.environ):
        with suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _REUSED)
            mallopt(_M_TRIM_THRESHOLD, _REUSED)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        0 if all went well, 1 if the run failed for some inputs, 2 if a setting or an input is
        wrong, 3 if a training has diverged (of a search: no trial of an adapter has survived), 69
        if another process writes to the same folder, 75 if it was asked to stop and can be
        resumed, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of Latin-1 has no α
    parsed = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        with after_the_first(os.environ):
            settings = to_config(parsed.parser, parsed.values, parsed.settings)
        _reuse_freed_memory()
        module, _, function = parsed.function.partition(":")
        command = import_module(f"esmfold_peft.{module}")
        return getattr(command, function or "run")(settings)
    except UserError as error:
        # From a loader's process an error comes with that process's traceback in front of it.
        line = str(error).strip().splitlines()[-1].split("UserError: ")[-1]
        print(f"esmfold-peft {parsed.name}: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        after = _AFTER_CTRL_C.get(parsed.name, "")
        print(f"esmfold-peft {parsed.name}: interrupted{after}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`); Python must not complain again when it closes
        # stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

"""Settings from YAML files and flags, and back to YAML. Imports no torch."""

import re
import sys
from argparse import SUPPRESS, Action, ArgumentError, _HelpAction
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from jsonargparse import (
    ActionYesNo,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from esmfold_peft.errors import UserError

Config = TypeVar("Config")


_TYPE = r"(?:<class '\w+'>|typing\.Literal\[[^]]+\])"
_WRONG = re.compile(
    r'Parser key "([\w.]+)"(?: element \d+)?: (?:Does not validate against any of the Union'
    rf" subtypes Subtypes: \[((?:{_TYPE}(?:, )?)+)\] Errors: .* Given"
    rf"|Expected a ({_TYPE})\. Got) value: (.*)"
)
"""What jsonargparse says of a value that a setting's simple types do not take."""

_RENAMED = re.compile(r"(does not accept option|unrecognized arguments:).*\w\.checkpoint\b")
"""The former name of the setting that recomputes activations."""

_SHIPPED = Path(__file__).parents[1] / "configs"
"""A link to the checkout's `configs`; an installed package has its own copy."""

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true, false", "NoneType": "null"}


def _explained(found: re.Match[str]) -> str:
    setting, several, one, value = found.groups()
    words: list[str] = re.findall(r"'([^']+)'", several or one)
    names = ", ".join(_TYPES.get(word, word) for word in words)
    return f"{setting}: {value} is {'not' if len(words) == 1 else 'none of'} {names}"


def _shipped(name: str) -> str:
    """The path of a shipped config such as `paper/lorta_r8`; what is a file is left as it is."""
    if Path(name).is_file() or Path(name).is_absolute() or ".." in Path(name).parts:
        return name
    shipped = _SHIPPED / f"{name.removesuffix('.yaml')}.yaml"
    return str(shipped) if shipped.is_file() else name


class HelpFormatter(DefaultHelpFormatter):
    """Help texts with defaults and without types."""

    def _get_help_string(self, action: Action) -> str:
        if isinstance(action, _HelpAction) or action.dest == "config":
            return super()._get_help_string(action)
        if not action.option_strings:
            return action.help or ""
        if action.help == "Path to a configuration file.":
            return "YAML file with the settings of this group"
        if action.required:
            return f"{action.help} (required)"
        shown = action.default not in (SUPPRESS, (), [], {}) and action.nargs != 0
        return f"{action.help} (default: %(default)s)" if shown else action.help or ""


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line, exit code 2.

    The usage of a hundred settings would bury them.
    """

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Reads flags, written with - or _ between their words."""
        words = sys.argv[1:] if args is None else args
        named = [self._as_named(word) for word in words]
        for place, word in enumerate(named):
            flag, equals, value = word.partition("=")
            if flag == "--config" and equals:
                named[place] = f"--config={_shipped(value)}"
            elif place and named[place - 1] == "--config":
                named[place] = _shipped(word)
        try:
            return super().parse_args(named, *rest, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"config: a file of settings is not UTF-8 text ({error})")

    def _as_named(self, word: str) -> str:
        """A flag as its setting is named; other words as they are."""
        flag, equals, value = word.partition("=")
        named = f"--{flag[2:].replace('-', '_')}"
        known = word.startswith("--") and named in self._option_string_actions
        return named + equals + value if known else word

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and leaves."""
        text = _WRONG.sub(_explained, " ".join(message.split()))
        if _RENAMED.search(text):
            text += "; this setting is now called recompute; rename it"
        if text.startswith('Parser key "config": File does not exist'):
            found = sorted(file.relative_to(_SHIPPED) for file in _SHIPPED.rglob("*.yaml"))
            names = ", ".join(str(file.with_suffix("")) for file in found)
            text += f"; the shipped ones are {names}"
        print(f"{self.prog}: error: {text}", file=sys.stderr)
        raise SystemExit(2)


def config_parser(
    kind: type, positional: str | None = None, common: Collection[str] = ()
) -> OneLineParser:
    """A parser for one command: a flag for each field of its settings, and --config for YAML files.

    A flag of several values takes them separated by spaces, one of yes or no takes none.

    Args:
        kind: dataclass of the command's settings.
        positional: field that is given without a flag.
        common: settings that people change most; help shows them first, after the required ones.
    """
    parser = OneLineParser(description=description(kind), formatter_class=HelpFormatter)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file, or the name of a shipped one (paper/lorta_r8); later files and flags"
        " override earlier ones",
    )
    own = [f for f in fields(kind) if f.name != positional]
    lists = [f.name for f in own if get_origin(f.type) is tuple]
    switches = [f.name for f in own if f.type is bool]
    skip: set[str | int] = {*lists, *switches}
    if positional is not None:
        skip.add(positional)
        _add_positional(parser, kind, positional)
    parser.add_class_arguments(kind, as_group=False, skip=skip)
    for name in lists:
        _add_list(parser, kind, name)
    for name in switches:
        _add_switch(parser, kind, name)
    required = [action for action in parser._actions if action.required]
    needed = (
        f" {action.option_strings[0]} {action.dest.rpartition('.')[2].upper()}"
        if action.option_strings
        else f" {action.dest.upper()}{' ...' if action.nargs else ''}"
        for action in required
    )
    parser.usage = f"%(prog)s [--config FILE]{''.join(needed)} [--SETTING VALUE ...]"
    changed = [action for action in parser._actions if action.dest in common]
    _show_first(parser, "settings that people change most", changed)
    _show_first(parser, "required", required)
    return parser


def _show_first(parser: ArgumentParser, title: str, actions: list[Action]) -> None:
    """Moves settings into a group at the beginning of the help."""
    group = parser.add_argument_group(title)
    groups: list[Any] = parser._action_groups  # pyright: ignore[reportAssignmentType]
    for other in groups:
        other._group_actions[:] = [a for a in other._group_actions if a not in actions]
    group._group_actions[:] = actions
    groups.insert(0, groups.pop())


def summary(kind: type) -> str:
    """The first line of a class's description."""
    return (kind.__doc__ or "").splitlines()[0]


def description(kind: type) -> str:
    """A class's description without its attributes."""
    text = (kind.__doc__ or "").partition("Attributes:")[0]
    return " ".join(text.split())


def to_config(parser: ArgumentParser, namespace: Any, kind: type[Config]) -> Config:
    """The settings that a parser made of files and flags.

    Raises:
        UserError: a setting that needs a value is null, or a group of settings is a value.
    """
    _check_groups(namespace, kind, "")
    made = parser.instantiate(namespace)
    values = {field.name: made[field.name] for field in fields(kind)}  # pyright: ignore
    # argparse collects repeated positionals in a list; settings are immutable.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check_groups(values: Any, kind: type, prefix: str) -> None:
    """The parser takes null for any type, and any value for a group of settings in a file."""
    if not isinstance(values, Namespace):
        raise UserError(f"{prefix.removesuffix('.')}: {values!r} is no group of settings")
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        value = values[field.name]
        if is_dataclass(field.type) and value is not None:
            _check_groups(value, field.type, f"{prefix}{field.name}.")  # pyright: ignore
        elif value is None and type(None) not in get_args(field.type):
            raise UserError(f"{prefix}{field.name}: null is no value")


_UNKNOWN_BEFORE = {
    "optimizer.eps_adapter": None,
    "guard.update_limit": 0.0,
    "model.pair_track": "float32",
}
"""What runs and searches had before there were these settings, whose defaults are others."""

_KERNELS_BEFORE = re.compile(r"^(  kernels: )(none|deepspeed|cuequivariance|triton)$", re.M)
"""Values that model.kernels had: other ways to compute what `fused` computes."""

_RECOMPUTE_BEFORE = re.compile(r"^( {4,})checkpoint: ", re.M)
"""The former name of a part's setting `recompute`."""


def read_config(path: Path, kind: type[Config]) -> Config:
    """Reads the settings of a run or a search, as they were then.

    Raises:
        UserError: the file is missing, or a key or value in it is wrong.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such config")
    return _read(kind, path, partial(_parse_stored, path=path))


def _parse_stored(parser: ArgumentParser, path: Path) -> Any:
    known = parser.get_defaults()
    parser.set_defaults({n: v for n, v in _UNKNOWN_BEFORE.items() if n in known})
    text = _KERNELS_BEFORE.sub(r"\1fused", path.read_text())
    text = _RECOMPUTE_BEFORE.sub(r"\1recompute: ", text)
    return parser.parse_string(text)


def config_of(values: object, kind: type[Config], path: Path) -> Config:
    """Settings from values that a file holds among others.

    Raises:
        UserError: a key or value is wrong; the file is named.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: {values!r} is no group of settings")
    return _read(kind, path, lambda parser: parser.parse_object(values))


def _read(kind: type[Config], path: Path, parse: Callable[[ArgumentParser], Any]) -> Config:
    """Reads settings; an error is one line that names the file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        return to_config(parser, parse(parser), kind)
    except (ArgumentError, UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def config_text(config: object) -> str:
    """Settings as YAML, every field written out."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def with_absolute_weights(config: Config, folder: Path = Path()) -> Config:
    """The settings of a run with absolute paths of weights; relative ones begin at `folder`."""
    model = config.model  # pyright: ignore[reportAttributeAccessIssue]
    parts = {section.name: section for section in model.sections if section.published}
    absolute = {
        name: replace(part, weights=_absolute(part.weights, folder))
        for name, part in {"language_model": model.language_model, **parts}.items()
    }
    return replace(config, model=replace(model, **absolute))  # pyright: ignore


def _absolute(weights: str, folder: Path) -> str:
    named = weights in ("pretrained", "random")
    return weights if named else str((folder / weights).resolve())


def _add_positional(parser: ArgumentParser, kind: type, name: str) -> None:
    field = next(field for field in fields(kind) if field.name == name)
    many = "nargs" if str(field.type).startswith("tuple") else None
    arguments: dict[str, Any] = {"nargs": "+"} if many else {}
    item: Any = Path if "Path" in str(field.type) else field.type
    parser.add_argument(name, type=item, help=_help(kind, name), **arguments)


def _add_list(parser: ArgumentParser, kind: type, name: str) -> None:
    field = next(field for field in fields(kind) if field.name == name)
    item: Any = get_args(field.type)[0]
    # A flag of free texts given twice adds to the first one; with any action of argparse's own,
    # jsonargparse does not check the choices of other types.
    arguments: dict[str, Any] = {"action": "extend"} if item is str and not field.default else {}
    parser.add_argument(
        f"--{name}",
        nargs="+",
        type=item,
        default=list(field.default),  # pyright: ignore[reportArgumentType]
        **arguments,
        metavar=name.upper(),
        help=_help(kind, name),
    )


def _add_switch(parser: ArgumentParser, kind: type, name: str) -> None:
    """A flag without a value."""
    default = next(field.default for field in fields(kind) if field.name == name)
    parser.add_argument(f"--{name}", action=ActionYesNo, default=default, help=_help(kind, name))


def _help(kind: type, name: str) -> str:
    from docstring_parser import parse

    found = {item.arg_name: item.description for item in parse(kind.__doc__ or "").params}
    return found[name] or ""


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

"""Checks that several settings share."""

import re
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from typing import Any

from esmfold_peft.errors import UserError


def check_lowest(config: object, prefix: str, lowest: int, *names: str) -> None:
    """Refuses numbers below a bound; ignores None and words.

    Raises:
        UserError: names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= lowest:
            raise UserError(f"{prefix}{name}: {value} is less than {lowest}")


def check_unchanged(config: Any, prefix: str, names: Collection[str], why: str) -> None:
    """Refuses settings that are not at their defaults and would have no effect.

    Args:
        config: dataclass of settings.
        prefix: of the settings' names.
        names: of the settings.
        why: they have no effect, for the message; {default} in it is the default.

    Raises:
        UserError: names the first such setting.
    """
    for field in fields(config):
        default = default_of(field)
        if field.name in names and getattr(config, field.name) != default:
            raise UserError(f"{prefix}{field.name}: {why.format(default=default)}")


def default_of(field: Field) -> Any:
    """The default of a setting."""
    made = field.default_factory
    return field.default if made is MISSING else made()


def check_device(device: str) -> None:
    """Refuses a text that names no device.

    Raises:
        UserError: it is none of auto, cpu, gpu, cuda:N.
    """
    if not re.fullmatch(r"auto|cpu|gpu|cuda:\d+", device):
        raise UserError(f"device: {device!r} is none of auto, cpu, gpu, cuda:N")


def check_shares(config: object, prefix: str, *names: str) -> None:
    """Refuses shares and probabilities outside 0 to 1.

    Raises:
        UserError: names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise UserError(f"{prefix}{name}: {value} is not between 0 and 1")

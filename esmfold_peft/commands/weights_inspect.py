"""`esmfold-peft weights inspect`: what a file of published weights is, and whether it fits."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esmfold_peft.config import InspectConfig
from esmfold_peft.weights.contents import Contents, Part, Unused, contents_of, nested

_PIPED_WIDTH = 120
"""Columns where there is no terminal."""

_SHOWN = 20
"""Differences of a kind in the table; a file of another model has thousands. JSON has all."""


def run(config: InspectConfig) -> int:
    """Prints what is in a file.

    Returns:
        0 if all of it fits a model of the printed settings, 1 if something is missing or left over.

    Raises:
        UserError: the file cannot be read or is not recognised.
    """
    found = contents_of(config.file)
    fits = not found.differences.lines()
    if config.format == "json":
        print(json.dumps({**asdict(found), "fits": fits}, indent=2))
    else:
        _print(found)
    return 0 if fits else 1


def _print(found: Contents) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    print(f"{found.file}: {found.kind}")
    console.print(_table(found.parts, Part))
    if found.unused:
        console.print(_table(found.unused, Unused, title="not used"))
    print("# settings that fit")
    yaml.safe_dump(nested(found.settings), sys.stdout, sort_keys=False)
    differences = asdict(found.differences)
    for kind, lines in differences.items():
        for line in lines[:_SHOWN]:
            print(f"{kind}: {line}")
        if len(lines) > _SHOWN:
            print(f"{kind}: and {len(lines) - _SHOWN:,} more")
    if not any(differences.values()):
        print("# everything fits")


def _table(rows: Sequence[object], kind: type, title: str | None = None) -> Table:
    """A row for each dataclass."""
    table = Table(title=title)
    for field in fields(kind):
        table.add_column(field.name, justify="right" if field.type is int else "left")
    for row in rows:
        table.add_row(*(Text(_cell(getattr(row, field.name))) for field in fields(kind)))
    return table


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)

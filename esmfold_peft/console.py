"""What commands print: lines on stderr, tables on stdout."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from typing import TypeVar, get_args

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, track
from rich.table import Table
from rich.text import Text

# ":100:" is a place in a file, not an emoji.
_STDERR = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_SECONDS_BETWEEN_LINES = 60.0
_PIPED_WIDTH = 120
"""Columns where there is no terminal; in rich's 80 sentences become columns of single words."""

Item = TypeVar("Item")


def report(text: str) -> None:
    """Prints one line."""
    _STDERR.print(text, markup=False)


def print_table(
    rows: Sequence[object], kind: type, title: str | None = None, *, grouped: bool = False
) -> None:
    """Prints a row for each dataclass on stdout; its fields are the columns.

    Args:
        rows: instances of `kind`.
        kind: dataclass of the rows.
        title: above the table.
        grouped: draw a line where the first column changes.
    """
    table = Table(title=title)
    for field in fields(kind):
        numeric = int in (field.type, *get_args(field.type))
        table.add_column(field.name, justify="right" if numeric else "left", no_wrap=numeric)
    cells = [[_cell(getattr(row, field.name)) for field in fields(kind)] for row in rows]
    for row, following in pairwise([*cells, [""]]):
        table.add_row(*map(Text, row), end_section=grouped and row[0] != following[0])
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def watched(items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
    """Passes items through and shows a progress bar, or in a log file a line now and then.

    Args:
        items: passed through.
        doing: shown before the bar.
        total: number of items.
    """
    if _STDERR.is_terminal:
        yield from track(items, doing, total, console=_STDERR, transient=True)
    else:
        yield from _logged(items, doing, total)


@contextmanager
def watched_bytes(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many bytes there are, and shows them as a bar."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=_STDERR) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.update(task, completed=count)


def _logged(items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            report(f"{doing}: {done} of {total}")
        yield item

"""What commands say on stderr to the person who runs them; results go to stdout."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)

Item = TypeVar("Item")


def report(text: str) -> None:
    """Prints one line."""
    _STDERR.print(text, markup=False)


def watched(items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
    """Passes items through and shows a progress bar where there is a terminal.

    Args:
        items: what is worked on.
        doing: shown before the bar.
        total: how many items there will be.
    """
    hidden = not _STDERR.is_terminal
    yield from track(items, doing, total, console=_STDERR, transient=True, disable=hidden)

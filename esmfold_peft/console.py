"""What commands say on stderr to the person who runs them; results go to stdout."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

# ":100:" is a place in a file, not an emoji.
_STDERR = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_SECONDS_BETWEEN_LINES = 60.0

Item = TypeVar("Item")


def report(text: str) -> None:
    """Prints one line."""
    _STDERR.print(text, markup=False)


def watched(items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
    """Passes items through and shows a progress bar, or in a log file a line now and then.

    Args:
        items: what is worked on.
        doing: shown before the bar.
        total: how many items there will be.
    """
    if _STDERR.is_terminal:
        yield from track(items, doing, total, console=_STDERR, transient=True)
    else:
        yield from _logged(items, doing, total)


def _logged(items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            report(f"{doing}: {done} of {total}")
        yield item

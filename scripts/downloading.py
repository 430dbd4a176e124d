"""What the scripts share: fetching mmCIF files, and flags and errors in one line."""

import argparse
import gzip
import re
import sys
import urllib.parse
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import NoReturn

from esmfold_peft.disk.downloads import LONGEST_PAUSE, Patience, fetch_file, on_disk
from esmfold_peft.errors import UserError

DAY = 86400
_BLOCK = 1 << 16
_MMCIF_START = re.compile(rb"(?:\s|#[^\n]*\n)*data_\S", re.IGNORECASE)


def fetch_mmcif(url: str, target: Path, patience: Patience, stop: Event) -> None:
    """Fetches a gzip-compressed mmCIF file; raises as `fetch_file`."""
    fetch_file(url, target, patience, stop, fault_of=fault_of_mmcif)


def fault_of_mmcif(path: Path) -> str | None:
    """What is wrong with a gzip-compressed mmCIF file, whose checksum is computed; None if nothing.

    Raises:
        UserError: the file cannot be read from the disk.
    """
    try:
        with on_disk(path), gzip.open(path) as file:
            start = file.read(_BLOCK)
            while file.read(_BLOCK):
                pass
    except UserError as error:
        # gzip.BadGzipFile is an OSError, but says nothing about the disk.
        if isinstance(error.__cause__, gzip.BadGzipFile):
            return f"not a whole gzip file ({error.__cause__})"
        raise
    except (EOFError, zlib.error) as error:
        return f"not a whole gzip file ({error})"
    return None if _MMCIF_START.match(start) else "not an mmCIF file (no data_ at its start)"


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong command line like every other error: in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"{self.prog.removesuffix('.py')}: error: {message}\n")


def add_patience(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `Patience`."""
    add = parser.add_argument
    add("--retries", type=between(int, 0, 1000), default=5, metavar="N",
        help="after broken transfers, HTTP 429 or 5xx, damaged data (default: 5)")  # fmt: skip
    add("--pause", type=between(float, 0, DAY), default=1.0, metavar="SECONDS",
        help="before the first retry; doubles with each, at most to"
        f" {LONGEST_PAUSE:.0f}, as is Retry-After (default: 1)")  # fmt: skip
    add("--timeout", type=between(float, 0.01, DAY), default=60.0, metavar="SECONDS",
        help="without a byte, after which a connection counts as broken (default: 60)")  # fmt: skip


def patience_of(args: argparse.Namespace) -> Patience:
    """The patience of the flags."""
    return Patience(args.retries, args.pause, args.timeout)


def between(kind: type, lowest: float, highest: float) -> Callable[[str], float]:
    """A parser for argparse of numbers in a range."""

    def number(word: str) -> float:
        value = kind(word)
        if not lowest <= value <= highest:  # NaN is not either
            raise argparse.ArgumentTypeError(f"{word} is not between {lowest} and {highest}")
        return value

    number.__name__ = kind.__name__  # which argparse names where the word is no number
    return number


def http_url(word: str) -> str:
    """An address for argparse, without the slashes at its end."""
    try:
        parts = urllib.parse.urlsplit(word)
        known = parts.scheme in ("http", "https") and (parts.hostname or "").encode("idna")
        wrong = not known or (parts.port or 1) < 1
    except ValueError:  # a port or a host that cannot be one
        wrong = True
    if wrong or not word.isascii() or re.search(r"\s", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not an http or https address")
    return word.rstrip("/")


def ended(name: str, command: Callable[[], int], stopped: str = "stopped") -> int:
    """The exit code of a command; its errors and Ctrl-C become one line."""
    try:
        return command()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130

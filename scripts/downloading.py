"""What the scripts that fetch share: patient, resuming HTTP, and flags and errors in one line.

A file has its final name only when it is whole. Used by fetch_pdb.py and fetch_validation.py.
"""

import argparse
import email.utils
import gzip
import http.client
import math
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NoReturn, TypeVar

from esmfold_peft import __version__
from esmfold_peft.errors import UserError

LONGEST_PAUSE = 120.0
"""Seconds; neither a growing pause nor a server's Retry-After exceeds it."""
DAY = 86400
_BLOCK = 1 << 16
_RETRIED = {408, 425, 429}
_HEADERS = {"User-Agent": f"esmfold-peft/{__version__}"}
_MMCIF_START = re.compile(rb"(?:\s|#[^\n]*\n)*data_\S", re.IGNORECASE)

Result = TypeVar("Result")


class UnavailableError(Exception):
    """Something cannot be had; the message says why in one line."""


class UnreachableError(UnavailableError):
    """No server answered at all."""


class StoppedError(Exception):
    """The user wants to stop."""


class TransientError(Exception):
    """A fault that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0, reached: bool = True):
        super().__init__(reason)
        self.wait = wait
        self.reached = reached


class RangeRefusedError(Exception):
    """The server does not send the rest of a file from where ours ends."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        retries: attempts after the first.
        pause: seconds before the first retry; doubles with each.
        timeout: seconds without a byte after which a connection counts as broken.
    """

    retries: int
    pause: float
    timeout: float


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Makes a UserError of an error of the disk, which no retry mends."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def persistently(attempt: Callable[[], Result], patience: Patience, stop: Event) -> Result:
    """Repeats an attempt that raises `TransientError`, after growing pauses.

    Raises:
        UnavailableError: the last attempt failed too.
        StoppedError: `stop` was set during a pause.
    """
    for tried in range(patience.retries):
        try:
            return attempt()
        except TransientError as fault:
            pause = max(patience.pause * 2.0 ** min(tried, 60), fault.wait)
        if stop.wait(min(pause, LONGEST_PAUSE)):
            raise StoppedError
    try:
        return attempt()
    except TransientError as fault:
        kind = UnavailableError if fault.reached else UnreachableError
        raise kind(f"{fault} (attempts: {patience.retries + 1})") from fault


@contextmanager
def answered(
    url: str, timeout: float, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Opens an address.

    Raises:
        TransientError: a fault that may pass, while opening or reading.
        RangeRefusedError: HTTP 416.
        UnavailableError: any other answer than success.
    """
    request = urllib.request.Request(url, body, _HEADERS | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}".strip()
        if error.code == 416:
            raise RangeRefusedError(reason) from error
        if error.code in _RETRIED or error.code >= 500:
            raise TransientError(reason, _retry_after(error.headers.get("Retry-After"))) from error
        raise UnavailableError(reason) from error
    except urllib.error.URLError as error:  # of connecting; the others come later
        raise TransientError(f"{error.reason}", reached=False) from error
    except TimeoutError as error:
        raise TransientError(f"no byte for {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"{error}" or type(error).__name__) from error


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds them or a date; 0 if it holds neither."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def fetch_bytes(url: str, patience: Patience, body: bytes | None = None) -> bytes:
    """A whole small answer in JSON, to a POST if there is a body.

    Raises:
        UserError: it cannot be had.
    """

    def attempt() -> bytes:
        json = "application/json"
        headers = {"Accept": json} | ({"Content-Type": json} if body is not None else {})
        with answered(url, patience.timeout, headers, body) as response:
            return response.read()

    try:
        return persistently(attempt, patience, Event())
    except (UnavailableError, RangeRefusedError) as error:
        raise UserError(f"{url}: {error}") from error


def fetch_mmcif(url: str, target: Path, patience: Patience, stop: Event) -> None:
    """Fetches a gzip-compressed mmCIF file; `target` appears when it is complete and whole.

    Until then the bytes are in `.<name>.part` beside it, where this or a later call resumes.

    Raises:
        UnavailableError: it cannot be had.
        UserError: it cannot be written.
        StoppedError: `stop` was set.
    """
    part = target.with_name(f".{target.name}.part")

    def attempt() -> None:
        try:
            _receive(url, part, patience.timeout, stop)
        except RangeRefusedError:
            remove()
            _receive(url, part, patience.timeout, stop)
        fault = fault_of_mmcif(part)
        if fault:
            remove()
            raise TransientError(fault)

    def remove() -> None:
        with on_disk(part):
            part.unlink(missing_ok=True)

    persistently(attempt, patience, stop)
    with on_disk(target):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)


def _receive(url: str, part: Path, timeout: float, stop: Event) -> None:
    """Receives a file, or the rest of it behind what `part` holds."""
    with on_disk(part):
        held = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={held}-"} if held else {}
    try:
        with answered(url, timeout, headers) as response:
            begin, total = _extent(response)
            if begin not in (0, held):
                raise RangeRefusedError
            received, wanted = begin, math.inf if total is None else total
            with on_disk(part):
                file = part.open("ab" if begin else "wb")
            try:
                while received < wanted:
                    if stop.is_set():
                        raise StoppedError
                    # `read` would wait for a full block, and lose its part of it when the
                    # connection breaks.
                    block = response.read1(int(min(_BLOCK, wanted - received)))
                    if not block:
                        break
                    with on_disk(part):
                        file.write(block)
                        file.flush()  # so that a killed process loses nothing
                    received += len(block)
            finally:
                with on_disk(part):
                    file.close()
            if total is not None and received < total:
                raise TransientError(f"the connection ended after {received} of {total} bytes")
    except RangeRefusedError:
        if not held:
            raise UnavailableError("the server does not send the file from its beginning") from None
        raise


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where an answer begins in its file, and the file's size if known."""
    begin = 0
    if response.status == 206:
        found = re.match(r"bytes (\d+)-\d+/", response.headers.get("Content-Range", ""))
        begin = int(found[1]) if found else -1
    length = response.headers.get("Content-Length", "")
    return begin, begin + int(length) if length.isdecimal() else None


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

"""Patient HTTP that resumes. A file has its final name only when it is whole."""

import email.utils
import http.client
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar

from esmfold_peft import __version__
from esmfold_peft.errors import UserError

LONGEST_PAUSE = 120.0
"""Seconds; neither a growing pause nor a server's Retry-After exceeds it."""
_BLOCK = 1 << 16
_RETRIED = {408, 425, 429}
_HEADERS = {"User-Agent": f"esmfold-peft/{__version__}"}

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


def fetch_file(
    url: str,
    target: Path,
    patience: Patience,
    stop: Event,
    *,
    fault_of: Callable[[Path], str | None] = lambda _: None,
    received: Callable[[int], None] = lambda _: None,
) -> None:
    """Fetches a file; `target` appears when it is complete.

    Until then the bytes are in `.<name>.part` beside it, where this or a later call resumes.

    Args:
        url: http or https.
        target: the file.
        patience: how long to try.
        stop: set by another thread to end it.
        fault_of: what is wrong with a file that has arrived; it is then fetched again.
        received: told how many bytes there are, now and then.

    Raises:
        UnavailableError: it cannot be had.
        UserError: it cannot be written.
        StoppedError: `stop` was set.
    """
    part = target.with_name(f".{target.name}.part")

    def attempt() -> None:
        try:
            _receive(url, part, patience.timeout, stop, received)
        except RangeRefusedError:
            remove()
            _receive(url, part, patience.timeout, stop, received)
        fault = fault_of(part)
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


def _receive(
    url: str, part: Path, timeout: float, stop: Event, told: Callable[[int], None]
) -> None:
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
                    told(received)
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

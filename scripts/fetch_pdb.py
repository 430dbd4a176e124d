"""Fetches structures of the Protein Data Bank as gzip-compressed mmCIF files.

    python scripts/fetch_pdb.py ids.txt --output mmcif
    python scripts/fetch_pdb.py --mirror --output mmcif

The list holds ids of entries or chains (1ubq, 1UBQ_A, pdb_00001ubq), one a line or separated by
commas; # begins a comment. Each entry becomes <id>.cif.gz (lower case). A file gets its name when
it has arrived whole (length, gzip checksum, mmCIF by its start) and is not fetched again: after an
interruption, run the same command again. A broken transfer is resumed if the server can. Entries
that could not be fetched are listed with the reason in failed.csv.

With --mirror, rsync copies the whole archive (about 90 GB) in its own layout, ub/1ubq.cif.gz;
`esmfold-peft prepare` reads both. Run it again to fetch what is new. Entries that have left the
archive stay unless --delete is given.

Exit codes: 0 all there, 1 some failed, 2 wrong usage, disk error, or no answer, 130 Ctrl-C.
"""

import argparse
import fcntl
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import Event, Thread

from downloading import (
    OneLineParser,
    add_patience,
    between,
    ended,
    fetch_mmcif,
    http_url,
    patience_of,
)

from esmfold_peft.console import report, watched
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.downloads import (
    Patience,
    StoppedError,
    TransientError,
    UnavailableError,
    UnreachableError,
    on_disk,
    persistently,
)
from esmfold_peft.disk.files import make_folder, read_bytes, write_atomically
from esmfold_peft.errors import UserError

SERVER = "https://files.rcsb.org/download"
ARCHIVE = "rsync://rsync.rcsb.org:33444/ftp_data/structures/divided/mmCIF"
"""As in wwPDB's script https://files.wwpdb.org/pub/pdb/software/rsyncPDB.sh."""
_ID = re.compile(
    r"(?:pdb_0000(?=[1-9]))?(?P<entry>[1-9][a-z0-9]{3}|pdb_(?!0000)[a-z0-9]{8})(?:_[a-z0-9]{1,4})?",
    re.IGNORECASE,
)
_RSYNC_NETWORK = {5, 10, 12, 30, 35}
_RSYNC_FILE = 11
_RSYNC_TIMEOUT = 600
"""Seconds; longer than for a file, for the server first goes through the archive."""


@dataclass(frozen=True)
class Failed:
    """An entry that could not be had."""

    id: str
    reason: str


Outcome = tuple[str, Exception | None]
"""An entry, and why it could not be fetched."""


def main(words: list[str] | None = None) -> int:
    """Fetches what the command line asks for and returns the exit code."""
    args = parse(words)
    command = partial(mirror if args.mirror else fetch_list, args)
    return ended("fetch_pdb", command, "stopped; run the same command again to resume")


def parse(words: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("ids", nargs="?", type=Path, help="text file of entry or chain ids")
    add("--output", type=Path, required=True, help="folder for the files; made if missing")
    add("--server", metavar="URL",
        help=f"address before /<id>.cif.gz (default: {SERVER}); with --mirror rsync's source,"
        f" an address or a folder (default: {ARCHIVE})")  # fmt: skip
    add("--connections", type=between(int, 1, 64), default=8, metavar="N",
        help="files to fetch at a time; rsync always uses one (default: 8)")  # fmt: skip
    add_patience(parser)
    add("--mirror", action="store_true", help="the whole archive, by rsync")
    add("--delete", action="store_true",
        help="with --mirror: delete *.cif.gz of the output that the archive lacks")  # fmt: skip
    args = parser.parse_args(words)
    if args.mirror == (args.ids is not None):
        parser.error("give either a list of ids or --mirror")
    if args.delete and not args.mirror:
        parser.error("--delete needs --mirror")
    if not args.mirror:
        try:
            args.server = http_url(args.server or SERVER)
        except argparse.ArgumentTypeError as error:
            parser.error(f"--server: {error}")
    return args


def read_ids(path: Path) -> list[str]:
    """The entries that a list names, each once, in the list's order.

    Raises:
        UserError: the list is missing, empty or has a word that is no id.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason})") from error
    entries: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split("#")[0].replace(",", " ").split():
            found = _ID.fullmatch(word)
            if found is None:
                wrong = f"{path}:{number}: {word!r} is not the id of a PDB entry or chain"
                raise UserError(f"{wrong}, such as 1ubq or 1ubq_A")
            entries[found["entry"].lower()] = None
    if not entries:
        raise UserError(f"{path}: holds no ids")
    return list(entries)


def fetch_list(args: argparse.Namespace) -> int:
    """Fetches the entries of a list that are not there yet."""
    ids = read_ids(args.ids)
    make_folder(args.output)
    with alone_in(args.output):
        missing = [id for id in ids if not (args.output / f"{id}.cif.gz").exists()]
        failed: list[Failed] = []
        outcomes = fetch(missing, args.output, args.server, args.connections, patience_of(args))
        hopeless = min(args.connections, len(missing))
        for done, (id, error) in enumerate(watched(outcomes, "fetching", len(missing)), 1):
            if error is not None:
                failed.append(Failed(id, str(error)))
            if isinstance(error, UnreachableError) and done == len(failed) >= hopeless:
                raise UserError(f"{args.server}: {error}; nothing was fetched")
        table = args.output / "failed.csv"
        if failed:
            write_atomically(table, csv_text(Failed, sorted(failed, key=attrgetter("id"))))
        else:  # the list of an earlier run
            with on_disk(table):
                table.unlink(missing_ok=True)
    there = len(ids) - len(missing)
    line = f"{len(missing) - len(failed)} fetched, {there} already there, {len(failed)} failed"
    print(line + (f" ({table})" if failed else ""))
    return 1 if failed else 0


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuses a second command, whose parts of files would mix with ours, by a UserError."""
    with on_disk(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(f"{folder}: another fetch_pdb is writing to it") from error
    except OSError:
        pass  # a file system without locks; the gzip checksums guard there
    try:
        yield
    finally:
        os.close(handle)


def fetch(
    ids: list[str], output: Path, server: str, connections: int, patience: Patience
) -> Iterator[Outcome]:
    """Fetches entries over several connections and yields the outcome of each, in no order.

    Raises:
        UserError: a file cannot be written; the other connections stop too.
    """
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    stop = Event()
    for id in ids:
        jobs.put(id)

    def work() -> None:
        with suppress(queue.Empty, StoppedError):
            while not stop.is_set():
                id, error = jobs.get_nowait(), None
                name = f"{id}.cif.gz"
                try:
                    fetch_mmcif(f"{server}/{name}", output / name, patience, stop)
                except StoppedError:
                    raise
                except Exception as caught:  # it belongs to the thread that waits
                    error = caught
                outcomes.put((id, error))

    try:
        for _ in range(min(connections, len(ids))):
            # An executor's threads would keep Ctrl-C waiting until their connections time out.
            Thread(target=work, daemon=True).start()
        for _ in ids:
            id, error = outcomes.get()
            if error is not None and not isinstance(error, UnavailableError):
                raise error
            yield id, error
    finally:
        stop.set()


def mirror(args: argparse.Namespace) -> int:
    """Brings the whole archive up to date by rsync, and again if the network fails.

    Raises:
        UserError: rsync is not installed or cannot write.
    """
    if shutil.which("rsync") is None:
        raise UserError("rsync is not installed (apt install rsync, or conda-forge's rsync)")
    make_folder(args.output)
    command = rsync(args.server or ARCHIVE, args.output, args.delete)
    report(shlex.join(command))

    def attempt() -> int:
        # Its progress goes where ours does: stdout is for results.
        code = subprocess.run(command, stdout=2, check=False).returncode
        if code in _RSYNC_NETWORK:
            raise TransientError(f"rsync ended with code {code}")
        return code

    try:
        code = persistently(attempt, patience_of(args), Event())
    except UnavailableError as error:
        print(f"fetch_pdb: error: {error}", file=sys.stderr)
        return 1
    if code == _RSYNC_FILE:
        raise UserError(f"{args.output}: rsync could not read or write files (its code {code})")
    if code:
        print(f"fetch_pdb: error: rsync ended with code {code}", file=sys.stderr)
        return 1
    print(f"{args.output} is up to date")
    return 0


def rsync(source: str, output: Path, delete: bool) -> list[str]:
    """The command that copies an archive's mmCIF files.

    Not `--partial`, which leaves half a file under its final name, but a folder for such halves;
    not `--compress`, for the files are compressed.
    """
    command = ["rsync", "--recursive", "--links", "--times", "--partial-dir=.rsync-partial"]
    command += [f"--timeout={_RSYNC_TIMEOUT}", "--prune-empty-dirs", "--exclude=.rsync-partial/"]
    command += ["--include=*/", "--include=*.cif.gz", "--exclude=*"]
    command += ["--delete-delay"] if delete else []
    command += ["--info=progress2"] if sys.stderr.isatty() else []
    return [*command, "--", source.rstrip("/") + "/", f"{output}/"]


if __name__ == "__main__":
    sys.exit(main())

"""Turning a structure file into records and lines of the manifest, in a worker process."""

import hashlib
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

from esmfold_peft.config import FilterConfig, PlddtConfig
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.manifest import ManifestEntry
from esmfold_peft.datasets.records import record_hash, to_record
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import (
    Note,
    Rejected,
    confident_part,
    reason_against,
    reason_against_prediction,
    resolved_residues,
)
from esmfold_peft.preparation.selection import Selection
from esmfold_peft.preparation.sources import Item, Loaded, shown
from esmfold_peft.protein.read import NoProteinError, id_after_file, parse_chains
from esmfold_peft.protein.structure import ProteinStructure

LONGEST_ID = 500
"""Bytes; LMDB takes 511."""
_LONGEST_REASON = 300
_BY_WHAT_WAS_READ = ("length", "resolved", "unknown")
"""Kinds of reasons that the notes on a chain may explain."""

CRASH = "crash"
"""Kind of the files that are left out by a fault of the reader, not of the file."""


@dataclass(frozen=True)
class Rules:
    """Which chains are kept, and how.

    Attributes:
        filters: of all chains.
        predicted: how predictions are filtered; None for experimental structures.
        selection: the ids that are wanted; None takes all.
    """

    filters: FilterConfig
    predicted: PlddtConfig | None
    selection: Selection | None


class ReadChain(NamedTuple):
    """A chain that is kept.

    Attributes:
        entry: its line of the manifest, as a cluster of its own.
        record: of the store.
        own: its id after the file's name, if another file states the same entry.
    """

    entry: ManifestEntry
    record: bytes
    own: str


@dataclass(frozen=True)
class Read:
    """The result of reading the file `place`: chains that are kept, notes on them, and the rest."""

    place: str
    chains: tuple[ReadChain, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[Note, ...] = ()


def failed(loaded: Loaded, error: BaseException) -> Read:
    """A file on which the reader crashed, or failed with an error that nobody foresaw."""
    text = f": {error}" if str(error) else ""
    reason = f"reading it failed ({type(error).__name__}{text})"
    if isinstance(error, BrokenProcessPool):
        reason = "reading it ended the process (a crash, or no memory)"
    return left_out(loaded[0], CRASH, reason)


def left_out(item: Item, kind: str, reason: str) -> Read:
    """A file that is left out, with the reason in one line."""
    reason = shown(" ".join(reason.split())[:_LONGEST_REASON])
    return Read(item.place, rejected=(Rejected(item.place, "", kind, reason),))


def read_item(loaded: Loaded, rules: Rules) -> Read:
    """Reads a file, or rejects it with a reason."""
    item, content = loaded
    if item.fault:
        return left_out(item, item.kind, item.fault)
    try:
        data = read_content(item) if content is None else content
        chains = parse_chains(data, item.place, occupied=rules.predicted is None)
    except OSError as error:
        return left_out(item, "unreadable", error.strerror or str(error))
    except UserError as error:
        kind = "no protein" if isinstance(error, NoProteinError) else "unreadable"
        return left_out(item, kind, str(error).removeprefix(f"{item.place}: "))
    kept, rejected, notes = [], [], []
    for chain in chains:
        found = _read_chain(chain, item.place, rules, alone=len(chains) == 1)
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            kept.append(found)
            notes += [Note(item.place, chain.id, shown(note)) for note in chain.notes]
    return Read(item.place, *map(tuple, (kept, rejected, notes)))


def read_content(item: Item) -> bytes:
    """The bytes of an item that is no member of a compressed tar.

    Raises:
        UserError: the file changed after it was listed; half of it may look like a whole one.
        OSError: it cannot be read.
    """
    with item.path.open("rb") as file:
        file.seek(item.offset or 0)
        data = file.read(item.size)
        if os.fstat(file.fileno()).st_mtime_ns != item.stamp:
            raise UserError("it changed after this run listed it")
        if len(data) < item.size:
            raise UserError(f"cut off: {len(data):,} of {item.size:,} bytes")
        return data


def _read_chain(
    chain: ProteinStructure, place: str, rules: Rules, *, alone: bool
) -> Rejected | ReadChain:
    if rules.selection is not None and rules.selection.match(chain.id) is None:
        return Rejected(place, chain.id, "not listed", "not in the list of ids")
    fault = None
    if not chain.id or not chain.id.isprintable():
        fault = "its id is empty or not printable"
    elif len(chain.id.encode()) > LONGEST_ID:
        fault = f"its id is longer than {LONGEST_ID} bytes"
    if fault:
        return Rejected(place, shown(chain.id[:80]), "id", fault)
    reason = None
    if rules.predicted is not None:
        reason = reason_against_prediction(chain, rules.predicted.min_mean)
        chain = confident_part(chain, rules.predicted.mask_below)
    reason = reason or reason_against(chain, rules.filters)
    if reason is not None:
        kind, text = reason
        if kind in _BY_WHAT_WAS_READ:
            text = "; ".join((text, *chain.notes))[:_LONGEST_REASON]
        return Rejected(place, chain.id, kind, shown(text))
    record = to_record(features(chain))
    entry = ManifestEntry(
        id=chain.id,
        source=place,
        entity=_one_line(chain.entity),
        length=len(chain),
        resolved=resolved_residues(chain),
        resolution=chain.resolution,
        method=_one_line(chain.method),
        release_date=chain.release_date.isoformat() if chain.release_date else None,
        cluster=chain.id,
        cluster_size=1,
        sequence_hash=hashlib.sha256(chain.sequence.encode()).hexdigest()[:16],
        hash=record_hash(record),
    )
    return ReadChain(entry, record, id_after_file(place, chain.chain, alone=alone))


def _one_line(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())

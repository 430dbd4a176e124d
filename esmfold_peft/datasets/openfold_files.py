"""Files of OpenFold's training data: the cache of chains, and the list of identical chains."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from esmfold_peft.datasets.cluster_files import ClusterFile, chain_key, cluster_of
from esmfold_peft.disk.files import read_bytes, read_json
from esmfold_peft.errors import UserError

_LETTERS = re.compile("[A-Za-z]+")
_CHAIN = re.compile(r"[\w.:|+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CachedChain:
    """What OpenFold's cache says of one chain.

    Attributes:
        release_date: of its entry; None if unknown (predicted structures have none).
        resolution: in Å; None if unknown or without meaning (NMR, predicted).
        cluster_size: number of chains in its cluster, itself included; None if unknown.
    """

    release_date: date | None
    resolution: float | None
    cluster_size: int | None


def read_chain_data_cache(path: Path) -> dict[str, CachedChain]:
    """Reads a `chain_data_cache.json`, as OpenFold's `scripts/generate_chain_data_cache.py` writes.

    A resolution of 0, a cluster size of -1 and null mean "unknown" there, as absence does.

    Args:
        path: the file, plain or gzip-compressed.

    Returns:
        What is known of each chain, by its name ("1abc_A", or the file's name for a prediction).

    Raises:
        UserError: the file is not JSON or lists no chain, or a value has the wrong type.
    """
    content = read_json(path)
    if not content:
        raise UserError(f"{path}: lists no chain")
    return {chain: _cached(entry, f"{path}: {chain}") for chain, entry in content.items()}


def read_duplicates(path: Path) -> list[tuple[str, ...]]:
    """Reads a `duplicate_pdb_chains.txt`: on each line chains of equal sequence, blanks between.

    Args:
        path: the file, plain or gzip-compressed.

    Raises:
        UserError: the file cannot be read, is empty, or has something that is not a chain.
    """
    groups = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        chains = tuple(line.decode(errors="replace").split())
        wrong = next((chain for chain in chains if not _CHAIN.fullmatch(chain)), None)
        if wrong is not None:
            raise UserError(f"{path}:{number}: {wrong[:40]!r} is not the name of a chain")
        if chains:
            groups.append(chains)
    return groups


def extend_to_duplicates(
    clusters: Mapping[str, str | None], groups: Iterable[tuple[str, ...]], file: ClusterFile
) -> dict[str, str | None]:
    """Gives a chain without a cluster that of the first chain of its line which has one.

    Args:
        clusters: each chain to the name of its cluster, or None.
        groups: chains of equal sequence (`read_duplicates`); those that `clusters` does not have
            count too, because often only the representative is in the file, but not among them.
        file: where `clusters` come from.

    Returns:
        The chains of `clusters` in their order; None where no duplicate has a cluster.
    """
    extended = dict(clusters)
    names = {chain_key(chain): chain for chain in clusters}
    for group in groups:
        own = [names.get(chain_key(chain), chain) for chain in group]
        missing = [chain for chain in own if chain in clusters and clusters[chain] is None]
        if missing:
            known = (clusters.get(chain) or cluster_of(chain, None, file) for chain in own)
            cluster = next(filter(None, known), None)
            extended.update((chain, extended[chain] or cluster) for chain in missing)
    return extended


def _cached(entry: Any, place: str) -> CachedChain:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: {entry!r:.40} is not an object")
    sequence = entry.get("seq")  # what tells this file from OpenFold's other caches
    if not isinstance(sequence, str) or not _LETTERS.fullmatch(sequence):
        _refuse(place, "seq", sequence, "a sequence")
    return CachedChain(
        release_date=_date(entry.get("release_date"), place),
        resolution=_resolution(entry.get("resolution"), place),
        cluster_size=_size(entry.get("cluster_size"), place),
    )


def _date(value: Any, place: str) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        _refuse(place, "release_date", value, "a date (YYYY-MM-DD)")


def _resolution(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        _refuse(place, "resolution", value, "a number of Å")
    return float(value) or None


def _size(value: Any, place: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < -1:
        _refuse(place, "cluster_size", value, "a number of chains")
    return value if value > 0 else None


def _refuse(place: str, key: str, value: Any, expected: str) -> NoReturn:
    raise UserError(f"{place}: {key} {value!r:.40} is not {expected}")

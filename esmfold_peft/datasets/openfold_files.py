"""Files of OpenFold's training data: the cache of chains, and the list of identical chains."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from esmfold_peft.datasets.cluster_files import ClusterFile, chain_key
from esmfold_peft.disk.files import read_bytes, read_json
from esmfold_peft.errors import UserError

_LETTERS = re.compile("[A-Za-z]+")
_CHAIN = re.compile(r"[\w.:|+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CachedChain:
    """Facts of OpenFold's cache about one chain; None if unknown (NMR, predicted structures).

    Attributes:
        release_date: of its entry.
        resolution: in Å.
        cluster_size: number of chains in its cluster, itself included.
    """

    release_date: date | None
    resolution: float | None
    cluster_size: int | None


def read_chain_data_cache(path: Path) -> dict[str, CachedChain]:
    """Reads a `chain_data_cache.json`, as OpenFold's `scripts/generate_chain_data_cache.py` writes.

    The file may be gzip-compressed. A resolution of 0, a cluster size of -1 and null mean "unknown"
    there, as absence does. The keys are names of chains ("1abc_A", or a prediction's file name).

    Raises:
        UserError: the file is not JSON or lists no chain, or a value has the wrong type.
    """
    content = read_json(path)
    if not content:
        raise UserError(f"{path}: lists no chain")
    return {chain: _cached(entry, f"{path}: {chain}") for chain, entry in content.items()}


def read_duplicates(path: Path) -> list[tuple[str, ...]]:
    """Reads a `duplicate_pdb_chains.txt`: on each line chains of equal sequence, blanks between.

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
        groups: chains of equal sequence (`read_duplicates`). They may have members that `clusters`
            lacks: often the file has only a representative that is not in the store.
        file: the source of `clusters`.
    """
    extended = dict(clusters)
    names = {chain_key(chain): chain for chain in clusters}
    for group in groups:
        own = [names.get(chain_key(chain), chain) for chain in group]
        missing = [chain for chain in own if chain in clusters and clusters[chain] is None]
        if missing:
            known = (clusters.get(chain) or file.cluster_of(chain, None) for chain in own)
            cluster = next(filter(None, known), None)
            extended.update((chain, extended[chain] or cluster) for chain in missing)
    return extended


def _cached(entry: Any, place: str) -> CachedChain:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: {entry!r:.40} is not an object")
    sequence = entry.get("seq")  # which OpenFold's other caches do not have
    if not isinstance(sequence, str) or not _LETTERS.fullmatch(sequence):
        _refuse(place, "seq", sequence, "a sequence")
    resolution, size = entry.get("resolution"), entry.get("cluster_size")
    resolution = 0 if resolution is None else resolution
    if type(resolution) not in (int, float) or not math.isfinite(resolution) or resolution < 0:
        _refuse(place, "resolution", resolution, "a number of Å")
    if size is not None and (type(size) is not int or size < -1):
        _refuse(place, "cluster_size", size, "a number of chains")
    released = entry.get("release_date")
    try:
        release_date = None if released is None else date.fromisoformat(released)
    except (TypeError, ValueError):
        _refuse(place, "release_date", released, "a date (YYYY-MM-DD)")
    return CachedChain(release_date, float(resolution) or None, max(size or 0, 0) or None)


def _refuse(place: str, key: str, value: Any, expected: str) -> NoReturn:
    raise UserError(f"{place}: {key} {value!r:.40} is not {expected}")

"""Decisions on all chains together, after the last file was read: clusters, dates, leaks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.leaks import ChainList, chain_list, find_leaks, what_was_compared
from esmfold_peft.datasets.manifest import ManifestEntry
from esmfold_peft.datasets.openfold_files import CachedChain, read_chain_data_cache
from esmfold_peft.datasets.records import sequence_of
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.clustering import clustered, require_clusters
from esmfold_peft.preparation.filters import Note, Rejected, reason_against_entry
from esmfold_peft.preparation.selection import Selection
from esmfold_peft.preparation.writer import StoreWriter, UnitResult


@dataclass(frozen=True)
class Finished:
    """The lines of a store's tables, and numbers for its report.

    Attributes:
        files: that were listed.
        residues_stored: of all chains in the store's file, also of those that are left out.
        entries: lines of manifest.csv.
        rejected: lines of rejected.csv.
        notes: lines of notes.csv.
        clusters: where the clusters come from.
        leaks: which leaks the comparison with the held-out store can find.
    """

    files: int
    residues_stored: int
    entries: list[ManifestEntry]
    rejected: list[Rejected]
    notes: list[Note]
    clusters: str
    leaks: str


def require_inputs(config: PrepareConfig) -> None:
    """Checks the inputs of the last steps before hours are spent on reading structures.

    Raises:
        UserError: a file of clusters, a cache or the held-out store is missing or wrong, the latter
            is the store itself, or mmseqs is required and not installed.
    """
    named = {"duplicates": config.duplicates, "chain_data_cache": config.chain_data_cache}
    if config.clusters not in ("auto", "mmseqs", "none"):
        named["clusters"] = Path(config.clusters)
    for name, path in named.items():
        if path is not None and not path.is_file():
            raise UserError(f"{name}: {path}: no such file")
    require_clusters(config)
    if config.chain_data_cache is not None:
        read_chain_data_cache(config.chain_data_cache)
    if config.held_out is not None:
        if config.held_out.resolve() == config.output.resolve():
            raise UserError(f"held_out: {config.held_out} is the output; choose another store")
        Store(config.held_out)


def finish(
    config: PrepareConfig, selection: Selection | None, writer: StoreWriter, threads: int
) -> Finished:
    """Adds facts from caches and clusters to the chains of a writer, and removes leaks.

    Raises:
        UserError: a file of clusters, a cache or the held-out store is missing or wrong, or mmseqs
            fails.
    """
    units = list(writer.journal())
    entries = [entry for unit in units for entry in unit.entries]
    rejected = [found for unit in units for found in unit.rejected]
    stored = sum(entry.length for entry in entries)
    if selection is not None:
        rejected += _missing(selection, [found.id for found in (*entries, *rejected)])
    cache = {}
    if config.chain_data_cache is not None:
        cache = read_chain_data_cache(config.chain_data_cache)
        entries, refused = _dated(entries, cache, config)
        rejected += refused
    entries, clusters = clustered(config, entries, writer, threads)
    leaks = ""
    if config.held_out is not None:
        entries, refused, leaks = _without_leaks(entries, Store(config.held_out), writer, threads)
        rejected += refused
    return Finished(
        files=sum(unit.files for unit in units),
        residues_stored=stored,
        entries=_sized(entries, cache),
        rejected=rejected,
        notes=[note for unit in units for note in _notes(unit)],
        clusters=clusters,
        leaks=leaks,
    )


def _notes(unit: UnitResult) -> Iterator[Note]:
    """The notes of a unit, those on chains that are named after their files included."""
    names = {}
    for entry, named in zip(unit.entries, unit.named, strict=True):
        names[entry.source, named.stated] = entry.id
        if entry.id != named.stated:
            reason = f'named after its file: other files have the entry id "{named.stated}" too'
            yield Note(entry.source, entry.id, reason)
    for note in unit.notes:
        yield replace(note, id=names.get((note.file, note.id), note.id))


def _missing(selection: Selection, seen: list[str]) -> list[Rejected]:
    """Listed ids that no file had."""
    found = {selection.match(name) for name in seen if name}
    return [
        Rejected(str(path), name, "not found", "listed, but in no file that could be read")
        for name, path in selection.listed.items()
        if name not in found
    ]


def _dated(
    entries: list[ManifestEntry], cache: dict[str, CachedChain], config: PrepareConfig
) -> tuple[list[ManifestEntry], list[Rejected]]:
    """Takes resolution and date from a cache where the file has none, and filters by them."""
    kept, refused = [], []
    for entry in entries:
        if known := cache.get(entry.id):
            date = known.release_date.isoformat() if known.release_date else None
            entry = replace(
                entry,
                resolution=known.resolution if entry.resolution is None else entry.resolution,
                release_date=entry.release_date or date,
            )
        reason = reason_against_entry(entry.resolution, entry.release_date, config.filters)
        if reason is None:
            kept.append(entry)
        else:
            refused.append(Rejected(entry.source, entry.id, *reason))
    return kept, refused


def _without_leaks(
    entries: list[ManifestEntry], held_out: Store, writer: StoreWriter, threads: int
) -> tuple[list[ManifestEntry], list[Rejected], str]:
    training = ChainList(
        ids=[entry.id for entry in entries],
        release_date=np.array([e.release_date or "NaT" for e in entries], "datetime64[D]"),
        cluster=[entry.cluster for entry in entries],
        sequence_hash=[entry.sequence_hash for entry in entries],
        sequence=lambda place: sequence_of(writer.record(entries[place].id)),
    )
    validation = chain_list(held_out)
    leaks = find_leaks(training, validation, threads=threads)
    kept = [entry for place, entry in enumerate(entries) if place not in leaks]
    refused = [
        Rejected(entries[place].source, entries[place].id, "leak", reason)
        for place, reason in leaks.items()
    ]
    return kept, refused, what_was_compared(training, validation)


def _sized(entries: list[ManifestEntry], cache: dict[str, CachedChain]) -> list[ManifestEntry]:
    """Counts the chains of each cluster; a larger number in a cache counts instead."""
    sizes = Counter(entry.cluster for entry in entries)
    cached = {name: chain.cluster_size or 1 for name, chain in cache.items()}
    return [
        replace(entry, cluster_size=max(sizes[entry.cluster], cached.get(entry.id, 1)))
        for entry in entries
    ]

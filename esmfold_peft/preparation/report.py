"""The numbers of a store: report.json, and the lines that `prepare` prints."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.preparation.finishing import Finished


@dataclass(frozen=True)
class Report:
    """Numbers of a store.

    Attributes:
        files: files of the sources.
        files_used: files with at least one chain in the store.
        files_left_out: the others; each is in rejected.csv.
        chains: chains of the store.
        chains_left_out: chains in rejected.csv, by the kind of reason.
        files_rejected: whole files in rejected.csv, by the kind of reason.
        chains_with_notes: chains in notes.csv.
        residues: of the store's chains, resolved or not.
        resolved: residues with a Cα.
        unknown_resolution: chains that state none (NMR has none); they pass that filter.
        unknown_date: chains that state none; they pass that filter.
        clusters: number of clusters.
        clusters_from: where they come from.
        leaks: which leaks the comparison with the held-out store can find; empty without one.
        bytes: size of the store's file, its journal included.
        bytes_per_residue: of all residues in the file, also those that were left out at the end.
    """

    files: int
    files_used: int
    files_left_out: int
    chains: int
    chains_left_out: dict[str, int]
    files_rejected: dict[str, int]
    chains_with_notes: int
    residues: int
    resolved: int
    unknown_resolution: int
    unknown_date: int
    clusters: int
    clusters_from: str
    leaks: str
    bytes: int
    bytes_per_residue: float


def make_report(finished: Finished, size: int) -> Report:
    """Counts; `size` is that of the store's file in bytes."""
    entries, stored = finished.entries, finished.residues_stored
    used = len({entry.source for entry in entries})
    return Report(
        files=finished.files,
        files_used=used,
        files_left_out=finished.files - used,
        chains=len(entries),
        chains_left_out=dict(sorted(Counter(r.kind for r in finished.rejected if r.id).items())),
        files_rejected=dict(sorted(Counter(r.kind for r in finished.rejected if not r.id).items())),
        chains_with_notes=len({(note.file, note.id) for note in finished.notes}),
        residues=sum(entry.length for entry in entries),
        resolved=sum(entry.resolved for entry in entries),
        unknown_resolution=sum(entry.resolution is None for entry in entries),
        unknown_date=sum(entry.release_date is None for entry in entries),
        clusters=len({entry.cluster for entry in entries}),
        clusters_from=finished.clusters,
        leaks=finished.leaks,
        bytes=size,
        bytes_per_residue=round(size / stored, 1) if stored else 0.0,
    )


def report_lines(found: Report, store: Path) -> list[str]:
    """The report for a person."""
    rejected, chains = sum(found.files_rejected.values()), sum(found.chains_left_out.values())
    lines = [
        f"{_counted(found.files, 'file')}: {found.files_used:,} used, {found.files_left_out:,} not"
        f"{_named(found.files_rejected)}",
        f"{_counted(found.chains, 'chain')} of {found.residues:,} residues in {store},"
        f" {chains:,} left out{_named(found.chains_left_out)}",
        f"{_counted(found.clusters, 'cluster')} ({found.clusters_from}); resolution unknown of"
        f" {found.unknown_resolution:,} chains, release date of {found.unknown_date:,};"
        f" {found.bytes_per_residue:g} bytes a residue",
    ]
    if found.leaks:
        lines.append(f"leaks: {found.leaks}")
    if rejected + chains:
        lines.append(f"reasons: {store / 'rejected.csv'}")
    if noted := found.chains_with_notes:
        lines.append(f"notes on {_counted(noted, 'chain')}: {store / 'notes.csv'}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _named(counts: dict[str, int]) -> str:
    text = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f" ({text})" if text else ""

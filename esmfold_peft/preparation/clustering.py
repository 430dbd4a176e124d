"""The cluster of every chain: from mmseqs, from a file, or each chain its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from esmfold_peft.config import PrepareConfig
from esmfold_peft.console import report
from esmfold_peft.datasets.cluster_files import read_clusters
from esmfold_peft.datasets.manifest import ManifestEntry
from esmfold_peft.datasets.mmseqs import cluster, mmseqs_program
from esmfold_peft.datasets.openfold_files import extend_to_duplicates, read_duplicates
from esmfold_peft.datasets.records import sequence_of
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.writer import StoreWriter

_HOW_TO_CLUSTER = (
    "mmseqs is not installed, so every chain is a cluster of its own: large families will be"
    " trained on more often. Install it (Debian package mmseqs2) or name a file of clusters with"
    " --clusters, and give the same command again: no structure is read twice"
)
_WITHOUT_ENTITY = (
    "it names entities (1ABC_1), which PDB files and some others do not state; chains without one:"
    " {:,}. Give mmCIF files, clusters of chains, or --clusters mmseqs"
)


def require_clusters(config: PrepareConfig) -> None:
    """Checks that the source of the clusters is there and can be read.

    Raises:
        UserError: a file is wrong, or mmseqs is required and not installed.
    """
    if config.clusters == "mmseqs" and mmseqs_program() is None:
        raise UserError("clusters: mmseqs is not installed (Debian package mmseqs2)")
    if config.clusters not in ("auto", "mmseqs", "none"):
        read_clusters(Path(config.clusters))
    if config.duplicates is not None:
        read_duplicates(config.duplicates)


def clustered(
    config: PrepareConfig, entries: list[ManifestEntry], writer: StoreWriter, threads: int
) -> tuple[list[ManifestEntry], str]:
    """The lines of the manifest, each with its cluster, and where the clusters come from.

    Raises:
        UserError: the file of clusters is missing or wrong, or mmseqs fails.
    """
    names, origin = _names(config, entries, writer, threads)
    # A chain without a name here is a cluster of its own.
    return [replace(entry, cluster=names.get(entry.id) or entry.id) for entry in entries], origin


def _names(
    config: PrepareConfig, entries: list[ManifestEntry], writer: StoreWriter, threads: int
) -> tuple[Mapping[str, str | None], str]:
    if config.clusters == "none" or not entries:
        return {}, "each chain its own"
    if config.clusters not in ("auto", "mmseqs"):
        return _from_file(config, Path(config.clusters), entries)
    if mmseqs_program() is None:
        report(_HOW_TO_CLUSTER)
        return {}, "each chain its own: mmseqs is not installed"
    report(f"clustering {len(entries):,} chains with mmseqs")
    sequences = {entry.id: sequence_of(writer.record(entry.id)) for entry in entries}
    return cluster(sequences, threads=threads), "mmseqs at 40 % identity"


def _from_file(
    config: PrepareConfig, path: Path, entries: list[ManifestEntry]
) -> tuple[Mapping[str, str | None], str]:
    file = read_clusters(path)
    names = {entry.id: file.cluster_of(entry.id, entry.entity) for entry in entries}
    if config.duplicates is not None:
        names = extend_to_duplicates(names, read_duplicates(config.duplicates), file)
    found = sum(name is not None for name in names.values())
    nameless = sum(entry.entity is None for entry in entries) if file.by_entity else 0
    advice = _WITHOUT_ENTITY.format(nameless)
    if entries and not found:
        more = f"; {advice}" if nameless else ""
        raise UserError(f"clusters: {path} has none of the store's {len(entries)} chains{more}")
    if nameless:
        report(f"clusters: {advice}")
    return names, f"{path}, which has {found:,} of the chains"

"""Settings of `prepare`."""

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from esmfold_peft.config.checks import check_lowest, check_shares, check_unchanged
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class FilterConfig:
    """Which chains are rejected. A value that a file does not state rejects nothing.

    Attributes:
        max_resolution: Å; rejects chains of worse resolution (OpenFold: 9). NMR has none.
        min_date: earliest release date, such as 2021-09-16.
        max_date: latest release date. A training set must end before its validation set begins.
        min_length: fewest residues, resolved or not.
        max_length: most residues.
        min_resolved: fewest resolved residues (Cα).
        max_dominance: largest share of one amino acid in the sequence (OpenFold: 0.8).
        max_unknown: largest share of residues outside the standard twenty; below it they become X
            and are masked.
    """

    max_resolution: float | None = 9.0
    min_date: str | None = None
    max_date: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_resolved: int = 10
    max_dominance: float = 0.8
    max_unknown: float = 0.5

    def __post_init__(self) -> None:
        check_lowest(self, "filters.", 1, "min_length", "max_length", "min_resolved")
        check_lowest(self, "filters.", 0, "max_resolution")
        check_shares(self, "filters.", "max_dominance", "max_unknown")
        for name in ("min_date", "max_date"):
            _check_date(f"filters.{name}", getattr(self, name))


@dataclass(frozen=True)
class PlddtConfig:
    """Filters for predicted structures (ESMFold's self-distillation set).

    Attributes:
        mask_below: residues with a lower pLDDT (0 to 100, the B-factor of Cα) lose their atoms.
        min_mean: rejects chains with a lower mean pLDDT.
    """

    mask_below: float = 50.0
    min_mean: float = 70.0


@dataclass(frozen=True)
class PrepareConfig:
    """Turn structure files into a store of chains.

    The same command resumes a stopped preparation. On a finished store it only makes the clusters
    and the list of chains again.

    Attributes:
        sources: mmCIF or PDB files, plain or gzip, tars of them (plain tars are read in place), and
            folders of both. A .txt file is a list of ids (1ubq, 1ubq_A); only these are then taken.
        output: folder of the store; receives chains.lmdb, manifest.csv, rejected.csv, notes.csv and
            report.json.
        filters: which chains are rejected
        predicted: the structures are predictions; their B-factors are pLDDT.
        plddt: filters for predicted structures; only with --predicted
        clusters: mmseqs (40 % identity; the program must be installed), none, or a file of clusters
            (RCSB's of entities, OpenFold's of chains, or mmseqs' _cluster.tsv). auto takes mmseqs
            if it is installed. A chain in no cluster is a cluster of its own.
        duplicates: OpenFold's list of chains with equal sequences: a chain that the file of
            clusters lacks joins the cluster of an equal one.
        chain_data_cache: OpenFold's chain_data_cache.json: release dates, resolutions and cluster
            sizes of chains whose files do not state them.
        held_out: store of validation chains; rejects chains that would leak them.
        workers: processes that read files; default: one per core.
    """

    sources: tuple[Path, ...]
    output: Path
    filters: FilterConfig = field(default_factory=FilterConfig)
    predicted: bool = False
    plddt: PlddtConfig = field(default_factory=PlddtConfig)
    clusters: str = "auto"
    duplicates: Path | None = None
    chain_data_cache: Path | None = None
    held_out: Path | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        check_lowest(self, "", 1, "workers")
        if not self.predicted:
            names = ("mask_below", "min_mean")
            check_unchanged(self.plddt, "plddt.", names, "only with --predicted")
        if self.duplicates is not None and self.clusters in ("auto", "mmseqs", "none"):
            raise UserError("duplicates: needs a file of clusters (--clusters FILE)")


def _check_date(name: str, text: str | None) -> None:
    try:
        # The short forms that fromisoformat takes too would not compare as texts.
        if text is not None and date.fromisoformat(text).isoformat() != text:
            raise ValueError
    except ValueError:
        raise UserError(f"{name}: {text!r} is not a date like 2021-09-16") from None

"""Clusters and homologues of sequences, found by the program `mmseqs` (MMseqs2)."""

import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError

# Two sequences belong together if they are 40 % identical where they are aligned, and that is at
# least 90 % of both (coverage mode 0). The type is stated because mmseqs takes a peptide of A, C, G
# and T for DNA.
# DISCREPANCY: RCSB and OpenFold (scripts/fasta_to_clusterfile.py) use -s 8, which takes twice as
# long as 7.5 and made 4,835 instead of 4,836 clusters of 5,123 chains. Of 257 pairs that aligning
# everything found among 5,000 chains, a search with 7.5 or 5.7 missed none, one with 4 missed 5.
IDENTITY, COVER = 0.4, 0.9
_SIMILAR = "--cov-mode 0 -e 0.001 --dbtype 1".split()
_SENSITIVE = "-s 7.5".split()
_CLUSTERS = "--cluster-mode 1".split()
_PREFIX = "esmfold-peft-mmseqs-"

# mmseqs stops if no sequence is long enough for its index or all are masked; this one, of random
# letters and similar to nothing, is always indexed.
_FILLER_NAME = "filler"
_FILLER = "MWQKNDHVERSLYTPGCAFIEWNKRDTHQSMVYLPAGICFKEQHNWRTDVYSMLGPACIFEK"


@dataclass(frozen=True)
class Hit:
    """The names of two similar sequences, and identical residues / length of their alignment."""

    query: str
    target: str
    identity: float


def mmseqs_program() -> str | None:
    """Path of the program; None if it is not installed."""
    return shutil.which("mmseqs")


def cluster(
    sequences: Mapping[str, str],
    *,
    threads: int,
    identity: float = IDENTITY,
    cover: float = COVER,
    linear: bool = False,
) -> dict[str, str]:
    """Clusters sequences at 40 % identity over 90 % of both, by connected components.

    A sequence in which mmseqs finds nothing to compare (too short, of low complexity, all X) is
    in one cluster with its copies only. Apart from the names, the clusters depend on the set of
    sequences alone. Similar sequences can be in two clusters, because mmseqs works in steps and
    compares only the representatives of the last one: 4 of the 257 pairs above are apart. To find
    similar sequences of two sets, use `similar`.

    Args:
        sequences: one-letter codes by name; the names may be any text.
        threads: number of threads, at least 1.
        identity: least share of identical residues in an alignment.
        cover: least share of both sequences in it.
        linear: compare only sequences that share a k-mer (Linclust): minutes for half a million.

    Returns:
        The name of each sequence, in the order given, to the name of its cluster: its first member.

    Raises:
        UserError: mmseqs is not installed or fails.
    """
    if not sequences:
        return {}
    distinct = sorted(set(sequences.values()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        fasta = _write_fasta(folder / "sequences.fasta", distinct)
        files = fasta, folder / "out", folder / "tmp"
        alike = ("--min-seq-id", identity, "-c", cover)
        if linear:
            _run("easy-linclust", *files, *alike, *_CLUSTERS, threads=threads)
        else:
            often = ("--max-seqs", 1000, *_SENSITIVE)
            _run("easy-cluster", *files, *alike, *_CLUSTERS, *often, threads=threads)
        rows = _table(folder / "out_cluster.tsv", columns=2)
    representatives = {member: representative for representative, member in rows}
    groups = {s: representatives.get(str(i), str(i)) for i, s in enumerate(distinct)}
    first: dict[str, str] = {}
    return {name: first.setdefault(groups[s], name) for name, s in sequences.items()}


def similar(
    queries: Mapping[str, str],
    targets: Mapping[str, str],
    *,
    threads: int,
    identity: float = IDENTITY,
    cover: float = COVER,
) -> list[Hit]:
    """Finds the targets that are 40 % identical to a query over 90 % of both.

    Equal sequences are always found. All others that share two similar k-mers on one diagonal with
    the query are aligned: the number of hits is not bounded. A domain and a longer chain that
    contains it are no hit, but with `cover` 0. Both sets are one-letter codes by name.

    Returns:
        The hits of each query, in the order given, the most similar first.

    Raises:
        UserError: mmseqs is not installed or fails.
    """
    if not queries or not targets:
        return []
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, sequence in targets.items():
        names[sequence].append(name)
    alike = ("--min-seq-id", identity, "-c", cover)
    found = _search(sorted(set(queries.values())), sorted(names), alike, threads=threads)
    return [
        Hit(query, target, identity)
        for query, sequence in queries.items()
        for near, identity in sorted(found[sequence].items(), key=lambda item: (-item[1], item[0]))
        for target in names[near]
    ]


def _search(
    queries: list[str], targets: list[str], alike: tuple[object, ...], *, threads: int
) -> dict[str, dict[str, float]]:
    """The similar targets of each query and their identity."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        # A query's candidates are cut at --max-seqs, before they are aligned: the default of 300
        # would hide most homologues of a kinase.
        _run(
            "easy-search",
            _write_fasta(folder / "queries.fasta", queries),
            _write_fasta(folder / "targets.fasta", targets),
            folder / "out.tsv",
            folder / "tmp",
            *("--max-seqs", len(targets) + 1, "--format-output", "query,target,fident"),
            *(*alike, *_SENSITIVE),
            threads=threads,
        )
        rows = _table(folder / "out.tsv", columns=3)
    found: dict[str, dict[str, float]] = {query: {} for query in queries}
    for query, target, identity in rows:
        if _FILLER_NAME not in (query, target):
            found[queries[int(query)]][targets[int(target)]] = float(identity)
    for query in found.keys() & set(targets):  # also those that mmseqs cannot index
        found[query][query] = 1.0
    return found


def _write_fasta(path: Path, sequences: list[str]) -> Path:
    """Numbers instead of names, so that mmseqs cannot cut or interpret them."""
    records = [f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)]
    write_atomically(path, "".join(records) + f">{_FILLER_NAME}\n{_FILLER}\n")
    return path


def _run(module: str, *arguments: object, threads: int) -> None:
    program = mmseqs_program()
    if program is None:
        raise UserError("mmseqs: not found (Debian package mmseqs2, or https://mmseqs.com)")
    options = (*_SIMILAR, "--threads", threads, "-v", 2)
    try:
        done = subprocess.run(
            [program, module, *map(str, (*arguments, *options))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise UserError(f"{program}: cannot be run ({error.strerror})") from error
    if done.returncode:
        raise UserError(f"{program} {module}: {_reason(done.stdout)} (exit {done.returncode})")


def _reason(output: str) -> str:
    """The last line with information: "Error: Search died" only repeats that it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if not line.endswith(" died")]
    return (telling or lines or ["no message"])[-1]


def _table(path: Path, *, columns: int) -> list[list[str]]:
    """The rows of a table that mmseqs wrote; it may have none."""
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"mmseqs: did not write {path.name} ({error.strerror})") from error
    if any(len(row) != columns for row in rows):
        raise UserError(f"mmseqs: {path.name} does not have {columns} columns")
    return rows

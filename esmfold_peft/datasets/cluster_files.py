"""Cluster files that others made: RCSB's by entity, OpenFold's by chain, and those of mmseqs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.disk.files import read_bytes
from esmfold_peft.errors import UserError

# Characters that are in no name of a chain, but in FASTA, CSV, JSON, mmCIF, HTML and binary files.
_NOT_A_NAME = re.compile(r"[^\s\w.:|+-]", re.ASCII)
_COMPUTED_MODEL = re.compile(r"af-[a-z0-9]+-f[0-9]+|ma(?:-[a-z0-9]+)+")


@dataclass(frozen=True)
class ClusterFile:
    """The clusters of one file.

    Attributes:
        by_entity: whether the members are entities ("4HHB_1") rather than chains ("1abc_A").
        clusters: `chain_key` of every member to the name of its cluster, which is the
            representative or the first member, as the file spells it.
    """

    by_entity: bool
    clusters: Mapping[str, str]

    def cluster_of(self, chain: str, entity: str | None) -> str | None:
        """The cluster of a chain ("1abc_A") and its entity ("1"); None if the file has none."""
        if not self.by_entity:
            return self.clusters.get(chain_key(chain))
        return None if entity is None else self.clusters.get(_entity_key(chain, entity))


def read_clusters(path: Path) -> ClusterFile:
    """Reads a cluster file, plain or gzip-compressed; its content tells which format it has.

    * RCSB's `clusters-by-entity-40.txt`: one cluster a line, its members separated by blanks. They
      are entities, of the PDB ("4HHB_1") and of computed models ("AF_AFP12345F1_1").
    * OpenFold's (`scripts/fasta_to_clusterfile.py`): the same, with chains ("1abc_A").
    * mmseqs' `_cluster.tsv`: on each line the representative, a tab and one member.

    Members are entities if all of them end with "_" and a whole number.

    Raises:
        UserError: the file cannot be read, is empty or none of the above, or has a member in two
            clusters.
    """
    lines = _text(path).split("\n")
    pairs = len(next(line for line in lines if line.strip()).strip().split("\t")) == 2
    clusters: dict[str, str] = {}
    by_entity = True
    for number, line in enumerate(lines, start=1):
        members = line.split()
        _check(members, line, f"{path}:{number}", pairs=pairs)
        # In a pair the representative comes again and again; as the first of a line only once.
        if members and not pairs and chain_key(members[0]) in clusters:
            raise UserError(f"{path}:{number}: {members[0]} is in two clusters")
        for member in members:
            if clusters.setdefault(chain_key(member), members[0]) != members[0]:
                raise UserError(f"{path}:{number}: {member} is in two clusters")
            by_entity = by_entity and member.rpartition("_")[2].isdecimal() and "_" in member
    return ClusterFile(by_entity, clusters)


def chain_key(name: str) -> str:
    """One spelling for every spelling of a chain or entity.

    The code is compared without case ("1ABC" is "1abc"), the chain with it: "1abc_A" and "1abc_a"
    are two chains. A name without "_" is all code.
    """
    code, separator, chain = name.rpartition("_")
    return f"{code.lower()}_{chain}" if separator else name.lower()


def _entity_key(chain: str, entity: str) -> str:
    """The key of a chain's entity. RCSB calls entity 1 of AF-P12345-F1 "AF_AFP12345F1_1"."""
    code = (chain.rpartition("_")[0] or chain).lower()
    computed = _COMPUTED_MODEL.match(code)
    if computed:
        code = f"{code[:2]}_{computed[0].replace('-', '')}"
    return f"{code}_{entity}"


def _text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UserError(f"{path}:{line}: not a cluster file (byte 0x{byte:02x})") from error


def _check(members: list[str], line: str, place: str, *, pairs: bool) -> None:
    if _NOT_A_NAME.search(line):
        wrong = next(member for member in members if _NOT_A_NAME.search(member))
        raise UserError(f"{place}: not a cluster file ({wrong[:40]!r} is no chain or entity)")
    if pairs and members and len(members) != 2:
        raise UserError(f"{place}: {len(members)} columns, not representative and member")

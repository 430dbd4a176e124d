"""Small stores, written without `prepare`."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import pytest

from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.manifest import FILE_NAME, ManifestEntry, manifest_text
from esmfold_peft.datasets.records import sequence_of, to_record
from esmfold_peft.datasets.store import CHAINS, CHAINS_FILE, TABLES


@pytest.fixture
def make_chain():
    """Builds a chain of random residues, of which only the Cα are known."""

    def make(name: str, length: int) -> Features:
        rng = np.random.default_rng(length)
        atom_mask = np.zeros((length, 14), dtype=bool)
        atom_mask[:, 1] = True
        positions = rng.normal(size=(length, 14, 3)).astype(np.float32)
        return Features(
            id=name,
            aatype=rng.integers(20, size=length),
            residue_index=np.arange(length),
            positions=positions * atom_mask[..., None],
            atom_mask=atom_mask,
            resolution=2.0,
        )

    return make


@pytest.fixture
def write_store():
    """Writes a store of chains, each with the name of its cluster; by default each is its own."""

    def write(
        folder: Path, chains: Sequence[Features], clusters: Sequence[str] | None = None
    ) -> Path:
        folder.mkdir(parents=True)
        records = {chain.id: to_record(chain) for chain in chains}
        path = str(folder / CHAINS_FILE)
        with lmdb.open(path, subdir=False, map_size=1 << 26, max_dbs=TABLES, lock=False) as env:
            table = env.open_db(CHAINS)
            with env.begin(table, write=True) as transaction:
                for name, record in records.items():
                    transaction.put(name.encode(), record)
        clusters = clusters or [chain.id for chain in chains]
        sizes = Counter(clusters)
        entries = [
            _entry(chain, records[chain.id], cluster, sizes[cluster])
            for chain, cluster in zip(chains, clusters, strict=True)
        ]
        (folder / FILE_NAME).write_text(manifest_text(entries))
        return folder

    return write


def _entry(chain: Features, record: bytes, cluster: str, cluster_size: int) -> ManifestEntry:
    return ManifestEntry(
        id=chain.id,
        source=f"{chain.id}.cif",
        entity="1",
        length=len(chain),
        resolved=len(chain),
        resolution=chain.resolution,
        method=None,
        release_date=None,
        cluster=cluster,
        cluster_size=cluster_size,
        sequence_hash=hashlib.sha256(sequence_of(record).encode()).hexdigest()[:16],
        hash=hashlib.sha256(record).hexdigest()[:32],
    )

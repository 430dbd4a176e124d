"""All structures beside the project in one store, and each of them accounted for."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.store import Store
from esmfold_peft.protein.read import read_chains
from tests.preparation.conftest import report_of, rows


@pytest.mark.proof
def test_one_command_prepares_every_collection(shared_structures: Path, tmp_path: Path):
    run(PrepareConfig((shared_structures,), tmp_path, clusters="none"))
    report, rejected = report_of(tmp_path), rows(tmp_path, "rejected.csv")
    manifest = rows(tmp_path, "manifest.csv")

    plain = [path for path in shared_structures.rglob("*") if path.is_file()]
    files = {str(path) for path in plain if path.suffix != ".tar"}
    for path in plain:
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                files |= {f"{path}/{name}" for name in tar.getnames()}
    used = {line["source"] for line in manifest}
    named = {line["file"] for line in rejected}
    assert used | named == files
    assert (report["files"], report["files_used"]) == (len(files), len(used))
    assert report["files_left_out"] == len(files - used)
    assert {Path(file).name for file in files - used} >= {"README.md"}

    # Every chain is in one of the two tables, and of chains with one id the first is kept.
    kinds = [line["kind"] for line in rejected if line["id"]]
    assert report["chains"] == len(manifest) >= 5350
    assert report["chains_left_out"] == {kind: kinds.count(kind) for kind in set(kinds)}
    assert set(kinds) == {"duplicate"}

    store = Store(tmp_path)
    full_atom = [path for path in plain if path.parent.name in ("cameo2022", "rcsb")]
    for path in full_atom[::8]:
        for chain in read_chains(path):
            if chain.id in {line["id"] for line in rejected}:
                continue
            found, truth = store[store.manifest.ids.index(chain.id)], features(chain)
            assert np.array_equal(found.positions, truth.positions)
            assert np.array_equal(found.atom_mask, truth.atom_mask)
            assert np.array_equal(found.residue_index, truth.residue_index)
            assert store.sequence(store.manifest.ids.index(chain.id)) == chain.sequence


@pytest.mark.slow
def test_full_atom_chains_take_at_most_sixty_bytes_a_residue_on_disk(
    shared_structures: Path, tmp_path: Path
):
    run(PrepareConfig((shared_structures / "cameo2022",), tmp_path, clusters="none"))
    store = Store(tmp_path)
    size = (tmp_path / "chains.lmdb").stat().st_size
    assert size / store.manifest.length.sum() <= 60
    assert size / store.manifest.resolved.sum() <= 60

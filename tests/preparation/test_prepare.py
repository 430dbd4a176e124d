"""`prepare`: what is in the store that it makes."""

import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import FilterConfig, PrepareConfig
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.writer import StoreWriter
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.write import to_pdb
from tests.preparation.conftest import contents, report_of, rows

FILES = ("manifest.csv", "rejected.csv", "report.json")


def test_every_example_chain_is_in_the_store_as_its_file_has_it(prepare, example: Path):
    store = Store(prepare(example / "train", example / "held_out"))
    files = [*(example / "train").iterdir(), *(example / "held_out").iterdir()]
    assert sorted(store.manifest.ids) == sorted(f.name.split(".")[0] for f in files)
    for file in files:
        truth = features(read_structure(file))
        found = store[store.manifest.ids.index(truth.id)]
        assert np.array_equal(found.positions, truth.positions)
        assert np.array_equal(found.atom_mask, truth.atom_mask)
        assert np.array_equal(found.aatype, truth.aatype)
        assert found.resolution == truth.resolution or np.isnan(truth.resolution)


def test_the_manifest_says_what_the_file_says(prepare, example: Path):
    source = example / "held_out" / "1ubq_A.cif.gz"
    (line,) = rows(prepare(source), "manifest.csv")
    assert line.pop("hash")
    assert line.pop("sequence_hash")
    assert line == {
        "id": "1ubq_A",
        "source": str(source),
        "entity": "1",
        "length": "76",
        "resolved": "76",
        "resolution": "1.8",
        "method": "X-RAY DIFFRACTION",
        "release_date": "1987-04-16",
        "cluster": "1ubq_A",
        "cluster_size": "1",
    }


def test_the_number_of_workers_changes_nothing(prepare, example: Path, tmp_path: Path):
    sources = [example / "train", example / "held_out", example / "full_atom"]
    one = prepare(*sources, output=tmp_path / "one", workers=1)
    three = prepare(*sources, output=tmp_path / "three", workers=3)
    for name in FILES:
        assert (one / name).read_bytes() == (three / name).read_bytes()
    assert contents(one) == contents(three)


def test_tars_folders_and_files_give_the_same_chains(prepare, example: Path, tmp_path: Path):
    files = sorted((example / "train").iterdir())
    for ending in ("tar", "tar.gz"):
        with tarfile.open(tmp_path / f"x.{ending}", "w" if ending == "tar" else "w:gz") as tar:
            for file in files:
                tar.add(file, arcname=f"deep/{file.name}")
    stores = [
        prepare(*sources, output=tmp_path / str(k))
        for k, sources in enumerate(
            [(example / "train",), files, (tmp_path / "x.tar",), (tmp_path / "x.tar.gz",)]
        )
    ]
    expected = contents(stores[0])["chains"]
    assert len(expected) == len(files)
    for store in stores[1:]:
        assert contents(store)["chains"] == expected
    sources = [line["source"] for line in rows(stores[2], "manifest.csv")]
    assert sources[0] == f"{tmp_path}/x.tar/deep/{files[0].name}"


def test_every_file_is_accounted_for(prepare, example: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    good = (example / "held_out" / "1ubq_A.cif.gz").read_bytes()
    (source / "a.cif.gz").write_bytes(good)
    (source / "b.cif.gz").write_bytes(good)
    (source / "cut.cif.gz").write_bytes(good[: len(good) // 2])
    (source / "empty.cif").write_bytes(b"")
    (source / "noise.pdb").write_bytes(bytes(range(256)) * 40)
    (source / "page.cif").write_text("<!DOCTYPE html><html><body>404 Not found</body></html>")
    (source / "notes.md").write_text("hello")
    store = prepare(source)
    found = {Path(line["file"]).name: line for line in rows(store, "rejected.csv")}
    assert {name: line["kind"] for name, line in found.items()} == {
        "b.cif.gz": "duplicate",
        "cut.cif.gz": "unreadable",
        "empty.cif": "unreadable",
        "noise.pdb": "unreadable",
        "page.cif": "unreadable",
        "notes.md": "name",
    }
    assert found["b.cif.gz"]["reason"].endswith("a.cif.gz")
    assert found["b.cif.gz"]["id"] == "1ubq_A"
    assert "gzip" in found["cut.cif.gz"]["reason"]
    assert "empty" in found["empty.cif"]["reason"]
    assert found["page.cif"]["reason"] == "neither mmCIF nor PDB"
    report = report_of(store)
    assert (report["files"], report["files_used"], report["files_left_out"]) == (7, 1, 6)
    assert report["chains"] == 1
    assert report["chains_left_out"] == {"duplicate": 1}
    assert report["files_rejected"] == {"name": 1, "unreadable": 4}


def test_filters_are_counted(prepare, example: Path):
    filters = FilterConfig(max_resolution=2.0, max_date="2010-01-01", max_length=92)
    store = prepare(example / "held_out", example / "full_atom", filters=filters)
    reasons = {line["id"]: line["kind"] for line in rows(store, "rejected.csv")}
    assert reasons == {
        "3u8v_A": "length",
        "4wtw_A": "length",
        "2cbp_A": "length",
        "4i6p_A": "resolution",
        "4zey_A": "date",
    }
    report = report_of(store)
    assert report["chains_left_out"] == {"date": 1, "length": 3, "resolution": 1}
    assert report["chains"] == 29 - 5
    assert report["unknown_date"] == report["unknown_resolution"] - 2 == 20


def test_a_store_without_chains_keeps_its_reasons(example: Path, tmp_path: Path):
    config = PrepareConfig(
        sources=(example / "held_out" / "1ubq_A.cif.gz",),
        output=tmp_path / "out",
        filters=FilterConfig(min_resolved=80),
        clusters="none",
    )
    with pytest.raises(UserError, match="no usable chain in 1 files; 76 resolved residues, fewer"):
        run(config)
    assert rows(tmp_path / "out", "rejected.csv")[0]["kind"] == "resolved"
    with pytest.raises(UserError, match="not a whole one"):
        Store(tmp_path / "out")
    # Nothing is lost by beginning with other settings.
    assert run(replace(config, filters=FilterConfig(min_resolved=76))) == 0
    assert Store(tmp_path / "out").manifest.ids == ["1ubq_A"]


def test_a_store_that_loses_its_last_chain_is_no_store(prepare, example: Path, tmp_path: Path):
    held_out = prepare(example / "train", output=tmp_path / "held_out")
    store = prepare(example / "train")
    with pytest.raises(UserError, match="no usable chain"):
        prepare(example / "train", held_out=held_out)
    assert {line["kind"] for line in rows(store, "rejected.csv")} == {"leak"}
    with pytest.raises(UserError, match="not a whole one"):
        Store(store)
    assert len(Store(prepare(example / "train"))) == 5


def test_a_list_takes_its_chains_and_says_what_is_missing(prepare, example: Path, tmp_path: Path):
    ids = tmp_path / "ids.txt"
    ids.write_text("1UBQ\n3u8v_A\n4zey_B\n9zzz_A\n")
    store = prepare(example / "held_out", ids)
    assert sorted(Store(store).manifest.ids) == ["1ubq_A", "3u8v_A"]
    found = {(r["id"], r["kind"]) for r in rows(store, "rejected.csv") if r["file"] == str(ids)}
    assert found == {("4zey_B", "not found"), ("9zzz_A", "not found")}
    assert ("4zey_A", "not listed") in {
        (line["id"], line["kind"]) for line in rows(store, "rejected.csv")
    }


def predictions(example: Path, folder: Path) -> Path:
    """Two predictions, of which one is sure of itself from residue 20 on and the other is not."""
    folder.mkdir()
    chain = read_structure(example / "held_out" / "1ubq_A.cif.gz")
    for name, low, high in (("sure", 30.0, 95.0), ("unsure", 30.0, 60.0)):
        plddt = np.where(np.arange(len(chain)) < 20, low, high)
        b_factors = (chain.atom_mask * plddt[:, None]).astype(np.float32)
        named = replace(chain, id=name, b_factors=b_factors, release_date=None, resolution=None)
        (folder / f"{name}.pdb").write_text(to_pdb(named))
    return folder


def test_predictions_lose_their_uncertain_residues(prepare, example: Path, tmp_path: Path):
    store = prepare(predictions(example, tmp_path / "af"), predicted=True)
    (line,) = rows(store, "rejected.csv")
    assert line["kind"] == "pLDDT"
    chains = Store(store)
    assert [line["id"] for line in rows(store, "manifest.csv")] == ["sure"]
    assert not chains[0].atom_mask[:20].any()
    assert chains[0].atom_mask[20:, 1].all()
    assert chains.manifest.resolved.tolist() == [56]


def test_the_folders_of_openproteinset_are_sources(prepare, example: Path, tmp_path: Path):
    made = predictions(example, tmp_path / "af")
    root = tmp_path / "uniclust30"
    for name in ("sure", "unsure"):
        for part in ("pdb", "a3m", "hhr"):
            (root / name / part).mkdir(parents=True)
        shutil.copy(made / f"{name}.pdb", root / name / "pdb")
        (root / name / "a3m" / "uniclust30.a3m").write_text(">x\nMK\n")
    store = prepare(root, predicted=True)
    assert Store(store).manifest.ids == ["sure"]
    assert report_of(store)["files_rejected"] == {"name": 2}

    archive = tmp_path / "pdb_mmcif"
    (archive / "mmcif_files").mkdir(parents=True)
    shutil.copy(example / "held_out" / "1ubq_A.cif.gz", archive / "mmcif_files" / "1ubq.cif.gz")
    (archive / "obsolete.dat").write_text("OBSLTE    31-JUL-94 116L     216L\n")
    store = prepare(archive, output=tmp_path / "archive")
    assert Store(store).manifest.ids == ["1ubq_A"]
    assert report_of(store)["files_rejected"] == {"name": 1}


def test_the_same_command_again_reads_nothing_twice(prepare, example: Path, monkeypatch):
    store = prepare(example / "train")
    before = contents(store), [(store / name).read_bytes() for name in FILES]
    monkeypatch.setattr(StoreWriter, "add", None)
    assert prepare(example / "train") == store
    assert before == (contents(store), [(store / name).read_bytes() for name in FILES])


def test_another_command_does_not_write_into_a_store(prepare, example: Path, tmp_path: Path):
    source = tmp_path / "in"
    shutil.copytree(example / "train", source)
    store = prepare(source)
    with pytest.raises(UserError, match=r"started with another setting of filters; choose another"):
        prepare(source, filters=FilterConfig(min_resolved=11))
    with pytest.raises(UserError, match=r"started with another setting of predicted"):
        prepare(source, predicted=True)
    (source / "new.cif").write_text("data_")
    with pytest.raises(UserError, match=r"started with other files than the sources have now"):
        prepare(source)
    assert len(Store(store)) == 5


def test_two_commands_do_not_write_at_the_same_time(prepare, example: Path, tmp_path: Path):
    import fcntl

    (tmp_path / "store").mkdir()
    with (tmp_path / "store" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process writes to this folder"):
            prepare(example / "train")
    prepare(example / "train")


def test_a_file_that_is_no_store_is_not_written_over(prepare, example: Path, tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "chains.lmdb").write_bytes(os.urandom(100_000))
    before = (tmp_path / "store" / "chains.lmdb").read_bytes()
    with pytest.raises(UserError, match=r"chains\.lmdb: cannot be used as the file of a store"):
        prepare(example / "train")
    assert (tmp_path / "store" / "chains.lmdb").read_bytes() == before

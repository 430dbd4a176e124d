"""The manifest, and what `prepare` puts into it."""

import csv
import gzip
from pathlib import Path

import pytest

from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.chains import ChainDataset, CroppedChains
from esmfold_peft.datasets.manifest import manifest_path, manifest_text, read_manifest
from esmfold_peft.errors import UserError
from esmfold_peft.prepare import run


def test_the_manifest_lists_every_example_chain(example: Path, tmp_path: Path):
    run(PrepareConfig(sources=(example / "train", example / "held_out"), output=tmp_path))
    entries = read_manifest(tmp_path / "manifest.csv")
    files = [*(example / "train").iterdir(), *(example / "held_out").iterdir()]
    assert sorted(e.id for e in entries) == sorted(f.name.split(".")[0] for f in files)
    ubiquitin = next(e for e in entries if e.id == "1ubq_A")
    assert (ubiquitin.length, ubiquitin.resolved, ubiquitin.resolution) == (76, 76, 1.8)
    assert ubiquitin.release_date == "1987-04-16"


def test_reading_gives_back_what_was_written(example: Path, tmp_path: Path):
    run(PrepareConfig(sources=(example / "held_out",), output=tmp_path))
    entries = read_manifest(manifest_path(tmp_path))
    assert manifest_text(entries) == (tmp_path / "manifest.csv").read_text()


def test_the_chains_of_a_manifest_are_found_from_any_folder(
    example: Path, tmp_path: Path, monkeypatch
):
    run(PrepareConfig(sources=(example / "held_out",), output=tmp_path / "deep" / "er"))
    monkeypatch.chdir(tmp_path)
    chains = ChainDataset(Path("deep") / "er")
    assert len(chains[0]) == chains.entries[0].length


def test_everything_left_out_has_a_reason(example: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    good = (example / "held_out" / "1ubq_A.cif.gz").read_bytes()
    (source / "a.cif.gz").write_bytes(good)
    (source / "b.cif.gz").write_bytes(good)
    (source / "cut.cif.gz").write_bytes(good[: len(good) // 2])
    (source / "empty.cif").write_bytes(b"")
    (source / "noise.pdb").write_bytes(bytes(range(256)) * 40)
    run(PrepareConfig(sources=(source,), output=tmp_path / "out"))
    assert len(read_manifest(tmp_path / "out" / "manifest.csv")) == 1
    with (tmp_path / "out" / "rejected.csv").open() as file:
        rejected = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert rejected.keys() == {"b.cif.gz", "cut.cif.gz", "empty.cif", "noise.pdb"}
    assert "a.cif.gz" in rejected["b.cif.gz"]
    assert "gzip" in rejected["cut.cif.gz"]
    assert "empty" in rejected["empty.cif"]


def test_a_chain_too_short_to_train_on_is_left_out(example: Path, tmp_path: Path):
    source = (example / "held_out" / "1ubq_A.cif.gz",)
    with pytest.raises(UserError, match="76 resolved residues, fewer than 80"):
        run(PrepareConfig(sources=source, output=tmp_path / "out", min_resolved=80))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("id,file\n1,2\n", ":1: "),
        ("id,file,chain,length,resolved,resolution,release_date\na,b,A,many,3,,\n", ":2: "),
        ("id,file,chain,length,resolved,resolution,release_date\n", "no chain"),
        (
            "id,file,chain,length,resolved,resolution,release_date\na,b,A,3,3,,\na,c,A,3,3,,\n",
            ":3: a is listed twice",
        ),
    ],
)
def test_a_broken_manifest_names_the_line(content: str, place: str, tmp_path: Path):
    path = tmp_path / "manifest.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=place):
        read_manifest(path)


def test_a_missing_structure_is_found_before_anything_starts(example: Path, tmp_path: Path):
    copy = tmp_path / "1ubq_A.cif.gz"
    copy.write_bytes((example / "held_out" / "1ubq_A.cif.gz").read_bytes())
    run(PrepareConfig(sources=(copy,), output=tmp_path / "out"))
    assert len(ChainDataset(tmp_path / "out")) == 1
    copy.unlink()
    with pytest.raises(UserError, match=r"manifest\.csv: the file of 1ubq_A, .* is missing"):
        ChainDataset(tmp_path / "out")


def test_binary_is_no_manifest(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(gzip.compress(b"id"))
    with pytest.raises(UserError, match="manifest"):
        read_manifest(path)


def test_a_sample_depends_on_its_number_alone(example: Path, tmp_path: Path):
    run(PrepareConfig(sources=(example / "held_out",), output=tmp_path))

    def samples() -> CroppedChains:
        return CroppedChains(ChainDataset(tmp_path), crop=20, clamp_probability=0.5, seed=1)

    first, second = samples(), samples()
    forward = [first[0, number] for number in range(20)]
    backward = [second[0, number] for number in reversed(range(20))][::-1]
    starts = [chain.residue_index[0] for chain, _ in forward]
    assert starts == [chain.residue_index[0] for chain, _ in backward]
    assert [clamped for _, clamped in forward] == [clamped for _, clamped in backward]
    assert len(set(starts)) > 5
    assert {clamped for _, clamped in forward} == {True, False}

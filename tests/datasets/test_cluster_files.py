"""Given cluster files: their three formats, and which chain they put where."""

import gzip
from pathlib import Path

import pytest

from esmfold_peft.datasets.cluster_files import ClusterFile, chain_key, read_clusters
from esmfold_peft.errors import UserError

RCSB = "4HHB_1 2DHB_1 1a3n_1\nAF_AFP69905F1_1 MA_MABAKCEPC0001_1\n4HHB_2\n"
OPENFOLD = "1abc_A 2xyz_B\n1abc_a 3def_AA\n\n1abc_1\n"
MMSEQS = "1abc_A\t1abc_A\n1abc_A\t2xyz_B\n3def_AA\t3def_AA\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "clusters.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes) -> ClusterFile:
    return read_clusters(write(folder, content))


def clusters_of(chains: list[tuple[str, str | None]], file: ClusterFile) -> dict[str, str | None]:
    return {chain: file.cluster_of(chain, entity) for chain, entity in chains}


def test_rcsb_lists_entities(tmp_path: Path):
    file = read(tmp_path, RCSB)
    assert file.by_entity
    chains = [("4hhb_A", "1"), ("4hhb_C", "1"), ("4hhb_B", "2"), ("2dhb_A", "1"), ("1A3N_A", "1")]
    assert list(clusters_of(chains, file).values()) == [
        "4HHB_1",
        "4HHB_1",
        "4HHB_2",
        *["4HHB_1"] * 2,
    ]


def test_openfold_lists_chains_and_their_case_matters(tmp_path: Path):
    file = read(tmp_path, OPENFOLD)
    assert not file.by_entity
    chains = [("2XYZ_B", "1"), ("1abc_a", None), ("3def_AA", None), ("3def_aa", None)]
    expected = {"2XYZ_B": "1abc_A", "1abc_a": "1abc_a", "3def_AA": "1abc_a", "3def_aa": None}
    assert clusters_of(chains, file) == expected


def test_mmseqs_lists_pairs(tmp_path: Path):
    file = read(tmp_path, MMSEQS)
    assert file.clusters == {"1abc_A": "1abc_A", "2xyz_B": "1abc_A", "3def_AA": "3def_AA"}


@pytest.mark.parametrize("content", [RCSB, OPENFOLD, MMSEQS])
def test_compression_and_line_ends_do_not_matter(content: str, tmp_path: Path):
    plain = read(tmp_path, content)
    assert read(tmp_path, gzip.compress(content.encode(), mtime=0)) == plain
    assert read(tmp_path, content.replace("\n", "\r\n")) == plain
    assert read(tmp_path, content.strip()) == plain


@pytest.mark.parametrize("chain", ["AF-P69905-F1", "AF-P69905-F1-model_v4", "af-p69905-f1_A"])
def test_rcsb_spells_computed_models_in_its_own_way(chain: str, tmp_path: Path):
    file = read(tmp_path, RCSB)
    chains = [(chain, "1"), ("ma-bak-cepc-0001_A", "1")]
    assert list(clusters_of(chains, file).values()) == ["AF_AFP69905F1_1"] * 2


def test_a_chain_of_unknown_entity_is_in_no_cluster_of_entities(tmp_path: Path):
    chains = [("4hhb_1", None), ("9zzz_A", "1")]
    found = clusters_of(chains, read(tmp_path, RCSB))
    assert found == {"4hhb_1": None, "9zzz_A": None}


def test_a_prediction_is_named_by_its_file_alone(tmp_path: Path):
    file = read(tmp_path, "A0A023B4W7 1abc_A\nQ9XYZ1\n")
    assert clusters_of([("A0A023B4W7", "1"), ("Q9XYZ1", None)], file) == {
        "A0A023B4W7": "A0A023B4W7",
        "Q9XYZ1": "Q9XYZ1",
    }


def test_one_chain_that_is_no_number_makes_a_file_of_chains(tmp_path: Path):
    assert not read(tmp_path, RCSB + "1abc_A\n").by_entity
    assert chain_key("1ABC_A") == chain_key("1abc_A") != chain_key("1abc_a")


def test_a_member_may_be_repeated_in_its_own_cluster(tmp_path: Path):
    assert read(tmp_path, "1abc_A 2xyz_B 1abc_A\n").clusters == {
        "1abc_A": "1abc_A",
        "2xyz_B": "1abc_A",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("1abc_A 2xyz_B\n3def_A 2XYZ_B\n", ":2: 2XYZ_B is in two clusters"),
        ("1abc_A 2xyz_B\n\n1abc_A 3def_A\n", ":3: 1abc_A is in two clusters"),
        ("1abc_A\t2xyz_B\n3def_A\t2xyz_B\n", ":2: 2xyz_B is in two clusters"),
        ("1abc_A\t1abc_A\n2xyz_B\n", ":2: 1 columns, not representative and member"),
        ("1abc_A 2xyz_B\n<!DOCTYPE html>\n", ":2: not a cluster file ('<!DOCTYPE' is no chain"),
        (">1abc_A\nMKT\n", ":1: not a cluster file ('>1abc_A' is no chain"),
        ("id,file\n1abc_A,x\n", ":1: not a cluster file ('id,file' is no chain"),
        (b"1abc_A\n\x89PNG\r\n", ":2: not a cluster file (byte 0x89)"),
        (b"1abc_A\n2xyz\0_A\n", r":2: not a cluster file ('2xyz\x00_A' is no chain"),
        (gzip.compress(b"1abc_A\n", mtime=0)[:-4], "damaged gzip file"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_value(
    content: str | bytes, message: str, tmp_path: Path
):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_clusters(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        read_clusters(tmp_path / "none.txt")

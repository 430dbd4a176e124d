"""Clusters, OpenFold's files, and what they say in the manifest."""

import json
from pathlib import Path
from typing import Any

import pytest

from esmfold_peft.config import FilterConfig, PrepareConfig
from esmfold_peft.errors import UserError
from esmfold_peft.preparation import clustering
from esmfold_peft.preparation.finishing import require_inputs
from esmfold_peft.preparation.writer import StoreWriter
from tests.preparation.conftest import contents, report_of, rows


def clusters(store: Path) -> dict[str, tuple[str, int]]:
    return {
        line["id"]: (line["cluster"], int(line["cluster_size"]))
        for line in rows(store, "manifest.csv")
    }


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


CHAINS = ("1hf9_A", "2pw8_C", "3k2t_A", "3nir_A", "5k2l_A")


def test_clusters_of_chains_are_read_from_a_file(prepare, example: Path, tmp_path: Path):
    file = write(tmp_path / "c.txt", "9zzz_A 3K2T_A 3nir_A 5k2l_A\n2pw8_C\n")
    store = prepare(example / "train", clusters=str(file))
    assert clusters(store) == {
        "1hf9_A": ("1hf9_A", 1),
        "2pw8_C": ("2pw8_C", 1),
        "3k2t_A": ("9zzz_A", 3),
        "3nir_A": ("9zzz_A", 3),
        "5k2l_A": ("9zzz_A", 3),
    }
    assert report_of(store)["clusters"] == 3
    assert report_of(store)["clusters_from"] == f"{file}, which has 4 of the chains"


def test_clusters_of_entities_are_read_from_a_file(prepare, example: Path, tmp_path: Path):
    file = write(tmp_path / "c.txt", "1UBQ_1 4ZEY_1 1ABC_2\n3U8V_2 1ABC_1\n")
    chains = [example / "held_out" / f"{name}.cif.gz" for name in ("1ubq_A", "3u8v_A", "4zey_A")]
    store = prepare(*chains, clusters=str(file))
    assert clusters(store) == {
        "1ubq_A": ("1UBQ_1", 2),
        "3u8v_A": ("3u8v_A", 1),  # entity 1, of which the file knows nothing
        "4zey_A": ("1UBQ_1", 2),
    }


def test_other_clusters_read_no_structure_again(
    prepare, example: Path, tmp_path: Path, monkeypatch
):
    store = prepare(example / "train")
    before = contents(store)
    monkeypatch.setattr(StoreWriter, "add", None)
    file = write(tmp_path / "c.txt", " ".join(CHAINS) + "\n")
    prepare(example / "train", clusters=str(file))
    assert set(clusters(store).values()) == {("1hf9_A", 5)}
    assert contents(store) == before


def test_duplicates_share_a_cluster(prepare, example: Path, tmp_path: Path):
    file = write(tmp_path / "c.txt", "9zzz_A 3nir_A\n8yyy_A\n")
    duplicates = write(tmp_path / "d.txt", "1hf9_A 9zzz_A\n8yyy_A 2pw8_C 5k2l_A\n")
    store = prepare(example / "train", clusters=str(file), duplicates=duplicates)
    found = {name: cluster for name, (cluster, _) in clusters(store).items()}
    assert found["1hf9_A"] == found["3nir_A"] == "9zzz_A"
    assert found["2pw8_C"] == found["5k2l_A"] == "8yyy_A"
    assert found["3k2t_A"] == "3k2t_A"


def test_a_file_about_other_chains_is_refused(prepare, example: Path, tmp_path: Path):
    file = write(tmp_path / "c.txt", "9zzz_A 9zzz_B\n")
    with pytest.raises(UserError, match=r"clusters: .*c\.txt has none of the store's 5 chains"):
        prepare(example / "train", clusters=str(file))
    with pytest.raises(UserError, match=r"clusters: .*nothing\.txt: no such file"):
        prepare(example / "train", clusters=str(tmp_path / "nothing.txt"))
    nothing_left = FilterConfig(min_length=10_000)
    with pytest.raises(UserError, match="no usable chain in 5 files"):
        prepare(example / "train", clusters=str(file), filters=nothing_left, output=tmp_path / "b")


def test_without_mmseqs_the_report_advises(prepare, example: Path, monkeypatch, capsys):
    monkeypatch.setattr(clustering, "mmseqs_program", lambda: None)
    store = prepare(example / "train", clusters="auto")
    assert {size for _, size in clusters(store).values()} == {1}
    said = capsys.readouterr().err
    assert "Debian package mmseqs2" in said
    assert "--clusters" in said
    with pytest.raises(UserError, match="clusters: mmseqs is not installed"):
        prepare(example / "train", clusters="mmseqs")


def test_mmseqs_clusters_the_store_s_sequences(prepare, example: Path, monkeypatch):
    asked = {}

    def cluster(sequences, *, threads):
        asked.update(sequences)
        return dict.fromkeys(sequences, "1hf9_A")

    monkeypatch.setattr(clustering, "mmseqs_program", lambda: "mmseqs")
    monkeypatch.setattr(clustering, "cluster", cluster)
    store = prepare(example / "train", clusters="auto")
    assert set(clusters(store).values()) == {("1hf9_A", 5)}
    assert asked.keys() == set(CHAINS)
    assert asked["3nir_A"] == "TTCCPSIVARSNFNVCRLPGTPEALCATYTGCIIIPGATCPGDYAN"


def test_a_cache_of_openfold_fills_in_what_files_do_not_state(
    prepare, example: Path, tmp_path: Path
):
    def chain(**values) -> dict:
        return {"seq": "A", "release_date": None, "resolution": None, "cluster_size": -1} | values

    cache = {
        "3nir_A": chain(release_date="2010-04-01", resolution=0.48, cluster_size=7),
        "5k2l_A": chain(cluster_size=2),
        "3k2t_A": chain(release_date="2019-01-01"),
        "2pw8_C": chain(resolution=9.5),
        "1hf9_A": chain(release_date="1990-01-01", resolution=0.0),
    }
    path = write(tmp_path / "cache.json", json.dumps(cache))
    filters = FilterConfig(max_date="2018-12-31")
    file = write(tmp_path / "c.txt", "9zzz_A 1hf9_A 3nir_A 5k2l_A 3k2t_A\n")
    store = prepare(example / "train", chain_data_cache=path, filters=filters, clusters=str(file))
    found = {line["id"]: line for line in rows(store, "manifest.csv")}
    assert found.keys() == {"1hf9_A", "3nir_A", "5k2l_A"}
    assert found["3nir_A"]["release_date"] == "2010-04-01"
    assert found["3nir_A"]["resolution"] == "0.48"
    # The cache's number where it is larger than that of the chains that are kept.
    assert found["3nir_A"]["cluster_size"] == "7"
    assert found["5k2l_A"]["cluster_size"] == found["1hf9_A"]["cluster_size"] == "3"
    assert found["1hf9_A"]["release_date"] == "2001-05-31"  # what the file says
    assert found["1hf9_A"]["resolution"] == ""
    left_out = {line["id"]: line["kind"] for line in rows(store, "rejected.csv")}
    assert left_out == {"3k2t_A": "date", "2pw8_C": "resolution"}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("clusters", "none.txt", "clusters: none.txt: no such file"),
        ("clusters", "mmseqs", "clusters: mmseqs is not installed"),
        ("chain_data_cache", Path("none.json"), "chain_data_cache: none.json: no such file"),
        ("held_out", Path("nowhere"), "nowhere: no such store"),
        ("held_out", Path("store"), "held_out: store is the output; choose another"),
    ],
)
def test_what_is_missing_is_found_before_anything_is_read(
    setting: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clustering, "mmseqs_program", lambda: None)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.csv").touch()
    config = PrepareConfig((tmp_path,), tmp_path / "store", **{setting: value})
    with pytest.raises(UserError, match=message):
        require_inputs(config)
    require_inputs(PrepareConfig((tmp_path,), tmp_path / "store"))


def test_duplicates_need_a_file_of_clusters(example: Path, tmp_path: Path):
    with pytest.raises(UserError, match="duplicates: needs a file of clusters"):
        PrepareConfig((example / "train",), tmp_path / "x", duplicates=tmp_path / "d.txt")

"""OpenFold's cache of chains and its list of identical chains."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from esmfold_peft.datasets.cluster_files import ClusterFile
from esmfold_peft.datasets.openfold_files import (
    CachedChain,
    extend_to_duplicates,
    read_chain_data_cache,
    read_duplicates,
)
from esmfold_peft.errors import UserError

CHAIN = {"release_date": "2010-06-30", "seq": "MFAFX", "resolution": 2.7, "cluster_size": 6}


def write_cache(folder: Path, **changes: Any) -> Path:
    path = folder / "chain_data_cache.json"
    path.write_text(json.dumps({"3lrm_A": CHAIN, "1abc_B": CHAIN | changes}, indent=4))
    return path


def test_the_cache_says_what_openfold_knows(tmp_path: Path):
    chains = read_chain_data_cache(write_cache(tmp_path, seq="MK", resolution=3, cluster_size=1))
    assert chains == {
        "3lrm_A": CachedChain(date(2010, 6, 30), 2.7, 6),
        "1abc_B": CachedChain(date(2010, 6, 30), 3.0, 1),
    }


@pytest.mark.parametrize("resolution", [0, 0.0, None])
@pytest.mark.parametrize("cluster_size", [-1, 0, None])
def test_unknown_is_none_however_it_is_spelled(
    resolution: float | None, cluster_size: int | None, tmp_path: Path
):
    path = write_cache(tmp_path, resolution=resolution, cluster_size=cluster_size)
    chain = read_chain_data_cache(path)["1abc_B"]
    assert chain.resolution is None
    assert chain.cluster_size is None


def test_a_prediction_has_a_sequence_alone(tmp_path: Path):
    path = tmp_path / "cache.json"
    path.write_text('{"A0A023B4W7": {"seq": "MKT"}}')
    assert read_chain_data_cache(path) == {"A0A023B4W7": CachedChain(None, None, None)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seq", None),
        ("seq", ""),
        ("seq", "MK T"),
        ("seq", ["MKT"]),
        ("release_date", "30-JUN-10"),
        ("release_date", 2010),
        ("resolution", "2.7"),
        ("resolution", -1.0),
        ("resolution", True),
        ("resolution", float("nan")),
        ("cluster_size", 2.5),
        ("cluster_size", "6"),
        ("cluster_size", True),
        ("cluster_size", -2),
    ],
)
def test_a_wrong_value_is_named_with_chain_and_key(key: str, value: Any, tmp_path: Path):
    path = write_cache(tmp_path, **{key: value})
    with pytest.raises(UserError, match=r"cache\.json: 1abc_B: " + key + " ") as error:
        read_chain_data_cache(path)
    assert f"{key} {value!r} is not" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "lists no chain"),
        ("[1, 2]", "not a JSON object"),
        ('{"1abc_A": 3}', "1abc_A: 3 is not an object"),
        ('{"1abc_A": {"seqs": ["MKT"], "chain_ids": ["A"]}}', "1abc_A: seq None is not"),
        ("1abc_A 2xyz_B", "not JSON"),
    ],
)
def test_another_file_is_no_cache(content: str, message: str, tmp_path: Path):
    path = tmp_path / "cache.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_chain_data_cache(path)


def test_duplicates_are_lines_of_chains(tmp_path: Path):
    path = tmp_path / "duplicate_pdb_chains.txt"
    path.write_text("6kwc_A\n3lrm_A 3lrm_B  3lrm_C\n\n1abc_A\t2xyz_B\r\n")
    expected = [("6kwc_A",), ("3lrm_A", "3lrm_B", "3lrm_C"), ("1abc_A", "2xyz_B")]
    assert read_duplicates(path) == expected
    path.write_bytes(b"6kwc_A\n\xff\xfe_A\n")
    with pytest.raises(UserError, match=r"chains\.txt:2: '.*' is not the name of a chain"):
        read_duplicates(path)


def test_a_chain_without_a_cluster_gets_that_of_its_first_duplicate():
    file = ClusterFile(by_entity=False, clusters={"3lrm_B": "first", "3lrm_C": "second"})
    clusters = {"3lrm_A": None, "3lrm_B": "first", "3lrm_C": "second", "1abc_A": None}
    groups = [("3lrm_A", "3lrm_C", "3lrm_B"), ("1abc_A", "2xyz_B")]
    extended = extend_to_duplicates(clusters, groups, file)
    assert extended == {**clusters, "3lrm_A": "second"}
    assert list(extended) == list(clusters)
    assert clusters["3lrm_A"] is None


def test_the_duplicate_with_a_cluster_need_not_be_in_the_store():
    file = ClusterFile(by_entity=False, clusters={"9zzz_A": "far"})
    assert extend_to_duplicates({"1ABC_A": None}, [("9zzz_A", "1abc_A")], file) == {"1ABC_A": "far"}


def test_a_second_line_does_not_take_back_what_the_first_gave():
    file = ClusterFile(by_entity=False, clusters={"9zzz_A": "far", "8yyy_A": "other"})
    for second in ("7xxx_A", "8yyy_A"):
        groups = [("9zzz_A", "1abc_A"), (second, "1abc_A")]
        assert extend_to_duplicates({"1abc_A": None}, groups, file) == {"1abc_A": "far"}


def test_a_chain_called_1_is_not_entity_1():
    file = ClusterFile(by_entity=True, clusters={"9zzz_1": "far"})
    assert extend_to_duplicates({"1abc_A": None}, [("9zzz_1", "1abc_A")], file) == {"1abc_A": None}

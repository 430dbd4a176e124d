"""Clusters and homologues by mmseqs: with the program where it is, with a false one everywhere."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from esmfold_peft.datasets.mmseqs import Hit, cluster, mmseqs_program, similar
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_chains

needs_mmseqs = pytest.mark.skipif(
    mmseqs_program() is None, reason="needs mmseqs (Debian package mmseqs2)"
)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NATURAL = (8, 1, 5, 7, 4, 7, 2, 6, 6, 10, 2, 4, 5, 4, 5, 7, 5, 7, 1, 3)  # percent, as in Swiss-Prot
PARENTS = 40
ODD = {
    "sp|P1|a blank": "MKT",
    ">copy of it\t": "MKT",
    "": "M",
    "all X": "X" * 60,
    "low complexity": "A" * 60,
    "it looks like DNA": "ACGTACGTACGTAGGGTACCACAGTACATTAGACCA",
}


def parent(number: int) -> str:
    return "".join(random.Random(number).choices(LETTERS, NATURAL, k=120))


def mutant(sequence: str, identity: float, seed: int) -> str:
    """Other letters at random places, so that a known fraction is left."""
    rng = random.Random(seed)
    letters = list(sequence)
    for place in rng.sample(range(len(letters)), round((1 - identity) * len(letters))):
        letters[place] = rng.choice([letter for letter in LETTERS if letter != letters[place]])
    return "".join(letters)


@pytest.fixture(scope="module")
def synthetic() -> dict[str, str]:
    parents = {f"parent {i}": parent(i) for i in range(PARENTS)}
    near = {f"60 % {i}": mutant(parent(i), 0.6, i) for i in range(PARENTS)}
    far = {f"20 % {i}": mutant(parent(i), 0.2, i) for i in range(PARENTS)}
    return {**parents, **near, **far, **ODD}


@pytest.fixture(scope="module")
def clusters(synthetic: dict[str, str]) -> dict[str, str]:
    return cluster(synthetic, threads=1)


@needs_mmseqs
def test_a_mutant_is_with_its_parent_at_60_percent_and_alone_at_20(clusters: dict[str, str]):
    near = [clusters[f"60 % {i}"] == f"parent {i}" for i in range(PARENTS)]
    # The ends of an alignment may be cut off, and with them the coverage of 90 %.
    assert sum(near) >= 0.95 * PARENTS
    assert all(clusters[f"parent {i}"] == f"parent {i}" for i in range(PARENTS))
    assert all(clusters[f"20 % {i}"] == f"20 % {i}" for i in range(PARENTS))


@needs_mmseqs
def test_nothing_is_lost(clusters: dict[str, str], synthetic: dict[str, str]):
    assert list(clusters) == list(synthetic)
    alone = {name: name for name in ODD} | {">copy of it\t": "sp|P1|a blank"}
    assert {name: clusters[name] for name in ODD} == alone


@needs_mmseqs
def test_order_and_threads_change_the_names_of_clusters_only(
    clusters: dict[str, str], synthetic: dict[str, str], shared_structures: Path
):
    # The real chains ride along, because an empty run of mmseqs costs five seconds.
    paths = [shared_structures / "rcsb" / f"{code}.cif.gz" for code in ("1igy", "1ncb", "4i6p")]
    real = {chain.id: chain.sequence for path in paths for chain in read_chains(path)}
    again = cluster({**dict(reversed(synthetic.items())), **real}, threads=2)
    assert members({name: again[name] for name in synthetic}) == members(clusters)
    assert again["parent 0"] == again["60 % 0"] == "60 % 0"
    # The light chains of two antibodies; the heavy ones differ in length. Two equal chains.
    assert again["1igy_A"] == again["1igy_C"] == again["1ncb_L"] == "1igy_A"
    assert again["1igy_B"] == again["1igy_D"] != again["1ncb_H"]
    assert again["4i6p_A"] == again["4i6p_B"]


def members(clusters: dict[str, str]) -> set[frozenset[str]]:
    return {
        frozenset(name for name in clusters if clusters[name] == representative)
        for representative in set(clusters.values())
    }


@needs_mmseqs
def test_every_homologue_of_a_query_is_found(synthetic: dict[str, str]):
    many = {f"70 % {i}": mutant(parent(0), 0.7, i) for i in range(500)}  # the default lists 300
    queries = {"query": parent(0), "unrelated": parent(PARENTS), **ODD}
    hits = similar(queries, {**synthetic, **many}, threads=1)
    assert Counter(hit.query for hit in hits)["query"] >= 500
    found = {hit.target: hit.identity for hit in hits if hit.query == "query"}
    assert found.keys() >= many.keys()
    assert found["parent 0"] == 1
    assert found["60 % 0"] == pytest.approx(0.6, abs=0.03)
    assert "20 % 0" not in found
    assert hits[0] == Hit("query", "parent 0", 1.0)
    assert hits[1].identity > 0.6
    copies = [("sp|P1|a blank", ">copy of it\t"), (">copy of it\t", "sp|P1|a blank")]
    same = [(name, name) for name in ODD] + copies
    odd = [hit for hit in hits if hit.query in ODD]
    assert sorted((hit.query, hit.target) for hit in odd) == sorted(same)
    assert {hit.identity for hit in odd} == {1.0}
    assert "unrelated" not in {hit.query for hit in hits}


FalseProgram = Callable[[str], None]


@pytest.fixture
def false_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FalseProgram:
    """Puts an `mmseqs` of the given shell commands on PATH, with temporary files in tmp/."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def install(commands: str) -> None:
        program = tmp_path / "bin" / "mmseqs"
        program.write_text(commands)
        program.chmod(0o755)

    return install


SEQUENCES = {"first": "MKV", "second": "AAA", "third": "CCC"}  # sorted: second, third, first


@pytest.mark.parametrize("table", [r"2\t2\n2\t0\n1\t1\n", r"1\t1\n0\t0\n0\t2\n", r"0\t2\n"])
def test_representatives_order_and_missing_lines_do_not_matter(
    table: str, false_program: FalseProgram, tmp_path: Path
):
    false_program(f"#!/bin/sh\nprintf '{table}' > $3_cluster.tsv\ncp $2 {tmp_path}/given.fasta\n")
    expected = {"first": "first", "second": "first", "third": "third"}
    assert cluster(SEQUENCES, threads=1) == expected
    assert (tmp_path / "given.fasta").read_text().startswith(">0\nAAA\n>1\nCCC\n>2\nMKV\n>")
    assert not list((tmp_path / "tmp").iterdir())


def test_hits_are_sorted_by_query_and_identity(false_program: FalseProgram):
    false_program(r"""#!/bin/sh
printf '0\t2\t0.41\nfiller\tfiller\t1.0\n0\t1\t0.9\n2\t1\t0.5\n' > $4
""")
    assert similar(SEQUENCES, SEQUENCES | {"copy": "CCC"}, threads=1) == [
        Hit("first", "first", 1.0),
        Hit("first", "third", 0.5),
        Hit("first", "copy", 0.5),
        Hit("second", "second", 1.0),
        Hit("second", "third", 0.9),
        Hit("second", "copy", 0.9),
        Hit("second", "first", 0.41),
        Hit("third", "third", 1.0),
        Hit("third", "copy", 1.0),
    ]


def test_no_hit_is_no_error(false_program: FalseProgram):
    false_program("#!/bin/sh\n: > $4\n")
    assert similar({"a": "MKV"}, {"b": "MKL"}, threads=1) == []


def clustered(sequences: dict[str, str]) -> object:
    return cluster(sequences, threads=1)


def searched(sequences: dict[str, str]) -> object:
    return similar(sequences, sequences, threads=1)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ("echo begin; echo disk is full >&2; exit 3", r"mmseqs easy-\w+: disk is full \(exit 3\)"),
        ("echo the cause; echo Error: Search died; exit 1", r"the cause \(exit 1\)"),
        ("echo Error: Search died; exit 1", r"Error: Search died \(exit 1\)"),
        ("kill -9 $$", r"no message \(exit -9\)"),
        ("printf '\\377\\n'; exit 1", r"\(exit 1\)"),
        ("exit 0", r"mmseqs: did not write out\w*\.tsv"),
        ("printf 'a\\n' | tee $3_cluster.tsv > $4", r"mmseqs: out\w*\.tsv does not have . columns"),
    ],
)
@pytest.mark.parametrize("run", [clustered, searched])
def test_a_failure_says_why_and_leaves_nothing_behind(
    commands: str,
    message: str,
    run: Callable[[dict[str, str]], object],
    false_program: FalseProgram,
    tmp_path: Path,
):
    false_program(f"#!/bin/sh\n{commands}\n")
    with pytest.raises(UserError, match=message) as error:
        run(SEQUENCES)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_program_for_another_machine_is_refused(false_program: FalseProgram):
    false_program("\x7fELF, but not for this machine")
    with pytest.raises(UserError, match=r"bin/mmseqs: cannot be run"):
        cluster(SEQUENCES, threads=1)


def test_without_mmseqs_the_message_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert mmseqs_program() is None
    with pytest.raises(UserError, match=r"mmseqs: not found .*Debian package mmseqs2"):
        similar(SEQUENCES, SEQUENCES, threads=1)


def test_nothing_needs_no_program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert cluster({}, threads=1) == {}
    assert similar({}, SEQUENCES, threads=1) == []
    assert similar(SEQUENCES, {}, threads=1) == []

"""The command on files: names, tables, tars, what it refuses and what it reports."""

import csv
import gzip
import tarfile
from dataclasses import replace
from pathlib import Path

import gemmi
import pyarrow.parquet as pq
import pytest

from esmfold_peft.evaluation.scoring import METRICS
from esmfold_peft.protein.write import to_mmcif
from tests.alike import assert_alike
from tests.evaluation.predictions import (
    EXAMPLE,
    evaluate,
    prediction,
    reference,
    rows,
    summary,
    write,
)

NAMES = ("1oai_A", "1ubq_A", "3byb_B", "4i6p_A")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of four chains, the fourth without SEQRES, and of one that is no reference."""
    folder = tmp_path_factory.mktemp("work")
    for k, name in enumerate(NAMES):
        made = prediction(reference(name), 0.3 * (k + 1), seed=k, plddt=85 - 10 * k)
        write(folder / "p" / f"{name}.pdb", made, atoms_only=k == 3)
        (folder / "r").mkdir(exist_ok=True)
        (folder / "r" / f"{name}.cif.gz").symlink_to(reference(name))
    write(folder / "p" / "unused.pdb", prediction(reference("5z2s_A")))
    assert evaluate(
        "--predictions", folder / "p", "--references", folder / "r", "--output", folder / "out",
        "--per-residue",
    ) == 0  # fmt: skip
    return folder


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Runs a command that must end with exit code 2 and one line."""
    capsys.readouterr()
    assert evaluate(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_every_reference_has_a_row_and_the_summary_is_of_these(work: Path):
    found, said = rows(work / "out"), summary(work / "out")
    assert tuple(found) == NAMES
    assert {row["status"] for row in found.values()} == {"ok"}
    for name in METRICS:
        mean = sum(float(row[name]) for row in found.values()) / len(found)
        assert said[name] == pytest.approx(mean), name
    assert [float(found[n]["lddt_ca"]) for n in NAMES] == sorted(
        (float(row["lddt_ca"]) for row in found.values()), reverse=True
    )
    assert [row["match"] for row in found.values()] == ["sequence"] * 4
    assert (said["chains"], said["skipped"]) == (4, 0)
    assert said["unused_predictions"] == [str(work / "p" / "unused.pdb")]
    assert said["settings"]["match"] == "auto"
    plots = {path.name for path in (work / "out" / "plots").iterdir()}
    assert plots == {"distribution.png", "length.png", "calibration.png"}
    assert all((work / "out" / "plots" / p).read_bytes()[1:4] == b"PNG" for p in plots)


@pytest.mark.parametrize("name", ["scores", "residues"])
def test_parquet_is_the_csv(work: Path, name: str):
    table = pq.read_table(work / "out" / f"{name}.parquet")
    with (work / "out" / f"{name}.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert table.column_names == lines[0]
    cells = [["" if v is None else str(v) for v in row.values()] for row in table.to_pylist()]
    assert cells == lines[1:]
    kinds = {str(field.type) for field in table.schema}
    assert kinds == {"string", "int64", "double"} | ({"bool"} if name == "residues" else set())


def test_residues_average_to_the_scores_of_the_chains(work: Path):
    table = pq.read_table(work / "out" / "residues.parquet").to_pylist()
    for name, row in rows(work / "out").items():
        own = [r for r in table if r["id"] == name]
        assert [r["position"] for r in own] == list(range(1, int(row["length"]) + 1))
        assert sum(r["resolved"] for r in own) == int(row["resolved"])
        scores = [r["lddt_ca"] for r in own if r["lddt_ca"] is not None]
        mean = float(row["lddt_ca_residue_mean"])
        assert sum(scores) / len(scores) == pytest.approx(mean)


@pytest.mark.slow
def test_processes_order_and_packing_change_nothing(work: Path, tmp_path: Path):
    """A process of its own, a compressed tar of gzip files, both sides in another order."""
    packed = tmp_path / "p.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for name in reversed(NAMES):
            file = tmp_path / f"{name}.pdb.gz"
            file.write_bytes(gzip.compress((work / "p" / f"{name}.pdb").read_bytes()))
            tar.add(file, f"deep/{file.name}")
    assert evaluate(
        "--predictions", packed, "--references", *sorted((work / "r").iterdir(), reverse=True),
        "--output", tmp_path / "out", "--workers", 1, "--no_plots",
    ) == 0  # fmt: skip
    ours, theirs = rows(work / "out"), rows(tmp_path / "out")
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        assert theirs[name]["prediction"] == f"{packed}/deep/{name}.pdb.gz"
        assert_alike({**theirs[name], "prediction": row["prediction"]}, row)
    one, other = summary(work / "out"), summary(tmp_path / "out")
    assert_alike(one["metrics"], other["metrics"])
    assert_alike(one["calibration"], other["calibration"])


def test_a_second_run_leaves_nothing_of_the_first(work: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ("--predictions", work / "p", "--references", reference("1ubq_A"), "--output", out)
    assert evaluate(*words, "--per_residue") == 0
    (out / "mine.txt").write_text("kept")
    assert evaluate(*words, "--no_plots") == 0
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert left == ["mine.txt", "scores.csv", "scores.parquet", "summary.json"]


def test_what_has_no_score_is_a_row_with_a_reason_and_exit_code_1(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "p"
    write(folder / "1ubq_A.pdb", prediction(reference("1ubq_A")))
    write(folder / "1oai_A.pdb", prediction(reference("3byb_B")))
    (folder / "3byb_B.pdb").touch()
    (folder / "notes.txt").write_text("no structure")
    words = ("--predictions", folder, "--references", work / "r", "--output", tmp_path / "out")
    assert evaluate(*words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("3 of 4 chains have no scores")
    assert any(line.startswith("1oai_A: not the reference's sequence") for line in lines)
    assert any(line.startswith("prediction      1 ") for line in lines)
    found = rows(tmp_path / "out")
    assert found["1ubq_A"]["status"] == "ok"
    assert found["3byb_B"]["status"] == "prediction: the file is empty"
    assert found["4i6p_A"]["status"] == "prediction: none is named 4i6p_A"
    assert found["4i6p_A"]["lddt_ca"] == ""
    said = summary(tmp_path / "out")
    assert (said["chains"], said["skipped"]) == (1, 3)
    reasons = {chain["id"]: chain["reason"] for chain in said["skipped_chains"]}
    assert reasons == {n: row["status"] for n, row in found.items() if n != "1ubq_A"}


def dimer(path: Path, name: str) -> Path:
    """An mmCIF file with two copies of a chain, A and B."""
    one = prediction(reference(name))
    structures = [gemmi.read_structure_string(to_mmcif(replace(one, id="x"), c)) for c in "AB"]
    structures[0][0].add_chain(structures[1][0][0])
    structures[0].setup_entities()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(structures[0].make_mmcif_document().as_string())
    return path


def test_chains_of_a_file_are_named_after_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    both = dimer(tmp_path / "p" / "x.cif", "1ubq_A")
    true = dimer(tmp_path / "r" / "x.cif", "1ubq_A")
    write(tmp_path / "p" / "x.pdb", prediction(reference("3byb_B")))  # x.cif comes before it
    out = tmp_path / "out"
    words = ("--output", out, "--no_plots")
    assert evaluate("--predictions", tmp_path / "p", "--references", true, *words) == 0
    found = rows(out)
    assert list(found) == ["x_A", "x_B"]
    assert [row["prediction"] for row in found.values()] == [f"{both} chain A", f"{both} chain B"]
    # One chain as the reference: by its name, or by a table.
    alone = tmp_path / "s" / "x_B.cif.gz"
    alone.parent.mkdir()
    alone.symlink_to(reference("1ubq_A"))
    assert evaluate("--predictions", both, "--references", alone, *words) == 0
    assert rows(out)["x_B"]["prediction"] == f"{both} chain B"
    line = refused(capsys, "--predictions", both, "--references", reference("1ubq_A"), *words)
    assert "predictions such as x_A; references such as 1ubq_A" in line


def test_a_table_names_the_pairs(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    dimer(tmp_path / "x.cif", "1ubq_A")
    (tmp_path / "true.cif.gz").symlink_to(reference("1ubq_A"))
    table, out = tmp_path / "pairs.csv", tmp_path / "out"
    table.write_text(
        "prediction,reference,prediction_chain,id\n"
        "x.cif,true.cif.gz,A,one\nx.cif,true.cif.gz,B,two\n"
        "x.cif,true.cif.gz,,three\nx.cif,true.cif.gz,Q,four\nnone.pdb,true.cif.gz,,five\n"
    )
    assert evaluate("--pairs", table, "--output", out, "--no_plots") == 1
    found = {name: row["status"] for name, row in rows(out).items()}
    assert found == {
        "one": "ok",
        "two": "ok",
        "three": "prediction: has the chains A, B, and none is named",
        "four": 'prediction: no protein chain "Q" (the file has A, B)',
        "five": "prediction: No such file or directory",
    }
    # Names in sources instead of paths.
    table.write_text("prediction,reference\nunused,5z2s_A\n1ubq_A.pdb,1ubq_A.cif.gz\n")
    sides = ("--predictions", work / "p", "--references", EXAMPLE / "held_out")
    assert evaluate("--pairs", table, *sides, "--output", out, "--no_plots") == 0
    assert rows(out)["5z2s_A"]["prediction"].endswith("unused.pdb")

    for text, said in {
        "": "pairs.csv:1: the column prediction is missing",
        "prediction,reference\n": "names no pair",
        "prediction,target\n": "'target' is none of",
        "prediction,reference\nx.cif,\n": "pairs.csv:2: not a line with",
        "prediction,reference\nx.cif,y\nz.cif,y\n": "pairs.csv:3: y is the id of line 2 too",
    }.items():
        table.write_text(text)
        assert said in refused(capsys, "--pairs", table, "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_right_is_refused_before_anything_is_written(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    for folder in ("a", "b"):
        write(tmp_path / "twice" / folder / "1ubq_A.pdb", prediction(reference("1ubq_A")))

    def line(*words: object) -> str:
        found = refused(capsys, *words, "--output", out)
        assert not out.exists()
        return found

    files = ("--predictions", work / "p", "--references", work / "r")
    twice = line("--predictions", tmp_path / "twice", "--references", work / "r")
    assert f"{tmp_path}/twice/a/1ubq_A.pdb and {tmp_path}/twice/b/1ubq_A.pdb" in twice
    twice = line("--predictions", work / "p", "--references", tmp_path / "twice")
    assert "references: 1ubq_A is ambiguous" in twice
    fasta = line("--predictions", EXAMPLE / "sequences.fasta", *files[2:])
    assert "predictions such as sequences.fasta: neither mmCIF nor PDB" in fasta
    assert "no structure file" in line("--predictions", Path(__file__).parent, *files[2:])
    assert "nowhere" in line("--predictions", tmp_path / "nowhere", *files[2:])
    assert "not with --run" in line(*files, "--run", work)
    assert "checkpoint: only with --run" in line(*files, "--checkpoint", "best")
    assert "store: only with --run" in line(*files, "--store", work)
    assert "match: not with --run" in line("--run", work, "--match", "number")
    assert "store, splits" in line("--run", work, "--store", work, "--splits", "train")
    assert "compare: 1 folders" in line("--compare", work)
    assert "run: not with --compare" in line("--compare", work, work, "--run", work)
    assert "device: 'tpu'" in line("--run", work, "--device", "tpu")
    assert "workers: -1" in line(*files, "--workers", "-1")
    assert "not the folder of a training run" in line("--run", work)


def test_two_evaluations_are_compared_pair_by_pair(work: Path, tmp_path: Path, capsys):
    for k, name in enumerate(NAMES[:3]):
        write(tmp_path / "p" / f"{name}.pdb", prediction(reference(name), 0.1, seed=k))
    write(tmp_path / "p" / "5z2s_A.pdb", prediction(reference("5z2s_A")))
    other, out = tmp_path / "other", tmp_path / "compared"
    words = ("--references", *(reference(n) for n in (*NAMES[:3], "5z2s_A")))
    assert evaluate("--predictions", tmp_path / "p", *words, "--output", other) == 0
    capsys.readouterr()
    assert evaluate("--compare", work / "out", other, "--output", out) == 0
    assert f"1 chain has scores only in {other}, such as 5z2s_A" in capsys.readouterr().err
    said = summary(out, "comparison.json")
    assert said["chains"] == 3
    assert said["only_in_the_first"] == ["4i6p_A"]
    one, two = rows(work / "out"), rows(other)
    for name, row in rows(out, "comparison.csv").items():
        change = float(two[name]["rmsd"]) - float(one[name]["rmsd"])
        assert float(row["rmsd_difference"]) == pytest.approx(change, abs=1e-12)
    for metric in ("lddt_ca", "rmsd"):
        found = said["metrics"][metric]
        assert (found["wins"], found["ties"], found["losses"]) == (3, 0, 0)
        assert found["low"] is found["high"] is None  # of three chains
        assert found["wilcoxon_p"] == pytest.approx(0.25)  # the least that three chains can give
    assert (out / "plots" / "comparison.png").stat().st_size > 1000

    assert evaluate("--compare", other, other, "--output", out, "--no_plots") == 0
    found = summary(out, "comparison.json")["metrics"]["lddt_ca"]
    assert (found["difference"], found["wilcoxon_p"], found["ties"]) == (0, None, 4)
    assert "no output of evaluate" in refused(
        capsys, "--compare", other, work / "p", "--output", tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()

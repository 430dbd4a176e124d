"""The commands one after the other, as a user runs them, in processes of their own."""

import csv
import hashlib
import json
import math
from pathlib import Path
from shutil import copytree

import gemmi
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.nursery import nursery

ROOT = Path(__file__).parents[2]
ALONE = ("--clusters", "none")
ADAPTER_FILE = "adapter_model.safetensors"
SMALL = (
    "--config", str(ROOT / "configs" / "tiny.yaml"),
    "--model.evoformer.blocks", "1", "--model.structure.layers", "2",
    "--data.crop", "32", "--log.every", "1",
    "--allow-leaks",  # the example's chains were not parted by date
)  # fmt: skip


def esmfold_peft(*arguments: object) -> str:
    """Runs one command, which must succeed, and returns what it printed."""
    return nursery().run(*arguments)


def column(run: Path, name: str) -> list[float]:
    """A column of metrics.csv, without empty cells."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def work(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two training chains and two held-out ones."""
    folder = tmp_path_factory.mktemp("work")
    train = [example / "train" / f"{name}.cif.gz" for name in ("1hf9_A", "3nir_A")]
    esmfold_peft("prepare", *train, "--output", folder / "train", *ALONE)
    held_out = [example / "held_out" / f"{name}.cif.gz" for name in ("1ubq_A", "3u8v_A")]
    esmfold_peft("prepare", *held_out, "--output", folder / "held_out", *ALONE)
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """A LoRTA run of forty steps."""
    esmfold_peft(
        "train", *SMALL, "--run", work / "run", "--data.train", work / "train",
        "--data.validation", work / "held_out", "--data.workers", 1,
        "--engine.steps", 40, "--engine.validate_every", 20, "--engine.batch_size", 2,
        "--engine.micro_batch", 2, "--optimizer.warmup_steps", 5,
    )  # fmt: skip
    return work / "run"


@pytest.mark.slow
def test_training_raises_lddt(run: Path):
    loss, score = column(run, "train/loss"), column(run, "train/lddt_ca")
    assert len(loss) == 40
    assert np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5])
    assert np.mean(score[-5:]) > np.mean(score[:5]) + 0.1
    assert len(column(run, "validation/lddt_ca")) == 2


@pytest.mark.slow
def test_evaluating_the_run_and_its_files_gives_the_same_scores(run: Path, work: Path):
    out = work / "scores"
    esmfold_peft("evaluate", "--run", run, "--output", out)  # the validation chains of the run
    with (out / "scores.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"1ubq_A", "3u8v_A"}
    assert (int(rows["3u8v_A"]["length"]), int(rows["3u8v_A"]["resolved"])) == (93, 83)
    summary = json.loads((out / "summary.json").read_text())
    mean = np.mean([float(row["lddt_ca"]) for row in rows.values()])
    assert summary["lddt_ca"] == pytest.approx(mean)
    assert column(run, "validation/lddt_ca")[-1] == pytest.approx(mean, abs=1e-5)

    fasta = work / "held_out.fasta"
    sequences = {name: _sequence(ROOT / f"data/example/held_out/{name}.cif.gz") for name in rows}
    fasta.write_text("".join(f">{name} x\n{text}\n" for name, text in sequences.items()))
    esmfold_peft("predict", fasta, "--run", run, "--output", work / "predicted")
    esmfold_peft(
        "evaluate", "--predictions", work / "predicted", "--references", work / "held_out",
        "--output", work / "again",
    )  # fmt: skip
    again = json.loads((work / "again" / "summary.json").read_text())
    # Files round coordinates to 0.001 Å.
    assert again["lddt_ca"] == pytest.approx(summary["lddt_ca"], abs=1e-3)
    assert again["plddt"] == pytest.approx(summary["plddt"], abs=0.5)


@pytest.mark.slow
def test_predictions_are_whole_and_readable(run: Path, work: Path):
    fasta = work / "odd.fasta"
    fasta.write_text(">sp|P1|../a b\nmktayiakqr\n>sp|P1|__/a\nGGGXGGG\n>c\nW\n")
    out = work / "odd"
    esmfold_peft("predict", fasta, "--run", run, "--output", out)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["length"] for row in rows] == ["10", "7", "1"]
    assert [row["header"] for row in rows] == ["sp|P1|../a b", "sp|P1|__/a", "c"]
    assert all(row["status"] == "ok" for row in rows)
    files = {row[kind] for row in rows for kind in ("pdb", "mmcif")}
    assert files | {"predictions.csv"} == {p.name for p in out.iterdir()}
    for row in rows:
        for kind in ("pdb", "mmcif"):
            structure = gemmi.read_structure(str(out / row[kind]))
            residues = list(structure[0][0])
            assert [r.seqid.num for r in residues] == list(range(1, int(row["length"]) + 1))
            atoms = [atom for residue in residues for atom in residue]
            assert all(math.isfinite(atom.pos.x) for atom in atoms)
            mean = np.mean([residue["CA"][0].b_iso for residue in residues])
            assert mean == pytest.approx(float(row["plddt"]), abs=0.02)
            assert 0 <= mean <= 100


def _sequence(path: Path) -> str:
    structure = gemmi.read_structure(str(path))
    entity = next(e for e in structure.entities if e.full_sequence)
    names = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
    return "".join(
        "M" if n == "MSE" else gemmi.find_tabulated_residue(n).one_letter_code for n in names
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("accumulated", ["--engine.micro_batch", "1"]),
        ("ddp", ["--engine.devices", "2", "--engine.micro_batch", "1"]),
    ],
)
def test_accumulation_and_processes_compute_the_same(
    name: str, flags: list[str], work: Path, plain: Path
):
    other = work / name
    esmfold_peft(*_four_steps(work, other), *flags)
    assert column(other, "train/loss") == pytest.approx(column(plain, "train/loss"), rel=1e-4)
    scores = column(other, "validation/lddt_ca")
    assert scores == pytest.approx(column(plain, "validation/lddt_ca"), abs=1e-3)
    ours, theirs = (load_file(path / "model.safetensors") for path in (plain, other))
    assert ours.keys() == theirs.keys()
    start = load_file(work / "untrained" / "model.safetensors")
    for key, tensor in ours.items():
        moved = (tensor - start[key]).norm()
        assert (theirs[key] - tensor).norm() <= 0.02 * moved + 1e-6, key


@pytest.mark.proof
def test_deepspeed_accumulates_the_same_gradient(work: Path):
    # With these a parameter moves by its gradient, of which Adam otherwise keeps the sign alone.
    flags = ["--engine.steps", 1, "--engine.micro_batch", 1, "--optimizer.clip_norm", 0]
    flags += ["--optimizer.lr", 1e3, "--optimizer.eps", 1e3, "--optimizer.eps_adapter", "null"]
    flags += ["--guard.update_limit", 0]
    zero2 = ["--engine.deepspeed", ROOT / "configs" / "deepspeed" / "zero2.json"]
    moves = []
    for name, more in (("gradient", []), ("gradient_zero2", zero2)):
        esmfold_peft(*_four_steps(work, work / name), *flags, *more)
        moves.append(load_file(work / name / "model.safetensors"))
    esmfold_peft(*_four_steps(work, work / "gradient_start"), *flags, "--engine.steps", 0)
    start = load_file(work / "gradient_start" / "model.safetensors")
    for key in start:
        plain, zero = (moved[key] - start[key] for moved in moves)
        assert (zero - plain).norm() <= 0.01 * plain.norm() + 1e-6, key


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("lora_fa", marks=pytest.mark.proof), "dora"])
def test_zero_3_trains_what_others_than_its_module_read(kind: str, work: Path):
    # LoRA-FA has frozen factors, DoRA reads the weights under it, and the outer product mean those
    # of its last layer. By DeepSpeed's own threshold all of them would be too small to be parted.
    settings = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (work / "zero3.json").write_text(json.dumps({"zero_optimization": settings}))
    adapter = ["--adapter.kind", kind, "--adapter.rank", 16, "--adapter.targets", "[key,fc2]"]
    # DoRA calls the matrices a second time, in the layers that are recomputed too.
    for part in ("language_model", "evoformer"):
        adapter += [f"--model.{part}.recompute", str(kind == "dora").lower()]
    zero3 = ["--engine.deepspeed", work / "zero3.json"]
    one, other = work / f"wide_{kind}", work / f"wide_{kind}_zero3"
    esmfold_peft(*_four_steps(work, one), *adapter)
    esmfold_peft(*_four_steps(work, other), *adapter, *zero3)
    assert column(other, "train/loss") == pytest.approx(column(one, "train/loss"), rel=1e-4)
    saved, again = (load_file(run / "adapter" / ADAPTER_FILE) for run in (one, other))
    for key, tensor in saved.items():
        assert (again[key] - tensor).norm() <= 1e-3 * tensor.norm(), key


@pytest.mark.slow
def test_a_run_keeps_what_its_adapter_drew(work: Path):
    for kind, drawn in {"vera": "projection_a", "lora_fa": "a_key"}.items():
        run = work / f"drawn_{kind}"
        adapter = ["--adapter.kind", kind, "--adapter.rank", 2, "--engine.steps", 0]
        esmfold_peft(*_four_steps(work, run), *adapter)
        whole, alone = (
            load_file(run / "model.safetensors"),
            load_file(run / "adapter" / ADAPTER_FILE),
        )
        assert (whole[f"language_model.adapter.{drawn}"] == alone[drawn]).all()


@pytest.mark.slow
def test_each_record_is_folded_with_its_own_adapter(plain: Path, work: Path):
    for name in "xy":
        copytree(plain / "adapter", work / name)
    _enlarge(work / "y", "b")
    lines = [">one", ">two adapter=x", ">three y adapter=y", ">four adapter=y", ">five"]
    sequences = ["MKTAYIAKQR", "MKTAYIAKQR", "MKTAYIAKQR", "GSHMWWLE", "GSHMWWLE"]
    fasta = work / "mixed.fasta"
    fasta.write_text("".join(f"{a}\n{b}\n" for a, b in zip(lines, sequences, strict=True)))
    adapters = ["--adapter", f"x={work / 'x'}", f"y={work / 'y'}"]
    out = work / "mixed"
    esmfold_peft("predict", fasta, "--run", plain, "--output", out, *adapters)
    with (out / "predictions.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert [row["adapter"] for row in rows.values()] == ["", "x", "y", "y", ""]
    # x is the run's own adapter, y is another.
    assert _distance(out / "one.cif", out / "two.cif") < 2e-3
    assert _distance(out / "one.cif", out / "three.cif") > 2e-2
    # A record alone, with its adapter alone, gives what it gave among the others.
    single = work / "single.fasta"
    single.write_text(">three y adapter=y\nMKTAYIAKQR\n")
    esmfold_peft(
        "predict", single, "--run", plain, "--output", work / "single", "--adapter",
        f"y={work / 'y'}",
    )  # fmt: skip
    assert _distance(out / "three.cif", work / "single" / "three.cif") < 2e-3


def _enlarge(folder: Path, name: str) -> None:
    """Multiplies one factor of a saved adapter by a thousand and signs it again."""
    path, header = folder / ADAPTER_FILE, folder / "adapter_config.json"
    tensors = load_file(path)
    tensors[name] = tensors[name] * 1000
    save_file(tensors, path)
    content = json.loads(header.read_text())
    content["tensors_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    header.write_text(json.dumps(content))


def _distance(one: Path, other: Path) -> float:
    """Largest distance in Å between the same atoms of two files."""
    places = [
        np.array([a.pos.tolist() for r in gemmi.read_structure(str(p))[0][0] for a in r])
        for p in (one, other)
    ]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


@pytest.mark.slow
def test_a_run_without_validation_is_saved_and_reported_on_the_way(work: Path):
    run = work / "unvalidated"
    printed = esmfold_peft(
        "train", *SMALL, "--run", run, "--data.train", work / "train", "--engine.steps", 5,
        "--engine.validate_every", 2, "--engine.batch_size", 2, "--engine.micro_batch", 1,
    )  # fmt: skip
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("step")] == [
        "step 2",
        "step 4",
    ]
    assert len(column(run, "train/loss")) == 5


@pytest.mark.proof
def test_two_processes_train_without_the_confidence_loss(work: Path):
    flags = ["--engine.devices", 2, "--engine.micro_batch", 1, "--loss.weights.plddt", 0]
    flags += ["--loss.resolution", "[0.1,3.0]"]  # which no other head reads
    esmfold_peft(*_four_steps(work, work / "idle"), *flags)
    assert len(column(work / "idle", "train/loss")) == 4
    assert not any("plddt" in line for line in (work / "idle" / "metrics.csv").open())


@pytest.fixture(scope="module")
def plain(work: Path) -> Path:
    """Four steps in one process, and the untrained model beside them."""
    esmfold_peft(*_four_steps(work, work / "untrained"), "--engine.steps", 0)
    esmfold_peft(*_four_steps(work, work / "plain"))
    return work / "plain"


def _four_steps(work: Path, run: Path) -> list[object]:
    return [
        "train", *SMALL, "--run", run, "--data.train", work / "train",
        "--data.validation", work / "held_out", "--engine.steps", 4,
        "--engine.validate_every", 2, "--engine.batch_size", 2, "--engine.micro_batch", 2,
        "--optimizer.warmup_steps", 0, "--optimizer.eps", "1e-3",
    ]  # fmt: skip

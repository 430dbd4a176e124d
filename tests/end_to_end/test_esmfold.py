"""The released ESMFold through the commands: inspected, trained, evaluated, used to predict."""

import csv
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EsmForProteinFolding

from esmfold_peft.protein.residues import ATOM37_INDEX
from tests.nursery import nursery
from tests.published import esm_config, roughen

ROOT = Path(__file__).parents[2]
FROZEN = ("--model.freeze", "[trunk,head]", "--loss.weights.resolved", 0)
SEQUENCE = "MKTAYIAKQRGWDEFHNPSLVC"


def esmfold_peft(*arguments: object, fails: bool = False) -> str:
    """Runs one command and returns what it printed."""
    return nursery().run(*arguments, code=2 if fails else 0)


@pytest.fixture(scope="module")
def reference() -> EsmForProteinFolding:
    """A tiny model of transformers with random weights."""
    structure = {
        "sequence_dim": 32,
        "pairwise_dim": 16,
        "ipa_dim": 8,
        "resnet_dim": 16,
        "num_heads_ipa": 4,
        "num_blocks": 3,
    }
    trunk = {
        "num_blocks": 2,
        "sequence_state_dim": 32,
        "pairwise_state_dim": 16,
        "sequence_head_width": 8,
        "pairwise_head_width": 8,
        "structure_module": structure,
    }
    torch.manual_seed(0)
    settings = {"fp16_esm": False, "lddt_head_hid_dim": 16, "trunk": trunk}
    config = esm_config(2, 32, 4, is_folding_model=True, esmfold_config=settings)
    return roughen(EsmForProteinFolding(config))


@pytest.fixture(scope="module")
def work(
    reference: EsmForProteinFolding, example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its folder, the settings that `weights inspect` prints for it, chains and a FASTA."""
    folder = tmp_path_factory.mktemp("esmfold")
    reference.save_pretrained(folder / "published")
    printed = esmfold_peft("weights", "inspect", folder / "published")
    settings = printed[printed.index("model:") :]
    (folder / "sizes.yaml").write_text(settings)
    chains = [example / "train" / f"{name}.cif.gz" for name in ("1hf9_A", "3nir_A")]
    esmfold_peft("prepare", *chains, "--output", folder / "chains", "--clusters", "none")
    (folder / "x.fasta").write_text(f">x\n{SEQUENCE}\n")
    return folder


def train(work: Path, run: Path, *more: object) -> None:
    """A run from the published weights, on a CPU."""
    esmfold_peft(
        "train", "--config", ROOT / "configs" / "stages" / "finetune.yaml",
        "--config", work / "sizes.yaml", "--run", run, "--data.train", work / "chains",
        "--data.workers", 0, "--data.crop", 32, "--loss.resolution", "null",
        "--model.language_model.weights", work / "published",
        "--model.esmfold.weights", work / "published", "--engine.accelerator", "cpu",
        "--engine.precision", "float32", "--engine.batch_size", 2, "--engine.micro_batch", 2,
        "--log.every", 1, "--optimizer.warmup_steps", 0, "--adapter.kind", "lora",
        *more,
    )  # fmt: skip


def atoms(path: Path) -> dict[tuple[int, str], gemmi.Atom]:
    """Atoms of the only chain by residue, from 0, and name."""
    residues = list(gemmi.read_structure(str(path))[0][0])
    return {(i, atom.name): atom for i, residue in enumerate(residues) for atom in residue}


@pytest.mark.slow
def test_the_published_model_predicts_what_transformers_does(
    reference: EsmForProteinFolding, work: Path
):
    train(work, work / "untrained", *FROZEN, "--engine.steps", 0)
    esmfold_peft("predict", work / "x.fasta", "--run", work / "untrained", "--output", work / "out")
    # The same without a run.
    esmfold_peft(
        "predict", work / "x.fasta", "--esmfold", work / "published", "--output", work / "direct",
        "--pae",
    )  # fmt: skip
    one, other = (atoms(work / folder / "x.pdb") for folder in ("direct", "out"))
    assert one.keys() == other.keys()
    for key, atom in one.items():  # rounded to 0.001 Å and 0.01
        np.testing.assert_allclose(atom.pos.tolist(), other[key].pos.tolist(), atol=1.1e-3)
        assert atom.b_iso == pytest.approx(other[key].b_iso, abs=0.011)
    theirs = reference.infer(SEQUENCE)  # four passes, as ours by default
    arrays = np.load(work / "direct" / "x.pae.npz")
    np.testing.assert_allclose(arrays["pae"], theirs["predicted_aligned_error"][0], atol=1e-3)
    assert float(arrays["ptm"]) == pytest.approx(float(theirs["ptm"]), abs=1e-4)
    ours = atoms(work / "out" / "x.cif")
    places = theirs["positions"][-1, 0]
    columns = theirs["residx_atom37_to_atom14"][0]
    assert len(ours) == int(theirs["atom37_atom_exists"].sum())
    for (residue, name), atom in ours.items():
        column = ATOM37_INDEX[name]
        expected = places[residue, columns[residue, column]].numpy()
        np.testing.assert_allclose(atom.pos.tolist(), expected, atol=2e-3)
        assert atom.b_iso == pytest.approx(
            100 * float(theirs["plddt"][0, residue, column]), abs=0.02
        )


@pytest.mark.slow
def test_an_adapter_alone_is_trained_and_kept(work: Path):
    run = work / "adapter"
    train(work, run, *FROZEN, "--engine.steps", 3)
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 3
    kept = load_file(run / "model.safetensors")
    assert all(name.startswith("language_model.adapter.") for name in kept)
    learnt = [tensor for name, tensor in kept.items() if ".b_" in name or name.endswith(".b")]
    assert learnt
    assert all(tensor.abs().max() > 0 for tensor in learnt)  # zero at the start
    esmfold_peft("predict", work / "x.fasta", "--run", run, "--output", work / "adapted")
    esmfold_peft("evaluate", "--run", run, "--store", work / "chains",
                 "--output", work / "scores", "--chunk_size", 7)  # fmt: skip
    assert len((work / "scores" / "scores.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_everything_can_be_trained_and_other_published_weights_are_refused(work: Path):
    run = work / "whole"
    train(work, run, "--model.freeze", "[]", "--engine.steps", 1)
    names = load_file(run / "model.safetensors").keys()
    parts = {name.split(".")[0] for name in names}
    assert parts >= {"language_model", "trunk", "structure_module", "pae_head", "resolved_head"}
    file = work / "published" / "model.safetensors"
    published = load_file(file)
    changed = {"distogram_head.bias": published["distogram_head.bias"] + 1}
    try:
        save_file(published | changed, file, metadata={"format": "pt"})
        line = esmfold_peft(
            "predict", work / "x.fasta", "--run", run, "--output", work / "no", fails=True
        )
    finally:
        save_file(published, file, metadata={"format": "pt"})
    assert "ESMFold's weights are not those of the training" in line
    assert len(line.strip().splitlines()) == 1

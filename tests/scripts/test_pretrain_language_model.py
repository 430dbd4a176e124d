"""Masked-language-model training: what it masks, that it learns and resumes, and its file."""

import csv
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from esm.pretrained import load_model_and_alphabet_core

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.model.language_model import ALPHABET, LanguageModel
from esmfold_peft.protein.residues import RESIDUES, UNKNOWN
from esmfold_peft.weights.merged_files import read_esm2_file, write_transformers

STEPS = 80


@pytest.fixture
def pretraining(script):
    return script("pretrain_language_model")


@pytest.fixture
def pretrain(pretraining, tmp_path, monkeypatch):
    """Trains on sequences in which each residue follows from the one before."""

    def fasta(name: str, chains: int) -> Path:
        rows = ["".join(RESIDUES[(start + i) % 20] for i in range(40)) for start in range(chains)]
        path = tmp_path / name
        path.write_text("".join(f">s{i}\n{row}\n" for i, row in enumerate(rows)))
        return path

    def run(output: str, *flags: object, code: int = 0) -> Path:
        words = [fasta("train.fasta", 20), "--held-out", fasta("held_out.fasta", 7)]
        words += ["--output", tmp_path / output, "--layers", 2, "--width", 32, "--heads", 4]
        words += ["--batch-size", 16, "--lr", 1e-2, "--warmup-steps", 5, "--steps", STEPS]
        words += ["--save-every", STEPS // 2, "--precision", "float32", "--accelerator", "cpu"]
        monkeypatch.setattr("sys.argv", ["pretrain_language_model", *map(str, [*words, *flags])])
        assert pretraining.main() == code
        return tmp_path / output

    return run


def perplexities(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["perplexity"]) for row in csv.DictReader(file)]


def test_a_batch_chooses_15_percent_of_known_residues_as_bert_does(pretraining):
    rng = np.random.default_rng(0)
    crops = [rng.integers(20, size=n) for n in range(100, 500)] + [np.full(300, UNKNOWN)]
    batch = pretraining.MaskedBatch(crops, rng, "cpu")
    assert batch.mask.sum(1).tolist() == [*range(100, 500), 300]
    assert not batch.chosen[~batch.mask | (batch.aatype == UNKNOWN)].any()
    known, chosen = int(batch.mask[:-1].sum()), int(batch.chosen.sum())
    assert chosen / known == pytest.approx(0.15, abs=0.005)
    assert int(batch.masked.sum()) / chosen == pytest.approx(0.8, abs=0.01)
    changed = batch.given != batch.aatype
    assert not changed[~batch.chosen | batch.masked].any()
    # A replacement is the same residue once in twenty times.
    assert int(changed.sum()) / chosen == pytest.approx(0.1 * 19 / 20, abs=0.01)


def test_a_run_learns_and_a_stopped_one_resumes_to_the_same_weights(
    pretrain, pretraining, monkeypatch, capsys
):
    whole = pretrain("whole")
    assert perplexities(whole)[-1] < 8  # of twenty residues
    saved, times = pretraining.write_fair_esm, []

    def stop_at_the_second(*given):
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt
        return saved(*given)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "write_fair_esm", stop_at_the_second)
        parts = pretrain("parts", code=130)
    pretrain("parts")
    assert f"resumed at step {STEPS // 2} of {STEPS}" in capsys.readouterr().out
    found = (torch.load(run / "checkpoint.pt")["model"] for run in (whole, parts))
    torch.testing.assert_close(*found)
    assert perplexities(parts) == pytest.approx(perplexities(whole), rel=1e-4)


@pytest.mark.parametrize(("flags", "tolerance"), [((), 1e-4), (("--half",), 1e-2)])
def test_fair_esm_reads_the_file_and_gives_masked_residues_the_same_probabilities(
    pretrain, pretraining, flags, tolerance
):
    run = pretrain("run", *flags)
    with torch.serialization.safe_globals([Namespace]):
        # Its loader of local files demands a head for contacts in a second file.
        model, _ = load_model_and_alphabet_core("esm2", torch.load(run / "esm2.pt"))
    batch = pretraining.MaskedBatch(
        [np.arange(20), np.arange(12)], np.random.default_rng(1), torch.device("cpu")
    )
    ours = pretraining.MaskedLanguageModel(LanguageModel.random(AttentionShape(2, 32, 4)))
    ours.load(read_esm2_file(run / "esm2.pt", AttentionShape(2, 32, 4)))
    tokens = ours.lm.tokenize(batch.given, batch.mask)
    tokens[:, 1:-1][batch.masked] = ALPHABET.mask_idx
    with torch.no_grad():
        logits = model.float().eval()(tokens)["logits"][:, 1:-1][batch.chosen]
        expected = F.cross_entropy(logits, tokens_of(ours, batch), reduction="sum")
        found, count = ours(batch)
    assert count == int(batch.chosen.sum()) > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def tokens_of(model, batch):
    return model.lm.token_of_aatype[batch.aatype[batch.chosen]]


def test_training_continues_from_given_weights_in_both_layouts(pretrain):
    start = pretrain("start")
    file = read_esm2_file(start / "esm2.pt", AttentionShape(2, 32, 4))
    hugging_face = write_transformers(file, start / "hugging_face")
    for number, weights in enumerate((start / "esm2.pt", hugging_face)):
        further = pretrain(f"further_{number}", "--weights", weights, "--lr", 1e-9, "--steps", 2)
        assert perplexities(further)[-1] == pytest.approx(perplexities(start)[-1], rel=1e-3)


def test_a_run_is_resumed_with_its_own_settings_only(pretrain, capsys):
    pretrain("run", "--steps", 2)
    pretrain("run", "--steps", 2, "--seed", 1, code=2)
    assert "--seed: " in (line := capsys.readouterr().err.splitlines()[-1])
    assert line.endswith("was started with 0, not 1; choose another folder")


def test_a_file_without_a_sequence_is_one_line(pretrain, tmp_path, capsys):
    (tmp_path / "empty.fasta").write_text(">short\nMKV\n")
    pretrain("run", "--held-out", tmp_path / "empty.fasta", code=2)
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("empty.fasta: no sequence of 8 residues or more")
    )

"""The training step: what a broken chain does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esmfold_peft.config import TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.collate import collate
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import LossTerms, fold_loss
from esmfold_peft.model.inference import sequence_features
from esmfold_peft.protein.residues import encode
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.passes import Chains, Passes
from esmfold_peft.training.step import recycles_at

ROOT = Path(__file__).parents[2]
TRYPTOPHAN = int(encode("W")[0])


def module(*flags: str) -> FoldingModule:
    """A module of the tiny model, with the losses of fine-tuning."""
    parser = config_parser(TrainConfig)
    files = [ROOT / "configs" / "tiny.yaml", ROOT / "configs" / "stages" / "finetune.yaml"]
    words = [word for file in files for word in ("--config", str(file))]
    config = to_config(
        parser, parser.parse_args([*words, "--run", "r", "--data.train", "t", *flags]), TrainConfig
    )
    return FoldingModule(config, build_model(config)[0])


def batch(*sequences: str) -> Batch:
    """Sequences with atoms at random places."""
    made = collate([sequence_features(f"chain_{s}", s) for s in sequences], [True] * len(sequences))
    generator = torch.Generator().manual_seed(0)
    positions = 5 * torch.randn(made.positions.shape, generator=generator)
    known = torch.arange(14) < 4
    atom_mask = made.mask[..., None] & known
    return replace(made, positions=positions * atom_mask[..., None], atom_mask=atom_mask)


def predict(trained: FoldingModule, given: Batch, step: int = 0, first: int = 0):
    """The loss of all chains together, with its graph, and what was predicted."""
    model, config = trained.model.train(), trained.config
    passes = Passes(model, config, len(given.ids), given.mask.device)
    m, weights = model.read(given.aatype, given.mask), model.pack()
    chains = Chains(given, ground_truth(given), m, first)
    recycles = recycles_at(step, config.model.max_recycles, config.seed)
    recycled = passes.recycle(chains, weights, recycles)
    return passes.loss(chains, recycled, weights, recycles)


def test_a_loss_that_is_not_finite_is_named_and_reaches_every_gradient():
    trained = module()
    weight = trained.model.trunk.sequence_embedding.amino_acid.weight
    with torch.no_grad():
        weight[TRYPTOPHAN + 1] = torch.nan
    given = batch("ACDEFG", "ACWD")
    loss, found = predict(trained, given)
    (fault,) = found.terms.faults(given.ids)
    assert fault.startswith("chain_ACWD: backbone_fape is nan, ")
    for term in ("sidechain_fape", "chi", "violation", "distogram"):
        assert f"{term} is nan" in fault, term
    assert loss.isnan()


def test_an_infinite_loss_has_no_finite_gradient(monkeypatch: pytest.MonkeyPatch):
    trained = module()

    def infinite(*arguments, **settings) -> LossTerms:
        terms = fold_loss(*arguments, **settings)
        return replace(terms, total=terms.total + torch.inf)

    for loss_of, finite in ((fold_loss, True), (infinite, False)):
        monkeypatch.setattr("esmfold_peft.training.passes.fold_loss", loss_of)
        trained.zero_grad()
        predict(trained, batch("ACDEFG"))[0].backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        assert bool(torch.nn.utils.get_total_norm(gradients).isfinite()) == finite


def test_what_is_drawn_follows_from_the_seed_and_the_number_of_the_sample():
    flags = ("--model.evoformer.dropout_msa", "0.3", "--model.structure.dropout", "0.3")
    trained = module(*flags)

    def loss(of: FoldingModule, first: int) -> float:
        torch.rand(7)
        return predict(of, batch("ACDEFGHIKL"), step=4, first=first)[0].item()

    same = loss(trained, 12)
    assert loss(trained, 12) == pytest.approx(same, rel=1e-6)
    other = replace(trained.config, seed=1)
    others = [loss(trained, 13), loss(FoldingModule(other, trained.model), 12)]
    assert all(abs(each - same) > 1e-4 * same for each in others)


def test_passes_are_uniform_and_follow_from_seed_and_step():
    drawn = [recycles_at(step, 3, seed=0) for step in range(4000)]
    assert np.allclose(np.bincount(drawn) / 4000, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert drawn[:50] == [recycles_at(step, 3, seed=0) for step in range(50)]
    assert drawn[:50] != [recycles_at(step, 3, seed=1) for step in range(50)]
    assert {recycles_at(step, 0, seed=0) for step in range(9)} == {0}


def test_parts_that_are_frozen_and_heads_without_a_weight_are_not_trained():
    released = [
        *("--model.trunk", "esmfold_v1", "--model.esmfold.weights", "random"),
        *("--model.esmfold.blocks", "1", "--model.esmfold.c_s", "32", "--model.esmfold.c_z", "16"),
        *("--model.esmfold.heads", "4", "--loss.weights.resolved", "0"),
    ]

    def trained(*flags: str) -> set[str]:
        parameters = module(*released, *flags).model.named_parameters()
        return {n.split(".")[0] for n, p in parameters if p.requires_grad}

    heads = {"distogram_head", "plddt_head", "pae_head"}
    assert trained() == {"language_model", "trunk", "structure_module", *heads}
    assert trained("--loss.weights.pae", "0", "--model.freeze", "[trunk]") == {
        "language_model",
        "structure_module",
        *(heads - {"pae_head"}),
    }
    assert trained("--model.freeze", "[head]") == {"language_model", "trunk"}
    assert trained("--model.freeze", "[head,trunk]") == {"language_model"}


def test_the_score_of_a_chain_does_not_depend_on_its_batch():
    validated = module().eval()
    both = batch("ACDEFGHIKLMNPQ", "ACWDRSTV")
    both = replace(both, positions=0.4 * both.positions)  # as dense as an untrained prediction

    def scores(*parts: Batch) -> dict[str, float]:
        found = {}
        with torch.no_grad():
            for part in parts:
                scored = validated.validation_step(part, 0).lddt.per_chain
                found |= dict(zip(part.ids, scored.tolist(), strict=True))
        return found

    def alone(row: int, length: int) -> Batch:
        return both.rows(slice(row, row + 1), length)

    together = scores(both)
    assert together == pytest.approx(scores(alone(0, 14), alone(1, 8)), abs=1e-6)
    assert all(0 < score < 1 for score in together.values())

"""One optimizer step: what a broken chain does, chains at a time, draws, and waits of the host."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from esmfold_peft.config import LossWeights, TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.total import LossTerms, fold_loss
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import sequence_features
from esmfold_peft.protein.residues import encode
from esmfold_peft.runs.build import build_model
from esmfold_peft.training import step
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.memory_test import attempt
from esmfold_peft.training.passes import Chains, Passes
from esmfold_peft.training.plan import Plan
from esmfold_peft.training.step import FoldingModule, recycles_at
from esmfold_peft.training.step_summary import StepSummary
from tests.tiny import TINY
from tests.waits import no_waits

ROOT = Path(__file__).parents[2]
TRYPTOPHAN = int(encode("W")[0])
SEQUENCES = ("ACDEFGHIKL", "ACWDRSTV", "GGWDEY")
FINETUNING = LossWeights(resolved=0.01, violation=1.0, pae=0.1)


def batch_of(*sequences: str) -> Batch:
    """Sequences with atoms at random places."""
    made = collate([sequence_features(f"chain_{s}", s) for s in sequences], [True] * len(sequences))
    generator = torch.Generator().manual_seed(0)
    positions = 5 * torch.randn(made.positions.shape, generator=generator)
    atom_mask = made.mask[..., None] & (torch.arange(14) < 5)
    return replace(made, positions=positions * atom_mask[..., None], atom_mask=atom_mask)


def config_of(weights: LossWeights) -> TrainConfig:
    """Three chains a step, recycled, with dropout everywhere."""
    evoformer = replace(TINY.model.evoformer, dropout_msa=0.2, dropout_pair=0.2)
    return replace(
        TINY,
        data=replace(TINY.data, crop=10),
        model=replace(TINY.model, evoformer=evoformer, max_recycles=2),
        loss=replace(TINY.loss, weights=weights, resolution=None),
        engine=replace(TINY.engine, batch_size=3, compile=False, cuda_graphs=False),
        optimizer=replace(TINY.optimizer, clip_norm=0.1),
    )


def module_of(config: TrainConfig, device: torch.device) -> FoldingModule:
    """A training of one process, without Lightning."""
    torch.manual_seed(1)
    model, _ = build_model(config)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape)
    module = FoldingModule(config, model.to(device).train())
    optimizer: Any = module.configure_optimizers()["optimizer"]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = pl.strategies.SingleDeviceStrategy(device=device)
    module.trainer = pl.Trainer(strategy=strategy, **quiet)
    module.trainer.strategy.optimizers = [optimizer]
    module.optimizers = lambda: optimizer
    module.manual_backward = lambda loss: loss.backward()
    module.passes = Passes(model, config, 3, device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    module.average = ExponentialAverage(trained, 0.9)
    module.asked_to_stop = lambda: False
    return module


@pytest.fixture
def two_recycles(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every step has two recycling passes; says of each whether it read one before."""
    passes, recycle = [], FoldingModel.recycle
    monkeypatch.setattr(step, "recycles_at", lambda *_: 2)

    def recorded(self: FoldingModel, *arguments: Any) -> Any:
        passes.append(arguments[0].previous is not None)
        return recycle(self, *arguments)

    monkeypatch.setattr(FoldingModel, "recycle", recorded)
    return passes


def stepped(plan: Plan) -> tuple[dict[str, float], dict[str, Tensor], list[Tensor]]:
    """Metrics of a step by a plan, Adam's first moments, and the losses of all chains."""
    module = module_of(config_of(FINETUNING), torch.device("cpu"))
    module.plan = plan
    batch = batch_of(*SEQUENCES)
    terms, summary = step.optimizer_step(module, batch, ground_truth(batch))
    state = module.trainer.optimizers[0].state
    moments = {n: state[p]["exp_avg"] for n, p in module.model.named_parameters() if p in state}
    return summary.metrics, moments, [terms.total, *terms.terms.values()]


def test_what_is_computed_at_a_time_changes_nothing(two_recycles: list[bool]):
    metrics, moments, losses = stepped(Plan(3, 3, recompute=False))
    assert two_recycles == [False, True]
    assert any("language_model.adapter" in name for name in moments)
    for plan in (Plan(1, 1, True), Plan(2, 2, False), Plan(1, 3, False), Plan(1, 2, False)):
        other = stepped(plan)
        assert other[0] == pytest.approx(metrics, rel=1e-5), plan
        for one, two in zip(other[2], losses, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        for name, moment in moments.items():
            assert (other[1][name] - moment).norm() <= 1e-4 * moment.norm() + 1e-7, (plan, name)


@pytest.fixture(params=["cpu", "meta"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that stands for a GPU."""
    device = torch.device(request.param)
    tables(device)
    for module in ("metrics.lddt", "losses.violations"):
        monkeypatch.setattr(f"esmfold_peft.{module}.lists_pairs", lambda device: False)
    if device.type == "meta":  # it has neither random numbers nor Adam
        monkeypatch.setattr(Passes, "_draw_dropout", lambda *_: None)
        monkeypatch.setattr(step, "apply_gradient", lambda *_: None)
    return device


@pytest.mark.usefixtures("two_recycles")
@pytest.mark.parametrize("weights", [LossWeights(), FINETUNING], ids=["initial", "finetuning"])
def test_the_host_waits_for_nothing_before_the_summary(
    weights: LossWeights, device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    module = module_of(config_of(weights), device)
    module.plan = Plan(1, 2, recompute=False)
    batch = batch_of(*SEQUENCES)
    truth = ground_truth(batch).to(device)
    summarized = []

    def summarize(*arguments: Any, **named: Any) -> Any:
        summarized.append(arguments)
        return StepSummary(1, {"gradient/total": 1.0}, stop=False)

    monkeypatch.setattr(step, "summarize_step", summarize)
    moved = batch.to(device)
    with no_waits():
        step.optimizer_step(module, moved, truth)
    assert len(summarized) == 1
    assert module.average.updates == 1


def test_a_test_of_memory_changes_nothing(two_recycles: list[bool]):
    module = module_of(config_of(FINETUNING), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    generator = torch.get_rng_state()
    attempt(module, Plan(2, 3, recompute=True))
    assert two_recycles == [False, True]  # the second one takes more memory
    assert module.model.trunk.stack.recompute
    for name, tensor in module.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for p in module.model.parameters())
    assert module.trainer.optimizers[0].state == {}
    assert bool((torch.get_rng_state() == generator).all())


def finetuned(*flags: str) -> FoldingModule:
    """A module of the tiny model, with the losses of fine-tuning."""
    parser = config_parser(TrainConfig)
    files = [ROOT / "configs" / "tiny.yaml", ROOT / "configs" / "stages" / "finetune.yaml"]
    words = [word for file in files for word in ("--config", str(file))]
    parsed = parser.parse_args([*words, "--run", "r", "--data.train", "t", *flags])
    config = to_config(parser, parsed, TrainConfig)
    return FoldingModule(config, build_model(config)[0])


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
    trained = finetuned()
    weight = trained.model.trunk.sequence_embedding.amino_acid.weight
    with torch.no_grad():
        weight[TRYPTOPHAN + 1] = torch.nan
    given = batch_of("ACDEFG", "ACWD")
    loss, found = predict(trained, given)
    (fault,) = found.terms.faults(given.ids)
    assert fault.startswith("chain_ACWD: backbone_fape is nan, ")
    for term in ("sidechain_fape", "chi", "violation", "distogram"):
        assert f"{term} is nan" in fault, term
    assert loss.isnan()


def test_an_infinite_loss_has_no_finite_gradient(monkeypatch: pytest.MonkeyPatch):
    trained = finetuned()

    def infinite(*arguments, **settings) -> LossTerms:
        terms = fold_loss(*arguments, **settings)
        return replace(terms, total=terms.total + torch.inf)

    for loss_of, finite in ((fold_loss, True), (infinite, False)):
        monkeypatch.setattr("esmfold_peft.training.passes.fold_loss", loss_of)
        trained.zero_grad()
        predict(trained, batch_of("ACDEFG"))[0].backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        assert bool(torch.nn.utils.get_total_norm(gradients).isfinite()) == finite


def test_what_is_drawn_follows_from_the_seed_and_the_number_of_the_sample():
    flags = ("--model.evoformer.dropout_msa", "0.3", "--model.structure.dropout", "0.3")
    trained = finetuned(*flags)

    def loss(of: FoldingModule, first: int) -> float:
        torch.rand(7)
        return predict(of, batch_of("ACDEFGHIKL"), step=4, first=first)[0].item()

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
        parameters = finetuned(*released, *flags).model.named_parameters()
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
    validated = finetuned().eval()
    both = batch_of("ACDEFGHIKLMNPQ", "ACWDRSTV")
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

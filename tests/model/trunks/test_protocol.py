"""A trunk is its own file, its section of the settings and a line of one table: nothing else."""

import ast
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from torch import nn

import esmfold_peft
from esmfold_peft.config import DataConfig, ModelConfig, TrainConfig, TrunkConfig
from esmfold_peft.config.unused import refuse_unused
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.datasets.features import features
from esmfold_peft.errors import UserError
from esmfold_peft.model.heads import AtomPLDDTHead
from esmfold_peft.model.trunks import TRUNKS
from esmfold_peft.model.trunks.base import Stack, Tracks
from esmfold_peft.protein.read import read_structure
from esmfold_peft.runs import run_directory
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.ready import load_model
from esmfold_peft.training.failures import explained
from esmfold_peft.training.optim import build_optimizer
from esmfold_peft.weights.esmfold_weights import PUBLISHED
from tests.tiny import TINY

PACKAGE = Path(esmfold_peft.__file__).parent
VALUE = 0.25
"""The value of every weight outside the language model that the toy's authors published."""


@dataclass(frozen=True)
class ToyConfig(TrunkConfig):
    """Another trunk's settings.

    Attributes:
        weights: pretrained or random.
        width: channels of the sequence track.
        recompute: compute activations again.
    """

    trunk = "toy"
    name = "toy"
    published = True
    missing_heads = ("pae",)

    weights: str = "random"
    width: int = 12
    recompute: bool = False

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.width, 8, 10


@dataclass(frozen=True)
class ToyModelConfig(ModelConfig):
    """The settings of a model that may have the trunk.

    Attributes:
        trunk: which trunk.
        toy: the toy's settings.
    """

    trunk: Literal[(*get_args(get_type_hints(ModelConfig)["trunk"]), "toy")] = "toy"  # pyright: ignore
    toy: ToyConfig = field(default_factory=ToyConfig)


@dataclass(frozen=True)
class ToyTrainConfig(TrainConfig):
    """The settings of its training.

    Attributes:
        model: the model.
    """

    model: ToyModelConfig = field(default_factory=ToyModelConfig)


class ToyStack(Stack):
    """A linear layer for the pairs and one for the structure module."""

    first_amino_acid = 0
    mean_distogram = True
    plddt_head = AtomPLDDTHead

    def __init__(self, config: ModelConfig, *, compile: bool = False) -> None:
        super().__init__(config, compile=compile)
        c_m, c_z, c_s = config.section.widths
        self.pair = nn.Linear(c_m, c_z)
        self.single = nn.Linear(c_m, c_s)

    def forward(
        self, m: torch.Tensor, z: torch.Tensor, mask: torch.Tensor, packed: Any, dropout: Any, /
    ) -> Tracks:
        z = z + self.pair(m[:, :, None] * m[:, None])
        return Tracks(m, z, self.single(m), z)


def fill(model: nn.Module, weights: str) -> None:
    """Loads what the toy's authors published."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("language_model.", "pae_head.")):
            parameter.detach().fill_(VALUE)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the toy where another trunk would be written."""
    monkeypatch.setitem(TRUNKS, "toy", ToyStack)
    monkeypatch.setitem(PUBLISHED, ToyStack, fill)
    monkeypatch.setattr(run_directory, "TrainConfig", ToyTrainConfig)


@pytest.fixture
def batch(example: Path) -> Batch:
    (file,) = example.glob("*/1ubq_A.cif.gz")
    return collate([features(read_structure(file)).crop(4, 20)], [True])


def settings(**model: Any) -> ToyTrainConfig:
    """Those of the tiny model with the toy for its trunk."""
    parts = {name: getattr(TINY.model, name) for name in ("language_model", "structure")}
    made = ToyModelConfig(**parts, c_plddt=16, max_recycles=1, **model)
    values = {name: getattr(TINY, name) for name in ("run", "data", "adapter", "engine")}
    return ToyTrainConfig(**values, model=made)


def test_another_trunk_is_built_and_folds_as_it_says(batch: Batch):
    model, _ = build_model(settings())
    assert isinstance(model.trunk.stack, ToyStack)
    assert model.trunk.sequence_embedding.shift == 0
    assert model.distogram_head.mean
    output = model.eval()(batch.aatype, batch.residue_index, batch.mask, 1)
    assert output.plddt_logits is not None
    assert output.plddt_logits.shape == (1, 20, 37, 50)
    assert output.positions.isfinite().all()


def test_a_step_trains_another_trunk_and_the_adapter_through_it(batch: Batch, tmp_path: Path):
    (tmp_path / "manifest.csv").touch()
    config = replace(settings(), run=tmp_path / "run", data=DataConfig(tmp_path))
    model, base = build_model(config)
    with torch.no_grad():  # layers that start at zero would hold the gradient back
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.05
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    output = model.train()(batch.aatype, batch.residue_index, batch.mask, 1)
    (output.positions.sum() + output.distogram_logits.square().sum()).backward()
    optimizer, _ = build_optimizer(model, config.optimizer)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-3
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if (p - before[n]).abs().max() > 1e-5}
    adapter = {name for name in before if name.startswith("language_model.adapter.")}
    assert adapter <= moved
    assert {name for name in before if name.startswith("trunk.stack.")} <= moved
    assert not {name for name in moved if name.startswith("language_model.")} - adapter

    run_directory.create_run(config, model, base)
    run_directory.export_model(config.run, model, run_directory.kept_tensors(model), base)
    loaded, found = load_model(config.run)
    assert found.model.section == config.model.toy
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name))


def test_published_weights_of_another_trunk_are_loaded_and_can_be_kept():
    config = settings(toy=ToyConfig(weights="pretrained"), freeze=("trunk", "head"))
    model, _ = build_model(config)
    assert model.published
    assert (model.trunk.stack.get_parameter("pair.weight") == VALUE).all()
    assert (model.structure_module.get_parameter("layer_norm_s.weight") == VALUE).all()
    assert not any(p.requires_grad for p in model.trunk.parameters())
    with pytest.raises(UserError, match=r"^loss\.weights\.pae: .* weights of toy have no such"):
        replace(config, loss=replace(config.loss, weights=replace(config.loss.weights, pae=0.1)))


def test_settings_of_trunks_are_checked_by_their_sections():
    config = settings()
    refuse_unused(config)
    other = replace(config.model, trunk="evoformer", toy=ToyConfig(width=6))
    with pytest.raises(UserError, match=r"^model\.toy\.width: .* with model\.trunk evoformer;"):
        refuse_unused(replace(config, model=other))
    with pytest.raises(UserError, match=r"^model\.toy\.width: 0 is less than 1"):
        ToyConfig(width=0)
    with pytest.raises(UserError, match=r"^model\.kernels: .* for the trunk evoformer only"):
        replace(config.model, kernels="openfold")
    with pytest.raises(UserError, match=r"evoformer; only published weights \(esmfold_v1, toy\)"):
        replace(config.model, trunk="evoformer", freeze=("trunk",))
    error = explained(RuntimeError("CUDA out of memory"), config)
    assert "model.toy.recompute true" in str(error)


def test_every_trunk_has_its_section():
    names = get_args(get_type_hints(ToyModelConfig)["trunk"])
    sections = ToyModelConfig().sections
    assert {*names} == {*TRUNKS} == {section.trunk for section in sections}
    assert len(sections) == len(names)
    for section in sections:
        assert getattr(ToyModelConfig(), section.name) == section
        assert hasattr(section, "weights")


def asks_for_a_name(file: Path) -> list[int]:
    """Lines that compare model.trunk with something, or name a trunk of the table."""
    tree = ast.parse(file.read_text())
    compared = [
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.Compare | ast.Match)
        for node in (
            [test.subject] if isinstance(test, ast.Match) else [test.left, *test.comparators]
        )
        if isinstance(node, ast.Attribute) and node.attr == "trunk"
    ]
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in {*TRUNKS}]
    return [node.lineno for node in (*compared, *named)]


def test_only_the_trunks_and_their_settings_know_their_names(tmp_path: Path):
    knowing = {
        str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if asks_for_a_name(file)
    }
    # Where the weights are fetched, esmfold_v1 is the name of a repository.
    assert knowing == {"config/model.py", "model/trunks/__init__.py", "weights/fetch.py"}
    wrong = tmp_path / "x.py"
    wrong.write_text('a = b.trunk == C\n"""evoformer in a text"""\nd = e("toy")\n')
    assert asks_for_a_name(wrong) == [1, 3]

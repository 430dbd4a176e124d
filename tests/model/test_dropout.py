"""Dropout acts in every pass of a training step (AF2 Suppl. 1.11.6) and in none of evaluation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from esmfold_peft.config import ModelConfig
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.output import FoldOutput
from tests.tiny import TINY

LENGTH = 11
EVOFORMER = [
    "msa_att_row.mha.linear_o",
    "pair_stack.tri_mul_out.linear_z",
    "pair_stack.tri_mul_in.linear_z",
    "pair_stack.tri_att_start.mha.linear_o",
    "pair_stack.tri_att_end.mha.linear_o",
]
ESMFOLD = [
    "seq_attention.o_proj",
    "mlp_seq.mlp.3",
    "tri_mul_out.linear_z",
    "tri_mul_in.linear_z",
    "tri_att_start.mha.linear_o",
    "tri_att_end.mha.linear_o",
    "mlp_pair.mlp.3",
]
"""The last layer of each branch of a block that has dropout."""

STRUCTURE = ["ipa_dropout", "transition.dropout"]
TRUNKS = {"evoformer": EVOFORMER, "esmfold_v1": ESMFOLD}


@pytest.fixture(scope="module")
def shaken(folding_model, tiny):
    """Makes a model of each trunk in training mode, in which no weight is zero."""

    def make(trunk: str, chunk: int | None = None) -> FoldingModel:
        model = folding_model(replace(config_of(trunk), chunk=chunk))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.train()

    def config_of(trunk: str) -> ModelConfig:
        if trunk == "evoformer":
            return replace(TINY.model, evoformer=replace(TINY.model.evoformer, blocks=1))
        esmfold = replace(tiny.esmfold, blocks=1, dropout=0.15)
        return replace(tiny, esmfold=esmfold, structure=TINY.model.structure)

    return make


def fold(model: FoldingModel, seed: int, recycles: int = 1) -> FoldOutput:
    letters = torch.arange(2 * LENGTH).view(2, LENGTH) % 20
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    torch.manual_seed(seed)
    return model(letters, torch.arange(LENGTH).expand(2, -1), mask, recycles)


def silence(model: FoldingModel, spared: str) -> None:
    """Takes away the effect of every dropout but one, named by its branch or module."""
    (block,) = model.trunk.stack.blocks
    named = dict(block.named_modules())
    for name in {*EVOFORMER, *ESMFOLD} & named.keys() - {spared}:
        for parameter in named[name].parameters():
            parameter.data.zero_()
    for name in {*STRUCTURE} - {spared}:
        dropout = model.structure_module.get_submodule(name)
        assert isinstance(dropout, nn.Dropout)
        dropout.p = 0.0


def after_recycling_in_evaluation(model: FoldingModel) -> FoldingModel:
    """Takes dropout out of the last pass, so that only that of the recycling pass is seen."""
    model.structure_module.register_forward_hook(lambda *_: model.eval() and None)
    return model


@pytest.mark.parametrize(
    ("trunk", "site"),
    [(trunk, site) for trunk, sites in TRUNKS.items() for site in (*sites, *STRUCTURE)],
)
def test_each_dropout_acts_in_the_recycling_pass_of_training_alone(shaken, trunk: str, site: str):
    model = after_recycling_in_evaluation(shaken(trunk))
    silence(model, site)
    first, second = fold(model.train(), 0), fold(model.train(), 1)
    assert not torch.allclose(first.distogram_logits, second.distogram_logits)
    first, second = fold(model.eval(), 0), fold(model.eval(), 1)
    for name in ("positions", "distogram_logits", "plddt_logits"):
        assert torch.allclose(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_sites_are_all_that_draw(shaken, trunk: str):
    model = shaken(trunk)
    silence(model, "none")
    assert torch.allclose(fold(model, 0).positions, fold(model, 1).positions)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_pass_of_training_draws_the_same_dropouts(
    shaken, chunk: int | None, trunk: str, monkeypatch: pytest.MonkeyPatch
):
    drawn: dict[bool, list[tuple[float, torch.Size]]] = {True: [], False: []}
    drop = nn.functional.dropout

    def counted(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p:
            drawn[torch.is_grad_enabled()].append((p, x.shape))
        return drop(x, p, training, inplace)

    monkeypatch.setattr(nn.functional, "dropout", counted)
    model = shaken(trunk, chunk)
    fold(model, 0)
    layers = model.structure_module.layers
    assert len(drawn[True]) == len(TRUNKS[trunk]) + layers * len(STRUCTURE)
    assert drawn[False] == drawn[True]
    fold(model, 0, recycles=2)
    assert drawn[False] == 3 * drawn[True][: len(drawn[True]) // 2]
    drawn = {True: [], False: []}
    fold(model.eval(), 0)
    with torch.no_grad():
        fold(model, 0)
    assert drawn == {True: [], False: []}

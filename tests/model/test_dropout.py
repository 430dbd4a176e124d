"""Dropout acts in every pass of a training step (AF2 Suppl. 1.11.6) and in none of evaluation."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esmfold_peft.model.dropout import Site, draw_factors
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

STRUCTURE = ["attention", "transition"]
"""The structure module's, by the names of their factors."""

TRUNKS = {"evoformer": EVOFORMER, "esmfold_v1": ESMFOLD}


def fold(model: FoldingModel, seed: int, recycles: int = 1) -> FoldOutput:
    letters = torch.arange(2 * LENGTH).view(2, LENGTH) % 20
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    torch.manual_seed(seed)
    return model(letters, torch.arange(LENGTH).expand(2, -1), mask, recycles)


def silence(model: FoldingModel, spared: str) -> None:
    """Takes away the effect of every dropout but one, named by its branch or factors."""
    (block,) = model.trunk.stack.blocks
    named = dict(block.named_modules())
    for name in {*EVOFORMER, *ESMFOLD} & named.keys() - {spared}:
        for parameter in named[name].parameters():
            parameter.data.zero_()
    sites, others = model.structure_module.dropout_sites, dict.fromkeys({*STRUCTURE} - {spared})

    def silenced(residues: int) -> Any:
        return tuple(layer._replace(**others) for layer in sites(residues))

    model.structure_module.dropout_sites = silenced


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


class Drawing(TorchDispatchMode):
    """Records every operator that draws from PyTorch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, Any, torch.Size]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = torch.get_rng_state()
        result = function(*args, **(kwargs or {}))
        if not torch.equal(torch.get_rng_state(), before):
            self.drawn.append((str(function), args[1:], result.shape))
        return result


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_pass_of_training_draws_the_same_dropouts(shaken, chunk: int | None, trunk: str):
    model = shaken(trunk, chunk)
    with Drawing() as one:
        fold(model, 0, recycles=0)
    blocks, layers = (
        part.dropout_sites(LENGTH) for part in (model.trunk.stack, model.structure_module)
    )
    sites = [*tree_leaves(blocks), *tree_leaves(layers)]
    assert len(sites) == len(TRUNKS[trunk]) + len(layers) * len(STRUCTURE)
    assert min(site.rate for site in sites) > 0
    ((name, _, shape),) = one.drawn
    numbers = sum(math.prod(site.shape) for site in sites)
    assert (name, shape) == ("aten.rand.default", (2, numbers))
    with Drawing() as three:
        fold(model, 0, recycles=2)
    assert three.drawn == 3 * one.drawn
    with Drawing() as evaluation, torch.no_grad():
        fold(model.eval(), 0)
    assert evaluation.drawn == []


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_generator_of_its_own_decides_alone(shaken, trunk: str):
    model, found = shaken(trunk), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn = model.draw_dropout(2, LENGTH, [torch.Generator().manual_seed(n) for n in (5, 6)])
        assert torch.equal(torch.get_rng_state(), before)
        found.append(drawn)
    assert len(tree_leaves(found[0])) == len(TRUNKS[trunk]) + 2 * model.structure_module.layers
    for one, other in zip(*map(tree_leaves, found), strict=True):
        torch.testing.assert_close(one, other)
    assert model.eval().draw_dropout(2, LENGTH) is None


def test_openfold3s_blocks_draw_for_themselves(folding_model):
    drawn = folding_model(replace(TINY.model, kernels="openfold")).train().draw_dropout(2, LENGTH)
    assert drawn.blocks is None
    assert len(drawn.structure) == TINY.model.structure.layers


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_factors_are_zero_at_their_rate_and_keep_the_mean(rate: float):
    factors = draw_factors(Site((1000,), rate), 100, torch.device("cpu"))
    assert (factors == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    kept = factors[factors != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - min(rate, 0.9))))
    assert draw_factors(Site((2,), 0.0), 2, factors.device) is None

"""The passes of a batch, one by one and on some chains at a time, are its forward pass."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esmfold_peft.model.dropout import PassDropout
from esmfold_peft.model.folding import FoldingModel, PassInputs
from esmfold_peft.model.output import FoldOutput
from tests.waits import no_waits

LENGTHS = (11, 8, 6)
AATYPE = (7 * torch.arange(33).view(3, 11)) % 20
INDEX = torch.arange(11).expand(3, -1)
MASK = torch.arange(11) < torch.tensor(LENGTHS)[:, None]
PARTS = ((slice(1), 11), (slice(1, 3), 8))
"""Chains of a micro-batch and its length."""

RECYCLES = 2


def in_parts(model: FoldingModel, dropout: list[PassDropout | None]) -> list[FoldOutput]:
    """The predictions of each part, with the factors of all passes for the whole batch."""
    m, packed, outputs = model.read(AATYPE, MASK), model.pack(), []
    for part, n in PARTS:
        given = [tensor[part, :n] for tensor in (m, AATYPE, INDEX, MASK)]
        factors = [drawn and drawn.rows(part, n) for drawn in dropout]
        previous = None
        for drawn in factors[:-1]:
            previous = model.recycle(PassInputs(*given, previous, packed, drawn))
            assert not any(tensor.requires_grad for tensor in previous)
        outputs.append(model.last_pass(PassInputs(*given, previous, packed, factors[-1])))
    return outputs


def seen(output: FoldOutput, row: int, n: int) -> dict[str, Tensor]:
    """The predictions of the residues of a chain."""
    assert output.distogram_logits is not None
    assert output.plddt_logits is not None
    assert output.pae_logits is not None
    return {
        "positions": output.positions[row, :n],
        "torsions": output.torsions[:, row, :n],
        "distogram": output.distogram_logits[row, :n, :n],
        "plddt": output.plddt_logits[row, :n],
        "pae": output.pae_logits[row, :n, :n],
    }


def gradients(model: FoldingModel, chains: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of a loss that is a sum over chains."""
    model.zero_grad()
    sum(value.square().mean() for chain in chains for value in chain.values()).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm().clamp(min=0.1)).detach())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("trunk", ["evoformer", "esmfold_v1"])
def test_passes_on_some_chains_at_a_time_are_the_forward_pass(shaken, trunk: str, training: bool):
    model = shaken(trunk).train(training)
    torch.manual_seed(3)
    whole = model(AATYPE, INDEX, MASK, RECYCLES)
    torch.manual_seed(3)
    dropout = [model.draw_dropout(*MASK.shape) for _ in range(RECYCLES + 1)]
    first, rest = in_parts(model, dropout)
    expected = [seen(whole, row, n) for row, n in enumerate(LENGTHS)]
    found = [seen(first, 0, LENGTHS[0]), seen(rest, 0, LENGTHS[1]), seen(rest, 1, LENGTHS[2])]
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert error(one[name], value) < 1e-5, name
    of_whole, of_parts = gradients(model, expected), gradients(model, found)
    assert of_parts.keys() == of_whole.keys()
    for name, value in of_whole.items():
        assert error(of_parts[name], value) < 1e-4, name


@pytest.mark.parametrize("trunk", ["evoformer", "esmfold_v1"])
def test_rows_of_dropout_are_those_of_chains_and_residues(shaken, trunk: str):
    drawn = shaken(trunk).draw_dropout(*MASK.shape)
    cut = drawn.rows(slice(1, 3), 8)
    for factors, rows in zip(tree_leaves(drawn), tree_leaves(cut), strict=True):
        residues = [slice(8) if size == 11 else slice(None) for size in factors.shape[1:-1]]
        assert torch.equal(rows, factors[(slice(1, 3), *residues)])


@pytest.mark.parametrize("trunk", ["evoformer", "esmfold_v1"])
def test_no_pass_makes_the_host_wait(shaken, trunk: str):
    model = shaken(trunk)
    dropout = [model.draw_dropout(*MASK.shape) for _ in range(RECYCLES + 1)]
    in_parts(model, dropout)  # tables go to a device once
    with no_waits():
        output = in_parts(model, dropout)[0]
        output.positions.sum().backward()

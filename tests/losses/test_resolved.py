import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.losses.head_losses import resolved_loss


def loss(logits: Tensor, exists: Tensor, resolved: Tensor) -> Tensor:
    return resolved_loss(logits, exists=exists, resolved=resolved)


def random_case(chains: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(chains, n, 37, generator=generator)
    exists = torch.rand(chains, n, 37, generator=generator) > 0.6
    return logits, exists, exists & (torch.rand(chains, n, 37, generator=generator) > 0.3)


def test_undecided_logits_cost_the_log_of_two():
    _, exists, resolved = random_case(2, 4)
    value = loss(torch.zeros(2, 4, 37), exists, resolved)
    assert value.tolist() == pytest.approx([math.log(2)] * 2)


def test_cost_of_three_atoms_by_hand():
    # Probability 3/4 of a resolved and of an unresolved atom, 1/4 of a resolved one.
    logits = torch.full((1, 1, 37), 50.0)
    logits[0, 0, :3] = torch.tensor([3, 3, 1 / 3]).log()
    exists = (torch.arange(37) < 3)[None, None]
    resolved = torch.zeros_like(exists)
    resolved[0, 0, [0, 2]] = True
    expected = -(math.log(0.75) + math.log(0.25) + math.log(0.25)) / 3
    assert loss(logits, exists, resolved).item() == pytest.approx(expected)


def test_agrees_with_loops():
    logits, exists, resolved = random_case(2, 3)
    ours = loss(logits, exists, resolved)
    for b in range(2):
        costs = []
        for i in range(3):
            for atom in range(37):
                if exists[b, i, atom]:
                    probability = 1 / (1 + math.exp(-logits[b, i, atom].item()))
                    share = probability if resolved[b, i, atom] else 1 - probability
                    costs.append(-math.log(share))
        assert len(costs) > 20
        assert ours[b].item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_atoms_that_do_not_exist_and_padding_count_for_nothing():
    logits, exists, resolved = random_case(1, 3)
    padded = torch.cat((logits, torch.full((1, 2, 37), 9.0)), 1)
    nothing = torch.zeros(1, 2, 37, dtype=torch.bool)
    there = torch.cat((exists, nothing), 1)
    value = loss(padded, there, torch.cat((resolved, ~nothing), 1))
    assert value.item() == pytest.approx(loss(logits, exists, resolved).item())
    leaf = padded.requires_grad_()
    loss(leaf, there, there).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad != 0, there)


def test_batch_of_two_equals_two_of_one():
    logits, exists, resolved = random_case(2, 5)
    both = loss(logits, exists, resolved)
    for b in range(2):
        rows = slice(b, b + 1)
        alone = loss(logits[rows], exists[rows], resolved[rows])
        torch.testing.assert_close(both[rows], alone, rtol=1e-6, atol=0)


def test_chain_without_atoms_costs_nothing():
    logits, exists, resolved = random_case(1, 4)
    assert loss(logits, torch.zeros_like(exists), resolved).tolist() == [0.0]


@pytest.mark.parametrize("there", [True, False])
def test_nan_in_the_prediction_stays_nan_in_its_chain(there):
    logits, exists, resolved = random_case(2, 4)
    alone = loss(logits[1:], exists[1:], resolved[1:])
    logits[0, 2, 7] = torch.nan
    exists[0, 2, 7] = there
    value = loss(logits, exists, resolved)
    assert value[0].isnan()
    torch.testing.assert_close(value[1:], alone, rtol=1e-6, atol=0)

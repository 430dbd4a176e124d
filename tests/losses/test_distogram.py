import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.losses.head_losses import distogram_loss


def pair(distance: float) -> Tensor:
    return torch.tensor([[[0.0, 0, 0], [0, distance, 0]]])


BOTH = torch.tensor([[True, True]])


def test_uniform_logits_cost_the_log_of_the_bins():
    loss = distogram_loss(torch.zeros(1, 2, 2, 64), cb=pair(8.0), mask=BOTH)
    assert loss.item() == pytest.approx(math.log(64))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(1.0, 0), (2.3125, 0), (2.32, 1), (2.625, 1), (2.63, 2), (8.0, 19), (21.68, 62), (21.7, 63)],
)
def test_bin_of_a_distance(distance, expected):
    logits = torch.full((1, 2, 2, 64), -100.0)
    logits[0, 0, 0, 0] = logits[0, 1, 1, 0] = 100
    logits[0, 0, 1, expected] = logits[0, 1, 0, expected] = 100
    assert distogram_loss(logits, cb=pair(distance), mask=BOTH).item() == 0


def test_diagonal_is_in_the_mean_as_in_af2():
    logits = torch.zeros(1, 2, 2, 64)
    logits[0, 0, 0, 0] = logits[0, 1, 1, 0] = 100
    loss = distogram_loss(logits, cb=pair(8.0), mask=BOTH)
    assert loss.item() == pytest.approx(math.log(64) / 2)


def test_agrees_with_loops():
    generator = torch.Generator().manual_seed(1)
    cb = 8 * torch.randn(2, 6, 3, generator=generator)
    logits = torch.randn(2, 6, 6, 64, generator=generator)
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False]])
    ours = distogram_loss(logits, cb=cb, mask=mask)
    for b in range(2):
        costs = []
        for i in range(6):
            for j in range(6):
                if mask[b, i] and mask[b, j]:
                    distance = math.dist(cb[b, i].tolist(), cb[b, j].tolist())
                    width = (21.6875 - 2.3125) / 62
                    column = min(max(math.ceil((distance - 2.3125) / width), 0), 63)
                    row = logits[b, i, j].double()
                    costs.append((torch.logsumexp(row, 0) - row[column]).item())
        assert len(costs) == (36, 9)[b]
        assert ours[b].item() == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_chain_without_truth_costs_nothing_whatever_its_coordinates():
    logits = torch.randn(1, 2, 2, 64, requires_grad=True)
    cb = torch.full((1, 2, 3), torch.nan)
    loss = distogram_loss(logits, cb=cb, mask=torch.tensor([[False, False]]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("known", [True, False])
def test_nan_in_the_prediction_stays_nan(known):
    logits = torch.zeros(2, 2, 2, 64)
    logits[0, 1, 1, 5] = torch.nan
    mask = torch.tensor([[True, known], [True, True]])
    loss = distogram_loss(logits, cb=pair(8.0).expand(2, 2, 3), mask=mask)
    assert loss.isnan().tolist() == [True, False]

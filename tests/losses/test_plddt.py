import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.losses.plddt import plddt_loss

UNKNOWN = torch.nan


def line(*x: float) -> Tensor:
    points = torch.zeros(1, len(x), 3)
    points[0, :, 0] = torch.tensor(x)
    return points


TRUE = line(0, 4, 8, 12)


def loss(logits: Tensor, predicted: Tensor, true: Tensor = TRUE, **change) -> Tensor:
    arguments = {
        "mask": torch.ones(true.shape[:2], dtype=torch.bool),
        "resolution": torch.tensor([2.0]),
        "resolution_range": (0.1, 3.0),
    }
    return plddt_loss(logits, predicted_ca=predicted, true_ca=true, **(arguments | change))


def sure_of(*columns: int) -> Tensor:
    logits = torch.full((1, len(columns), 50), -50.0)
    logits[0, range(len(columns)), list(columns)] = 50
    return logits


def test_uniform_logits_cost_the_log_of_the_bins():
    assert loss(torch.zeros(1, 4, 50), TRUE).item() == pytest.approx(math.log(50))


def test_target_is_the_bin_of_the_lddt_that_the_prediction_has():
    assert loss(sure_of(49, 49, 49, 49), TRUE).item() == 0
    # The last atom 1.5 Å off keeps 2 and 4 Å in its pairs: 5/6 is in bin 41, 1/2 in bin 25.
    off = line(0, 4, 8, 13.5)
    assert loss(sure_of(41, 41, 41, 25), off).item() == 0
    assert loss(sure_of(41, 41, 41, 24), off).item() == pytest.approx(100 / 4)


@pytest.mark.parametrize(
    ("resolution", "counts"),
    [(0.05, False), (0.1, True), (2.9, True), (3.0, True), (3.1, False), (UNKNOWN, False)],
)
def test_only_well_resolved_chains_count(resolution, counts):
    logits = torch.zeros(1, 4, 50, requires_grad=True)
    value = loss(logits, TRUE, resolution=torch.tensor([resolution]))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(50) if counts else 0.0)
    assert (logits.grad != 0).any() == counts


def test_filter_can_be_turned_off():
    value = loss(
        torch.zeros(1, 4, 50), TRUE, resolution=torch.tensor([UNKNOWN]), resolution_range=None
    )
    assert value.item() == pytest.approx(math.log(50))


def test_residue_without_score_has_no_target():
    # The last residue is 100 Å from the others, the one before it is not resolved.
    true, mask = line(0, 4, torch.nan, 100), torch.tensor([[True, True, False, True]])
    assert loss(sure_of(49, 49, 0, 0), line(0, 4, 8, 12), true, mask=mask).item() == 0


def test_chain_without_pairs_costs_nothing():
    logits = torch.randn(1, 4, 50, requires_grad=True)
    value = loss(logits, TRUE, mask=torch.tensor([[True, False, False, False]]))
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert (logits.grad == 0).all()


def test_coordinates_get_no_gradient_and_logits_do():
    predicted, logits = TRUE.clone().requires_grad_(), torch.zeros(1, 4, 50, requires_grad=True)
    loss(logits, predicted).sum().backward()
    assert predicted.grad is None
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("where", ["logits", "coordinates"])
def test_nan_in_the_prediction_stays_nan(known, where):
    logits, predicted = torch.zeros(1, 4, 50), TRUE.clone()
    (logits if where == "logits" else predicted)[0, 2, 0] = torch.nan
    mask = torch.tensor([[True, True, known, True]])
    assert loss(logits, predicted, mask=mask).isnan().all()

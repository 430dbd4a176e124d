import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.model.confidence import (
    aligned_error_breaks,
    expected_lddt,
    largest_aligned_error,
    predicted_aligned_error,
    predicted_tm,
)

CPU = torch.device("cpu")


def sure_of(bins: Tensor, count: int = 64) -> Tensor:
    """Logits that leave no doubt about the bin of every entry."""
    return 200.0 * torch.nn.functional.one_hot(bins, count)


def everyone(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def naive_tm(logits: Tensor, residues: list[int]) -> float:
    """Loops in double precision over the residues of one chain."""
    d0 = 1.24 * (max(len(residues), 19) - 15) ** (1 / 3) - 1.8
    best = 0.0
    for i in residues:
        total = 0.0
        for j in residues:
            probability = logits[i, j].double().softmax(0)
            for k in range(64):
                total += probability[k].item() / (1 + ((0.25 + 0.5 * k) / d0) ** 2)
        best = max(best, total / len(residues))
    return best


def test_expected_lddt_of_certainty_is_the_middle_of_its_bin():
    bins = torch.tensor([0, 24, 49])
    assert expected_lddt(sure_of(bins, 50)).tolist() == pytest.approx([0.01, 0.49, 0.99])
    assert (
        expected_lddt(torch.zeros(2, 3, 37, 50)).tolist() == [[pytest.approx([0.5] * 37)] * 3] * 2
    )


def test_expected_lddt_weighs_bins_by_their_probability():
    logits = torch.tensor([math.log(3), 0.0, -math.inf, -math.inf])
    assert expected_lddt(logits).item() == pytest.approx(0.75 * 0.125 + 0.25 * 0.375)


def test_breaks_of_64_bins_are_half_an_angstrom_apart():
    assert aligned_error_breaks(64, CPU).tolist() == [0.5 * k for k in range(63)]


def test_error_of_certainty():
    bins = torch.tensor([[0, 1], [62, 63]])[None]
    error = predicted_aligned_error(sure_of(bins))
    assert error.flatten().tolist() == [0.25, 0.75, 31.25, 31.75]
    assert predicted_aligned_error(torch.zeros(1, 2, 2, 64)).mean().item() == pytest.approx(16)


@pytest.mark.parametrize("bins", [3, 8, 64, 200])
def test_the_largest_error_is_what_certainty_of_the_last_bin_says(bins: int):
    certain = sure_of(torch.full((1, 1, 1), bins - 1), bins)
    assert predicted_aligned_error(certain).item() == largest_aligned_error(bins)


def test_error_agrees_with_loops():
    logits = 3 * torch.randn(2, 4, 4, 64, generator=torch.Generator().manual_seed(1))
    error = predicted_aligned_error(logits)
    for b, i, j in [(0, 0, 1), (0, 1, 0), (1, 3, 2)]:
        weight = [math.exp(x) for x in logits[b, i, j].tolist()]
        mean = sum(w * (0.25 + 0.5 * k) for k, w in enumerate(weight)) / sum(weight)
        assert error[b, i, j].item() == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("length", "d0"),
    [(1, 1.24 * 4 ** (1 / 3) - 1.8), (19, 1.24 * 4 ** (1 / 3) - 1.8), (23, 0.68), (42, 1.92)],
)
def test_scale_of_tm_grows_with_the_length_above_19_residues(length, d0):
    logits = sure_of(torch.full((1, length, length), 2))
    tm = predicted_tm(logits, everyone(1, length))
    assert tm.item() == pytest.approx(1 / (1 + (1.25 / d0) ** 2), rel=1e-5)


def test_tm_is_that_of_the_best_frame():
    bins = torch.full((1, 23, 23), 63)
    bins[0, 7, :10] = 0
    bins[0, :, 4] = 0
    near, far = (1 / (1 + (error / 0.68) ** 2) for error in (0.25, 31.75))
    tm = predicted_tm(sure_of(bins), everyone(1, 23))
    assert tm.item() == pytest.approx((10 * near + 13 * far) / 23, rel=1e-5)


def test_tm_agrees_with_loops_on_chains_of_other_lengths():
    logits = 3 * torch.randn(3, 24, 24, 64, generator=torch.Generator().manual_seed(2))
    mask = everyone(3, 24)
    mask[1, 5:] = False
    mask[2, [0, 11]] = False
    tm = predicted_tm(logits, mask)
    for b in range(3):
        expected = naive_tm(logits[b], mask[b].nonzero()[:, 0].tolist())
        assert tm[b].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("padding", [math.nan, math.inf, 1e4])
def test_padding_may_be_anything(padding):
    alone = torch.randn(1, 6, 6, 64, generator=torch.Generator().manual_seed(3))
    padded = torch.full((2, 9, 9, 64), padding)
    padded[..., 1:] = 0
    padded[0, :6, :6] = alone[0]
    mask = torch.arange(9) < torch.tensor([[6], [0]])
    tm = predicted_tm(padded, mask)
    assert tm[:1].tolist() == pytest.approx(predicted_tm(alone, everyone(1, 6)).tolist(), rel=1e-6)
    assert tm[1].isnan()


@pytest.mark.parametrize("place", [(0, 0), (5, 2)])
def test_nan_of_a_chain_stays_in_it(place):
    logits = torch.zeros(2, 6, 6, 64)
    logits[0, *place, 9] = torch.nan
    assert predicted_tm(logits, everyone(2, 6)).isnan().tolist() == [True, False]
    error = predicted_aligned_error(logits)
    assert error.isnan().sum() == 1
    assert error[0][place].isnan()


def test_same_under_autocast():
    logits = torch.randn(1, 5, 5, 64, generator=torch.Generator().manual_seed(4))
    plain = predicted_aligned_error(logits), predicted_tm(logits, everyone(1, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = predicted_aligned_error(logits), predicted_tm(logits, everyone(1, 5))
    for one, two in zip(plain, mixed, strict=True):
        assert two.dtype == torch.float32
        assert torch.equal(one, two)

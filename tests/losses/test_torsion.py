import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.geometry.torsions import alternative_torsions
from esmfold_peft.losses.torsion import angle_norm_loss, chi_loss
from esmfold_peft.protein.residues import encode


def torsions(*degrees: float) -> Tensor:
    """(sin, cos) of one residue's seven torsions."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angle.sin(), angle.cos()), -1)[None, None]


def chi(letter: str, predicted: Tensor, true: Tensor, known: list[int]) -> float:
    aatype = torch.tensor(encode(letter))[None]
    mask = torch.zeros(1, 1, 7, dtype=torch.bool)
    mask[..., known] = True
    alternative = alternative_torsions(aatype, true)
    return chi_loss(predicted[None], true=true, alternative=alternative, mask=mask).item()


TRUE = torsions(180, -60, 140, 60, 20, 0, 0)


@pytest.mark.parametrize(
    ("turn", "expected"), [(0, 0.0), (60, 1.0), (90, 2.0), (180, 4.0), (-90, 2.0)]
)
def test_error_of_a_turned_chi1(turn, expected):
    predicted = torsions(180, -60, 140, 60 + turn, 20, 0, 0)
    # (2 sin(turn / 2))², halved since χ2 is right.
    assert chi("N", predicted, TRUE, [3, 4]) == pytest.approx(expected / 2, abs=1e-12)
    assert chi("N", predicted, TRUE, [3]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("letter", "expected"), [("D", 0.0), ("F", 0.0), ("Y", 0.0), ("N", 4.0)])
def test_symmetric_chi2_may_be_turned_by_pi(letter, expected):
    predicted = torsions(180, -60, 140, 60, 200, 0, 0)
    assert chi(letter, predicted, TRUE, [3, 4]) == pytest.approx(expected / 2, abs=1e-12)


def test_alternatives_give_the_same_loss():
    generator = torch.Generator().manual_seed(1)
    aatype = torch.tensor(encode("DEFYNQWK"))[None]
    angles = torch.randn(3, 1, 8, 7, 2, generator=generator).double()
    predicted, true = angles / angles.norm(dim=-1, keepdim=True), angles[0]
    true = true / true.norm(dim=-1, keepdim=True) @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double()
    other = alternative_torsions(aatype, true)
    mask = torch.ones(1, 8, 7, dtype=torch.bool)
    one = chi_loss(predicted, true=true, alternative=other, mask=mask)
    two = chi_loss(predicted, true=other, alternative=true, mask=mask)
    assert not torch.equal(true, other)
    assert torch.equal(one, two)


def test_backbone_torsions_are_not_supervised():
    assert chi("N", torsions(0, 0, 0, 60, 20, 0, 0), TRUE, [0, 1, 2, 3, 4]) == 0


def test_chi_loss_agrees_with_loops(cases):
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYVX", "WDG")
    predicted = cases.perturb(output, 1.0).torsions
    truth = ground_truth(batch)
    ours = chi_loss(
        predicted,
        true=truth.torsions,
        alternative=truth.alternative_torsions,
        mask=truth.torsion_mask,
    )
    for i, sequence in enumerate(("ARNDCQEGHILKMFPSTWYVX", "WDG")):
        total, count = 0.0, 0
        for layer in range(len(predicted)):
            for j, letter in enumerate(sequence):
                for x in range(4):
                    if not truth.torsion_mask[i, j, 3 + x]:
                        continue
                    sin, cos = truth.torsions[i, j, 3 + x].tolist()
                    here = predicted[layer, i, j, 3 + x].tolist()
                    errors = [(here[0] - sin) ** 2 + (here[1] - cos) ** 2]
                    if (letter, x) in {("D", 1), ("E", 2), ("F", 1), ("Y", 1)}:
                        errors.append((here[0] + sin) ** 2 + (here[1] + cos) ** 2)
                    total, count = total + min(errors), count + 1
        assert count == 3 * {0: 39, 1: 4}[i]
        assert ours[i].item() == pytest.approx(total / count, rel=1e-5)


def test_chi_loss_of_a_backbone_is_zero_with_zero_gradient(cases):
    batch, output = cases.make("ARNDCQ")
    truth = ground_truth(cases.backbone_only(batch))
    predicted = cases.perturb(output, 1.0).torsions.requires_grad_()
    true = torch.where(truth.torsion_mask[..., None], truth.torsions, torch.nan)
    loss = chi_loss(predicted, true=true, alternative=true, mask=truth.torsion_mask)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (predicted.grad == 0).all()


@pytest.mark.parametrize("known", [True, False])
def test_nan_in_the_prediction_stays_nan(known):
    predicted = TRUE.clone()
    predicted[..., 5, 0] = torch.nan
    assert math.isnan(chi("R", predicted, TRUE, [3, 4, 5] if known else [3, 4]))
    loss = angle_norm_loss(predicted[None], torch.tensor([[known]]))
    assert loss.isnan().all()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (3.0, 2.0), (0.25, 0.75)])
def test_norm_away_from_one_costs_its_distance(factor, expected):
    loss = angle_norm_loss(factor * TRUE[None], torch.tensor([[True]]))
    assert loss.item() == pytest.approx(expected, abs=3e-6)


def test_angle_norm_covers_every_real_residue_and_layer():
    # Norm 3 in the first of two layers, the padding far off.
    angles = torch.stack((3 * TRUE, TRUE)).expand(2, 1, 4, 7, 2).clone()
    angles[:, :, 3] = 100
    loss = angle_norm_loss(angles, torch.tensor([[True, True, True, False]]))
    assert loss.item() == pytest.approx(1.0, abs=3e-6)


def test_gradients_are_those_of_the_values():
    generator = torch.Generator().manual_seed(2)
    angles = torch.randn(2, 1, 3, 7, 2, generator=generator).double().requires_grad_()
    true = torch.randn(1, 3, 7, 2, generator=generator).double()
    mask = torch.rand(1, 3, 7, generator=generator) > 0.3
    assert torch.autograd.gradcheck(
        lambda x: chi_loss(x, true=true, alternative=-true, mask=mask), (angles,)
    )
    assert torch.autograd.gradcheck(
        lambda x: angle_norm_loss(x, torch.tensor([[True, False, True]])), (angles,)
    )
    zero = torch.zeros(1, 1, 1, 7, 2, requires_grad=True)
    angle_norm_loss(zero, torch.tensor([[True]])).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()

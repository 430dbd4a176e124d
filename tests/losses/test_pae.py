import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.head_losses import pae_loss


def two(x: float) -> Rigid:
    """One chain of two residues, upright, x apart."""
    return Rigid(torch.eye(3).expand(1, 2, 3, 3), torch.tensor([[[0.0, 0, 0], [x, 0, 0]]]))


def loss(logits: Tensor, predicted: Rigid, true: Rigid, **change) -> Tensor:
    mask = {"mask": torch.ones(true.shape, dtype=torch.bool)}
    return pae_loss(logits, predicted_frames=predicted, true_frames=true, **(mask | change))


def sure_of(*rows: list[int]) -> Tensor:
    return 100.0 * torch.nn.functional.one_hot(torch.tensor(rows)[None], 64)


def cloud(cases, chains: int, residues: int, seed: int) -> Rigid:
    """Random frames with origins within some 10 Å, as doubles."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(cases.random_frames(generator, chains, residues).rotation.double())[
        0
    ]
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    return Rigid(rotation, 6 * torch.randn(chains, residues, 3, generator=generator).double())


def move(frames: Rigid, seed: int) -> Rigid:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double()
    rotation = torch.linalg.qr(matrix)[0]
    return Rigid(rotation * torch.linalg.det(rotation), torch.full((3,), 11.0).double()).compose(
        frames
    )


def random_logits(chains: int, n: int) -> Tensor:
    return torch.randn(chains, n, n, 64, generator=torch.Generator().manual_seed(5))


def test_uniform_logits_cost_the_log_of_the_bins():
    assert loss(torch.zeros(1, 2, 2, 64), two(4), two(9)).item() == pytest.approx(math.log(64))


@pytest.mark.parametrize(
    ("error", "column"),
    [(0, 0), (0.25, 1), (0.5, 1), (0.75, 2), (8.2, 17), (31, 62), (31.1, 63), (500, 63)],
)
def test_bin_of_an_error(error, column):
    logits = sure_of([0, column], [column, 0])
    assert loss(logits, two(10 + error), two(10)).item() == 0


def test_rows_are_frames_and_columns_are_the_residues_seen():
    # A quarter turn of residue 0 about z puts residue 1, 4 Å away, off by 4 √2 = 5.66 Å; residue 1
    # sees residue 0 where it was.
    rotation = torch.eye(3).repeat(1, 2, 1, 1)
    rotation[0, 0] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    predicted = Rigid(rotation, two(4).translation)
    assert loss(sure_of([0, 12], [0, 0]), predicted, two(4)).item() == 0
    assert loss(sure_of([0, 0], [12, 0]), predicted, two(4)).item() == pytest.approx(2 * 100 / 4)


def test_agrees_with_loops(cases):
    predicted, true = cloud(cases, 2, 6, seed=1), cloud(cases, 2, 6, seed=2)
    logits = random_logits(2, 6)
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False]])
    ours = loss(logits, predicted, true, mask=mask)
    for b in range(2):
        costs = []
        for i in range(6):
            for j in range(6):
                if mask[b, i] and mask[b, j]:
                    here, there = (
                        frames.rotation[b, i].T
                        @ (frames.translation[b, j] - frames.translation[b, i])
                        for frames in (predicted, true)
                    )
                    error = (here - there).norm().item()
                    column = sum(error > 0.5 * k for k in range(63))
                    row = logits[b, i, j].double()
                    costs.append((torch.logsumexp(row, 0) - row[column]).item())
        assert len(costs) == (36, 9)[b]
        assert ours[b].item() == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_rigid_motion_of_truth_or_prediction_changes_nothing(cases):
    predicted, true = cloud(cases, 1, 7, seed=3), cloud(cases, 1, 7, seed=4)
    logits = random_logits(1, 7)
    # Rounding may lift the diagonal out of the bin of exactly 0: give all its bins the same cost.
    logits.diagonal(dim1=1, dim2=2).zero_()
    before = loss(logits, predicted, true)
    assert loss(logits, move(predicted, 6), true).item() == pytest.approx(before.item(), rel=1e-9)
    assert loss(logits, predicted, move(true, 7)).item() == pytest.approx(before.item(), rel=1e-9)


def test_batch_of_two_and_padding_change_nothing(cases):
    predicted, true = cloud(cases, 2, 6, seed=1), cloud(cases, 2, 6, seed=2)
    logits = random_logits(2, 6)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    true.translation[1, 4:] = torch.nan
    true.rotation[1, 4:] = torch.nan
    both = loss(logits, predicted, true, mask=mask)
    for b, n in ((0, 6), (1, 4)):
        part = (slice(b, b + 1), slice(n))
        alone = loss(logits[b : b + 1, :n, :n], predicted[part], true[part])
        assert both[b].item() == pytest.approx(alone.item(), rel=1e-6)


def test_chain_without_truth_costs_nothing_whatever_its_coordinates():
    logits = random_logits(1, 2).requires_grad_()
    value = loss(logits, two(4), two(torch.nan), mask=torch.tensor([[False, False]]))
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_coordinates_get_no_gradient_and_logits_do():
    predicted = Rigid(two(4).rotation.clone().requires_grad_(), two(4).translation.requires_grad_())
    logits = torch.zeros(1, 2, 2, 64, requires_grad=True)
    loss(logits, predicted, two(9)).sum().backward()
    assert predicted.rotation.grad is None
    assert predicted.translation.grad is None
    assert logits.grad is not None
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("where", ["logits", "translation", "rotation"])
@pytest.mark.parametrize("known", [True, False])
def test_nan_in_the_prediction_stays_nan_in_its_chain(where, known):
    logits = torch.zeros(2, 3, 3, 64)
    frames = Rigid(torch.eye(3).repeat(2, 3, 1, 1), torch.arange(18.0).view(2, 3, 3))
    broken = Rigid(frames.rotation.clone(), frames.translation.clone())
    tensors = {"logits": logits, "translation": broken.translation, "rotation": broken.rotation}
    tensors[where][0, 2] = torch.nan
    mask = torch.tensor([[True, True, known], [True, True, True]])
    value = loss(logits, broken, frames, mask=mask)
    assert value.isnan().tolist() == [True, False]
    assert value[1].item() == pytest.approx(math.log(64))


def test_same_under_autocast(cases):
    predicted, true = cloud(cases, 1, 6, seed=1).float(), cloud(cases, 1, 6, seed=2).float()
    logits = random_logits(1, 6)
    plain = loss(logits, predicted, true)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(logits, predicted, true)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)

import biotite.structure as struc
import pytest
import torch

from esmfold_peft.geometry.superposition import rmsd, superpose


@pytest.fixture
def points() -> torch.Tensor:
    torch.manual_seed(0)
    return 10 * torch.randn(3, 30, 3)


def everything(points: torch.Tensor) -> torch.Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool)


def test_a_rigid_motion_is_found_again(points, motion):
    found = superpose(points, motion.apply(points), everything(points))
    torch.testing.assert_close(found.rotation, motion.rotation.expand(3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.translation, motion.translation.expand(3, 3), atol=1e-4, rtol=0
    )
    assert rmsd(points, motion.apply(points), everything(points)).max() < 1e-4


def test_a_mirror_image_is_not_superposed_by_reflection(points):
    mirror = points * torch.tensor([1.0, 1.0, -1.0])
    found = superpose(points, mirror, everything(points))
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(3))
    assert rmsd(points, mirror, everything(points)).min() > 5


def test_rmsd_is_that_of_biotite(points):
    noisy = points.flip(0) + torch.randn(3, 30, 3)
    noisy[0] = points[0] + torch.randn(30, 3)
    ours = rmsd(points, noisy, everything(points))
    for i in range(3):
        fitted, _ = struc.superimpose(noisy[i].double().numpy(), points[i].double().numpy())
        assert abs(ours[i].item() - struc.rmsd(noisy[i].double().numpy(), fitted)) < 1e-4


def test_points_on_a_line_give_a_rotation(motion):
    line = torch.arange(5.0)[None, :, None] * torch.tensor([1.0, 2.0, 3.0])
    found = superpose(line, motion.apply(line), everything(line))
    torch.testing.assert_close(
        found.rotation @ found.rotation.mT, torch.eye(3)[None], atol=1e-5, rtol=0
    )
    assert rmsd(line, motion.apply(line), everything(line)).item() < 1e-4


def test_masked_points_do_not_count(points, motion):
    target = motion.apply(points)
    mask = everything(points)
    mask[:, 20:] = False
    target[:, 20:] = 1000.0
    assert rmsd(points, target, mask).max() < 1e-4
    assert rmsd(points, target, everything(points)).min() > 100


def test_a_chain_without_points_has_no_rmsd_and_stays(points):
    nothing = torch.zeros(3, 30, dtype=torch.bool)
    assert torch.isnan(rmsd(points, points + 1, nothing)).all()
    motionless = superpose(points, points + 1, nothing)
    torch.testing.assert_close(motionless.apply(points[:, 0]), points[:, 0])

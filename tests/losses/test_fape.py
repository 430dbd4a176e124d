import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.fape import backbone_fape, fape, sidechain_fape

NO_CLAMP = torch.tensor([math.inf])
YES = torch.ones(1, 1, dtype=torch.bool)
ORIGIN = Rigid.identity(1, 1)


def cloud(cases, chains: int, frames: int, points: int, seed: int) -> tuple[Rigid, Tensor]:
    """Random frames and points within some 10 Å, as doubles."""
    generator = torch.Generator().manual_seed(seed)
    rotation = cases.random_frames(generator, chains, frames).rotation.double()
    rotation = torch.linalg.qr(rotation)[0]
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    origin = 5 * torch.randn(chains, frames, 3, generator=generator).double()
    return Rigid(rotation, origin), 5 * torch.randn(chains, points, 3, generator=generator).double()


def naive_fape(predicted, true, frame_mask, points, true_points, point_mask, clamp) -> float:
    total, count = 0.0, 0
    for f in range(len(frame_mask)):
        for p in range(len(point_mask)):
            if frame_mask[f] and point_mask[p]:
                here = predicted.rotation[f].T @ (points[p] - predicted.translation[f])
                there = true.rotation[f].T @ (true_points[p] - true.translation[f])
                error = math.sqrt(float((here - there) @ (here - there)) + 1e-4)
                total += min(error, clamp) / 10
                count += 1
    return total / count


def move(frames: Rigid, points: Tensor, motion: Rigid) -> tuple[Rigid, Tensor]:
    return motion.compose(frames), motion.apply(points)


@pytest.mark.parametrize("moved", [0.0, 3.0, 9.0])
def test_one_point_moved(moved):
    true = torch.zeros(1, 1, 3)
    predicted = torch.tensor([[[0.0, moved, 0.0]]])
    loss = fape(ORIGIN, ORIGIN, YES, predicted, true, YES, clamp=NO_CLAMP)
    assert loss.item() == pytest.approx(math.sqrt(moved**2 + 1e-4) / 10)


def test_perfect_prediction_costs_root_eps_over_scale(cases):
    frames, points = cloud(cases, 2, 4, 6, seed=1)
    mask = torch.ones(2, 6, dtype=torch.bool)
    clamp = torch.full((2,), 10.0, dtype=torch.float64)
    loss = fape(frames, frames, mask[:, :4], points, points, mask, clamp=clamp)
    assert loss.tolist() == pytest.approx([0.001, 0.001], rel=1e-12)


def test_each_chain_has_its_own_clamp():
    frames = Rigid.identity(2, 1)
    mask = torch.ones(2, 1, dtype=torch.bool)
    predicted = torch.tensor([[[25.0, 0, 0]], [[25.0, 0, 0]]])
    clamp = torch.tensor([10.0, math.inf])
    loss = fape(frames, frames, mask, predicted, torch.zeros(2, 1, 3), mask, clamp=clamp)
    assert loss.tolist() == pytest.approx([1.0, 2.5])


def test_turned_frame_moves_the_points_seen_from_it():
    # A quarter turn about z takes (4, 0, 0) to a place 4 √2 Å away; the frame's own origin stays.
    turned = Rigid(torch.tensor([[[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]]]), torch.zeros(1, 1, 3))
    points = torch.tensor([[[4.0, 0, 0], [0, 0, 0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = fape(turned, ORIGIN, YES, points, points, mask, clamp=NO_CLAMP)
    assert loss.item() == pytest.approx((math.sqrt(32 + 1e-4) + 0.01) / 2 / 10)


def test_in_single_precision_nothing_is_lost_far_from_the_origin(cases):
    frames, points = cloud(cases, 1, 5, 7, seed=3)
    mask = torch.ones(1, 7, dtype=torch.bool)
    there = Rigid(frames.rotation, (frames.translation + 2**15).float().double())
    true_points = (points + 2**15).float().double()
    points = points + 0.1

    def loss(kind: torch.dtype) -> float:
        one, two = (Rigid(f.rotation.to(kind), f.translation.to(kind)) for f in (frames, there))
        given = one, two, mask[:, :5], points.to(kind), true_points.to(kind), mask
        return fape(*given, clamp=NO_CLAMP.to(kind)).item()

    assert loss(torch.float32) == pytest.approx(loss(torch.float64), rel=1e-5)


@pytest.mark.parametrize("clamp", [4.0, math.inf])
def test_agrees_with_loops(cases, clamp):
    true, true_points = cloud(cases, 2, 5, 7, seed=2)
    predicted, points = cloud(cases, 2, 5, 7, seed=3)
    generator = torch.Generator().manual_seed(4)
    frame_mask = torch.rand(2, 5, generator=generator) > 0.3
    point_mask = torch.rand(2, 7, generator=generator) > 0.3
    clamps = torch.full((2,), clamp, dtype=torch.float64)
    ours = fape(predicted, true, frame_mask, points, true_points, point_mask, clamp=clamps)
    for i in range(2):
        masks = frame_mask[i], point_mask[i]
        expected = naive_fape(
            predicted[i], true[i], masks[0], points[i], true_points[i], masks[1], clamp
        )
        assert ours[i].item() == pytest.approx(expected, rel=1e-12)


def test_rigid_motion_of_truth_or_prediction_changes_nothing(cases):
    true, true_points = cloud(cases, 1, 5, 7, seed=2)
    predicted, points = cloud(cases, 1, 5, 7, seed=3)
    motion = cloud(cases, 1, 1, 1, seed=5)[0]
    mask = torch.ones(1, 7, dtype=torch.bool)

    def loss(predicted, points, true, true_points):
        clamp = NO_CLAMP.double()
        return fape(predicted, true, mask[:, :5], points, true_points, mask, clamp=clamp).item()

    before = loss(predicted, points, true, true_points)
    assert before > 0.5
    moved = move(true, true_points, motion)
    assert loss(predicted, points, *moved) == pytest.approx(before, rel=1e-10)
    moved = move(predicted, points, motion)
    assert loss(*moved, true, true_points) == pytest.approx(before, rel=1e-10)


def test_mirror_image_is_not_the_same_structure(cases):
    batch, _ = cases.make("ACDEFGHIKL")
    truth = ground_truth(batch)
    mirror = torch.tensor([1.0, 1.0, -1.0])
    reflected = ground_truth(replace(batch, positions=batch.positions * mirror))
    distance = torch.cdist(truth.ca, truth.ca)
    torch.testing.assert_close(torch.cdist(reflected.ca, reflected.ca), distance)
    frames = Rigid.stack([reflected.backbone_frames])
    perfect = Rigid.stack([truth.backbone_frames])
    assert backbone_fape(perfect, truth, clamp=NO_CLAMP).item() == pytest.approx(0.001, rel=1e-3)
    assert backbone_fape(frames, truth, clamp=NO_CLAMP).item() > 0.2


def test_masked_truth_may_be_anything(cases):
    true, true_points = cloud(cases, 1, 3, 4, seed=2)
    predicted, points = cloud(cases, 1, 3, 4, seed=3)
    frame_mask = torch.tensor([[True, False, True]])
    point_mask = torch.tensor([[True, True, False, True]])
    clamp = NO_CLAMP.double()

    def loss() -> Tensor:
        leaf = points.clone().requires_grad_()
        value = fape(predicted, true, frame_mask, leaf, true_points, point_mask, clamp=clamp)
        value.sum().backward()
        assert leaf.grad is not None
        return torch.cat((value.detach(), leaf.grad.flatten()))

    before = loss()
    true_points[:, 2] = torch.nan
    true.rotation[:, 1], true.translation[:, 1] = torch.nan, torch.inf
    assert before.isfinite().all()
    assert torch.equal(loss(), before)


@pytest.mark.parametrize("nothing", ["frames", "points"])
def test_chain_without_truth_costs_nothing_and_moves_nothing(cases, nothing):
    true, true_points = cloud(cases, 1, 3, 4, seed=2)
    predicted, points = cloud(cases, 1, 3, 4, seed=3)
    mask = torch.ones(1, 4, dtype=torch.bool)
    frame_mask = mask[:, :3] & (nothing != "frames")
    point_mask = mask & (nothing != "points")
    points.requires_grad_()
    loss = fape(predicted, true, frame_mask, points, true_points, point_mask, clamp=NO_CLAMP)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (points.grad == 0).all()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("clamp", [10.0, math.inf])
def test_nan_in_the_prediction_stays_nan(cases, known, clamp):
    true, true_points = cloud(cases, 2, 3, 4, seed=2)
    points = true_points.clone()
    points[0, 1] = torch.nan
    mask = torch.ones(2, 4, dtype=torch.bool)
    point_mask = mask.clone()
    point_mask[0, 1] = known
    clamps = torch.full((2,), clamp, dtype=torch.float64)
    loss = fape(true, true, mask[:, :3], points, true_points, point_mask, clamp=clamps)
    assert loss.isnan().tolist() == [True, False]


def test_gradient_is_that_of_the_value(cases):
    true, true_points = cloud(cases, 1, 2, 3, seed=2)
    predicted, points = cloud(cases, 1, 2, 3, seed=3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    clamp = torch.tensor([12.0], dtype=torch.float64)

    def loss(rotation: Tensor, translation: Tensor, points: Tensor) -> Tensor:
        frames = Rigid(rotation, translation)
        return fape(frames, true, mask[:, :2], points, true_points, mask, clamp=clamp)

    inputs = (predicted.rotation, predicted.translation, points)
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


def test_gradient_of_a_perfect_prediction_is_finite():
    points = torch.zeros(1, 1, 3, requires_grad=True)
    fape(ORIGIN, ORIGIN, YES, points, torch.zeros(1, 1, 3), YES, clamp=NO_CLAMP).sum().backward()
    assert (points.grad == 0).all()


def test_autocast_changes_nothing(cases):
    batch, output = cases.make("ACDEFGHIKL")
    output = cases.perturb(output, 2.0)
    truth = ground_truth(batch)

    def losses() -> Tensor:
        backbone = backbone_fape(output.frames, truth, clamp=NO_CLAMP)
        sidechain = sidechain_fape(output.sidechain_frames, output.positions, truth.atoms)
        return torch.cat((backbone, sidechain))

    before = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(losses(), before)


def test_backbone_fape_is_the_mean_over_layers(cases):
    batch, output = cases.make("ACDEFGHIKL")
    truth = ground_truth(batch)
    perfect, bad = output.frames[0], cases.perturb(output, 4.0).frames[0]
    mixed = backbone_fape(Rigid.stack([perfect, bad, bad]), truth, clamp=NO_CLAMP)
    one, two = (
        backbone_fape(Rigid.stack([frames]), truth, clamp=NO_CLAMP) for frames in (perfect, bad)
    )
    assert two.item() > 0.3
    assert mixed.item() == pytest.approx((one.item() + 2 * two.item()) / 3, rel=1e-5)


def test_backbone_fape_agrees_with_loops(cases):
    batch, output = cases.make("ACDEFGHIKL")
    batch.atom_mask[0, 3, 2] = False
    batch.atom_mask[0, 7] = False
    frames = cases.perturb(output, 4.0).frames[:1]
    truth = ground_truth(batch)
    known = torch.ones(10, dtype=torch.bool)
    known[[3, 7]] = False
    ours = backbone_fape(frames, truth, clamp=torch.tensor([10.0]))
    predicted, true = frames[0, 0], truth.backbone_frames[0]
    expected = naive_fape(
        predicted, true, known, predicted.translation, true.translation, known, 10.0
    )
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_sidechain_fape_is_fape_of_all_atoms_in_all_known_frames(cases):
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYVX", "WWGA")
    truth = ground_truth(batch).atoms
    worse = cases.perturb(output, 2.0)
    positions = [worse.positions.clone().requires_grad_() for _ in range(2)]
    rotations = [worse.sidechain_frames.rotation.clone().requires_grad_() for _ in range(2)]
    frames = [Rigid(r, worse.sidechain_frames.translation) for r in rotations]

    def flat(rigid: Rigid) -> Rigid:
        return Rigid(rigid.rotation.flatten(1, 2), rigid.translation.flatten(1, 2))

    ours = sidechain_fape(frames[0], positions[0], truth)
    whole = fape(
        flat(frames[1]),
        flat(truth.group_frames),
        truth.group_mask.flatten(1, 2),
        positions[1].flatten(1, 2),
        truth.positions.flatten(1, 2),
        truth.atom_mask.flatten(1, 2),
        clamp=torch.full((2,), 10.0),
    )
    torch.testing.assert_close(ours, whole)
    assert (whole > 0.2).all()
    ours.sum().backward()
    whole.sum().backward()
    torch.testing.assert_close(positions[0].grad, positions[1].grad)
    torch.testing.assert_close(rotations[0].grad, rotations[1].grad)
    assert (positions[0].grad[batch.atom_mask] != 0).any(-1).all()


def test_sidechain_fape_of_the_perfect_prediction(cases):
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYVX")
    truth = ground_truth(batch)
    loss = sidechain_fape(output.sidechain_frames, output.positions, truth.atoms)
    assert loss.item() == pytest.approx(0.001, rel=0.05)


def test_sidechain_fape_is_cut_at_ten_angstrom(cases):
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYV")
    truth = ground_truth(batch)
    loss = sidechain_fape(output.sidechain_frames, output.positions + 500, truth.atoms)
    assert loss.item() == pytest.approx(1.0)


def test_sidechain_fape_of_a_backbone_uses_its_backbone_frames_and_atoms(cases):
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYV")
    worse = cases.perturb(output, 2.0)
    truth = ground_truth(cases.backbone_only(batch)).atoms
    # The backbone and, through O, ψ: the frames of χ need atoms that are not there.
    assert truth.group_mask.sum((0, 1)).tolist() == [20, 0, 0, 20, 0, 0, 0, 0]
    positions = worse.positions.clone().requires_grad_()
    loss = sidechain_fape(worse.sidechain_frames, positions, truth)
    loss.sum().backward()
    assert 0.1 < loss.item() < 1
    assert (positions.grad[:, :, :4] != 0).any(-1).all()
    assert (positions.grad[:, :, 4:] == 0).all()

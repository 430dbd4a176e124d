import pytest
import torch
from torch import Tensor

from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.geometry.frames import rigid_group_frames
from esmfold_peft.losses.naming import rename_ambiguous
from esmfold_peft.protein.residues import ATOM14

ALL = "ARNDCQEGHILKMFPSTWYV"


def swapped(positions: Tensor, residue: int, *pairs: tuple[int, ...]) -> Tensor:
    """Exchanges columns of one residue of the first chain."""
    positions = positions.clone()
    for one, two in pairs:
        positions[0, residue, [one, two]] = positions[0, residue, [two, one]]
    return positions


def assert_equal(one: GroundTruth, two: GroundTruth) -> None:
    for name in ("positions", "atom_mask", "group_mask"):
        assert torch.equal(getattr(one.atoms, name), getattr(two.atoms, name))
    for name in ("rotation", "translation"):  # computed
        ours, theirs = (getattr(each.atoms.group_frames, name) for each in (one, two))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("letter", "names"),
    [
        ("D", [("OD1", "OD2")]),
        ("E", [("OE1", "OE2")]),
        ("F", [("CD1", "CD2"), ("CE1", "CE2")]),
        ("Y", [("CD1", "CD2"), ("CE1", "CE2")]),
    ],
)
def test_names_follow_the_prediction(cases, letter, names):
    batch, output = cases.make(f"AG{letter}LK")
    pairs = [tuple(ATOM14[letter].index(name) for name in pair) for pair in names]
    predicted = swapped(output.positions, 2, *pairs)
    truth = ground_truth(batch)
    renamed = rename_ambiguous(truth, predicted)
    assert torch.equal(renamed.atoms.positions, swapped(batch.positions, 2, *pairs))
    assert torch.equal(renamed.alternative.positions, batch.positions)
    assert not torch.equal(renamed.atoms.positions, truth.atoms.positions)
    frames, mask = rigid_group_frames(batch.aatype, renamed.atoms.positions, batch.atom_mask)
    assert torch.equal(renamed.atoms.group_frames.rotation, frames.rotation)
    assert torch.equal(renamed.atoms.group_mask, mask)
    assert not torch.equal(frames.rotation, truth.atoms.group_frames.rotation)


def test_right_names_stay(cases):
    batch, output = cases.make(ALL)
    truth = ground_truth(batch)
    assert_equal(rename_ambiguous(truth, output.positions), truth)


def test_names_of_other_residues_are_not_exchanged(cases):
    batch, output = cases.make("NQRL")
    truth = ground_truth(batch)
    asn = ATOM14["N"].index("OD1"), ATOM14["N"].index("ND2")
    assert_equal(rename_ambiguous(truth, swapped(output.positions, 0, asn)), truth)


def test_renaming_twice_changes_nothing_more(cases):
    batch, output = cases.make("DEFYDEFYW", seed=2)
    generator = torch.Generator().manual_seed(1)
    predicted = output.positions + torch.randn(output.positions.shape, generator=generator)
    once = rename_ambiguous(ground_truth(batch), predicted)
    assert_equal(rename_ambiguous(once, predicted), once)


def test_either_naming_in_the_file_gives_the_same_renamed_truth(cases):
    batch, output = cases.make("ADKEL")
    predicted = output.positions + 0.5 * torch.randn(
        output.positions.shape, generator=torch.Generator().manual_seed(3)
    )
    one = rename_ambiguous(ground_truth(batch), predicted)
    pair = ATOM14["D"].index("OD1"), ATOM14["D"].index("OD2")
    batch.positions[:] = swapped(batch.positions, 1, pair)
    two = rename_ambiguous(ground_truth(batch), predicted)
    assert_equal(one, two)


def test_agrees_with_loops_over_distances(cases):
    batch, output = cases.make("DEFYADEFYW", seed=4)
    batch.atom_mask[0, 1, 3:] = False
    truth = ground_truth(batch)
    generator = torch.Generator().manual_seed(6)
    predicted = output.positions + 6 * torch.randn(output.positions.shape, generator=generator)
    renamed = rename_ambiguous(truth, predicted)
    columns = {"D": {6: 7}, "E": {7: 8}, "F": {6: 7, 8: 9}, "Y": {6: 7, 8: 9}}
    columns = {key: value | {b: a for a, b in value.items()} for key, value in columns.items()}
    sequence, mask = "DEFYADEFYW", batch.atom_mask[0]
    changed = []
    for i, letter in enumerate(sequence):
        misfits = [0.0, 0.0]
        for a, partner in columns.get(letter, {}).items():
            for j in range(len(sequence)):
                for c in range(14):
                    if c in columns.get(sequence[j], {}) or not (mask[i, a] and mask[j, c]):
                        continue
                    here = (predicted[0, i, a] - predicted[0, j, c]).norm()
                    for naming, atom in enumerate((a, partner)):
                        there = (batch.positions[0, i, atom] - batch.positions[0, j, c]).norm()
                        misfits[naming] += (here - there).abs().item()
        changed.append(misfits[1] < misfits[0])
    moved = (renamed.atoms.positions != batch.positions).flatten(2).any(-1)[0]
    assert moved.tolist() == changed
    assert 2 <= sum(changed) <= 6


def test_single_known_atom_takes_the_name_that_fits(cases):
    batch, output = cases.make("AADAA")
    od1, od2 = ATOM14["D"].index("OD1"), ATOM14["D"].index("OD2")
    # The file calls OD1 what the prediction calls OD2, and lacks the other.
    batch.positions[0, 2, od1] = output.positions[0, 2, od2]
    batch.positions[0, 2, od2] = 0
    batch.atom_mask[0, 2, od2] = False
    renamed = rename_ambiguous(ground_truth(batch), output.positions)
    assert renamed.atoms.atom_mask[0, 2, [od1, od2]].tolist() == [False, True]
    assert torch.equal(renamed.atoms.positions[0, 2, od2], output.positions[0, 2, od2])
    # χ2 is measured to OD1, which is not known under this naming.
    assert not renamed.atoms.group_mask[0, 2, 5]


def test_renaming_has_no_gradient(cases):
    batch, output = cases.make("DEFY")
    predicted = output.positions.clone().requires_grad_()
    assert not rename_ambiguous(ground_truth(batch), predicted).atoms.positions.requires_grad


def test_backbone_of_chains_without_side_chains_is_fully_known(cases):
    batch, _ = cases.make(ALL, "GGWX")
    whole, bare = ground_truth(batch), ground_truth(cases.backbone_only(batch))
    assert torch.equal(whole.backbone_frames.rotation, bare.backbone_frames.rotation)
    assert torch.equal(whole.cb[whole.cb_mask], bare.cb[bare.cb_mask])
    assert bare.cb_mask.sum(-1).tolist() == [20, 3]
    assert bare.ca_mask.sum(-1).tolist() == [20, 3]
    assert not bare.torsion_mask[:, :, 3:].any()
    assert whole.torsion_mask[0, :, 3:].sum() > 30


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_the_truth_are_the_truth_of_these_chains(cases, fixed):
    batch, output = cases.make("DEFYADEFYWKKKK", "AADYG", "GGGD")
    generator = torch.Generator().manual_seed(6)
    predicted = output.positions + 6 * torch.randn(output.positions.shape, generator=generator)
    part = batch.rows(slice(1, 3), 5)
    assert (part.ids, part.lengths) == (batch.ids[1:], (5, 4))
    assert part.positions.shape == (2, 5, 14, 3)
    cut = ground_truth(batch, fixed=fixed).rows(slice(1, 3), 5)
    alone = ground_truth(part, fixed=fixed)
    torch.testing.assert_close(cut.torsions, alone.torsions)
    one, two = cut.alternative.group_frames, alone.alternative.group_frames
    torch.testing.assert_close(one.rotation, two.rotation)
    one, two = (rename_ambiguous(truth, predicted[1:, :5]) for truth in (cut, alone))
    assert_equal(one, two)
    assert (one.atoms.positions - part.positions).abs().max() > 0.1  # some are renamed
    assert_equal(rename_ambiguous(ground_truth(part, fixed=not fixed), predicted[1:, :5]), two)


def test_shapes_of_the_fixed_truth_do_not_depend_on_the_chains(cases):
    one, two = (cases.make(sequence)[0] for sequence in ("GGGG", "DEFY"))
    assert ground_truth(one, fixed=True).ambiguous.shape == (1, 4)
    assert ground_truth(two, fixed=True).ambiguous.shape == (1, 4)
    assert ground_truth(one).ambiguous.shape == (1, 0)

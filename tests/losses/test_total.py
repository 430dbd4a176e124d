import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.head_losses import atom_plddt_loss, pae_loss
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.model.heads import HEADS

ALL = "ARNDCQEGHILKMFPSTWYV"
FAPE, TORSION = ["backbone_fape", "sidechain_fape"], ["chi", "angle_norm"]
NAMES = [*FAPE, *TORSION, "violation", "distogram", "plddt", "resolved", "pae"]
CONFIDENCE = ["plddt", "resolved", "pae"]
EVERY = LossWeights(resolved=0.01, violation=1.0, pae=0.1)
NO_CLAMP = math.inf
NOTHING = LossWeights(fape=0.0, chi=0.0, distogram=0.0, plddt=0.0)


def loss(batch, output, weights: LossWeights = EVERY, clamp: float = 10.0, **options):
    clamps = torch.full((len(batch.ids),), clamp)
    return fold_loss(output, ground_truth(batch), weights, clamp=clamps, **options)


def assert_close(one: LossTerms, two: LossTerms, tolerance: float) -> None:
    assert list(one.terms) == list(two.terms) == NAMES
    for name in NAMES:
        torch.testing.assert_close(
            one.terms[name], two.terms[name], rtol=tolerance, atol=tolerance, msg=name
        )
    torch.testing.assert_close(one.total, two.total, rtol=tolerance, atol=tolerance)


def leaves(cases, output):
    return cases.map_output(output, lambda tensor: tensor.detach().clone().requires_grad_())


def tensors_of(cases, output) -> list[Tensor]:
    found: list[Tensor] = []
    cases.map_output(output, lambda tensor: found.append(tensor) or tensor)
    return found


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def test_total_is_the_weighted_sum_times_the_root_of_the_length(cases):
    batch, output = cases.make(ALL, "GGWDE", seed=1)
    weights = LossWeights(
        fape=2.0, chi=3.0, distogram=5.0, plddt=7.0, resolved=11.0, violation=13.0, pae=17.0
    )
    result = loss(batch, cases.perturb(output, 1.0), weights)
    factor = {
        "backbone_fape": 1.0,
        "sidechain_fape": 1.0,
        "chi": 1.5,
        "angle_norm": 0.03,
        "distogram": 5.0,
        "plddt": 7.0,
        "resolved": 11.0,
        "violation": 13.0,
        "pae": 17.0,
    }
    expected = sum(factor[name] * result.terms[name] for name in NAMES)
    assert all((value > 0.01).all() for value in result.terms.values())
    torch.testing.assert_close(result.total, expected * torch.tensor([20.0, 5.0]).sqrt())


def test_perfect_prediction_costs_what_is_known_by_hand(cases):
    batch, output = cases.make(ALL)
    bins = output.distogram_logits.new_zeros(1, 20, 20, 64)
    output = replace(
        output,
        distogram_logits=bins,
        plddt_logits=bins[:, :, 0, :50],
        resolved_logits=bins[:, :, 0, :37],
        pae_logits=bins,
    )
    terms = loss(batch, output).terms
    assert terms["backbone_fape"].item() == pytest.approx(0.001, rel=1e-3)
    assert terms["sidechain_fape"].item() == pytest.approx(0.001, rel=0.05)
    assert terms["chi"].item() == pytest.approx(0, abs=1e-5)
    assert terms["angle_norm"].item() == pytest.approx(0, abs=1e-5)
    assert terms["distogram"].item() == pytest.approx(math.log(64), rel=1e-6)
    assert terms["plddt"].item() == pytest.approx(math.log(50), rel=1e-6)
    assert terms["resolved"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms["pae"].item() == pytest.approx(math.log(64), rel=1e-6)


@pytest.mark.parametrize(
    ("field", "names"),
    [("fape", FAPE), ("chi", TORSION), *((name, [name]) for name in NAMES[4:])],
)
def test_term_of_weight_zero_is_not_computed(cases, field, names):
    batch, output = cases.make("ACDEF")
    without = replace(EVERY, **{field: 0.0})
    if field in HEADS:  # not even the head's output is looked at
        output = replace(output, **{f"{field}_logits": None})
    result = loss(batch, output, without)
    assert list(result.terms) == [name for name in NAMES if name not in names]
    assert heads_to_compute(without) == [head for head in HEADS if head != field]
    batch, output = cases.make("ACDEF")
    only = loss(batch, output, replace(NOTHING, **{field: 1.0}))
    assert list(only.terms) == names


def test_a_head_with_a_weight_must_have_been_computed(cases):
    batch, output = cases.make("ACDEF")
    with pytest.raises(ValueError, match="the head pae was not computed"):
        loss(batch, replace(output, pae_logits=None))


def test_the_aligned_error_is_that_of_the_last_layer(cases):
    batch, output = cases.make(ALL)
    output = cases.perturb(output, 2.0)
    truth = ground_truth(batch)
    expected = [
        pae_loss(
            output.pae_logits,
            predicted_frames=output.frames[layer],
            true_frames=truth.backbone_frames,
            mask=truth.backbone_mask,
        )
        for layer in (0, -1)
    ]
    found = loss(batch, output).terms["pae"]
    assert torch.equal(found, expected[1])
    assert not torch.equal(found, expected[0])


def test_a_head_of_37_atoms_learns_their_all_atom_lddt(cases):
    batch, output = cases.make(ALL)
    logits = torch.randn(1, 20, 37, 50, generator=torch.Generator().manual_seed(4))
    output = replace(cases.perturb(output, 1.0), plddt_logits=logits)
    expected = atom_plddt_loss(
        logits,
        predicted=output.positions,
        true=batch.positions,
        atom_mask=batch.atom_mask,
        aatype=batch.aatype,
    )
    assert torch.equal(loss(batch, output).terms["plddt"], expected)


def test_without_any_term_the_loss_is_zero(cases):
    batch, output = cases.make("ACDEF", "GG")
    result = loss(batch, output, NOTHING)
    assert result.total.tolist() == [0.0, 0.0]
    assert result.terms == {}


def test_clamp_cuts_the_backbone_and_never_frees_the_side_chains(cases):
    batch, output = cases.make(ALL, ALL)
    output = cases.perturb(output, 12.0)
    clamp = torch.tensor([10.0, math.inf])
    terms = fold_loss(output, ground_truth(batch), EVERY, clamp=clamp).terms
    assert terms["backbone_fape"][0] < 1 < terms["backbone_fape"][1]
    assert (terms["sidechain_fape"] < 1).all()


@pytest.mark.parametrize("clamp", [10.0, NO_CLAMP])
def test_rigid_motion_of_the_truth_changes_no_term(cases, clamp):
    batch, output = cases.make(ALL, "DEFYW", seed=1)
    output = cases.perturb(output, 1.0)
    motion = cases.random_frames(torch.Generator().manual_seed(7), 1).rotation
    moved = Rigid(motion, torch.tensor([[8.0, -3.0, 5.0]])).apply(batch.positions)
    moved = torch.where(batch.atom_mask[..., None], moved, 0.0)
    one = loss(batch, output, clamp=clamp)
    two = loss(replace(batch, positions=moved), output, clamp=clamp)
    assert not torch.allclose(moved, batch.positions, atol=1.0)
    for name in NAMES:
        torch.testing.assert_close(one.terms[name], two.terms[name], rtol=1e-5, atol=1e-5, msg=name)


def test_reflection_of_the_truth_changes_fape_and_chi(cases):
    batch, output = cases.make(ALL)
    mirror = torch.tensor([1.0, 1.0, -1.0])
    mirrored = loss(replace(batch, positions=batch.positions * mirror), output).terms
    terms = loss(batch, output).terms
    for name in NAMES[:3]:
        assert (mirrored[name] > terms[name] + 0.2).all()
    torch.testing.assert_close(mirrored["plddt"], terms["plddt"])


def test_padding_changes_nothing(cases):
    batch, output = cases.make(ALL)
    output = cases.perturb(output, 1.0)
    wide, wide_output = cases.make(ALL, length=29)
    for name in ("positions", "plddt_logits", "resolved_logits"):
        getattr(wide_output, name)[:, :20] = getattr(output, name)
    for name in ("distogram_logits", "pae_logits"):
        getattr(wide_output, name)[:, :20, :20] = getattr(output, name)
    for name in ("torsions", "unnormalized_torsions"):
        getattr(wide_output, name)[:, :, :20] = getattr(output, name)
    for ours, theirs, cut in (
        (output.frames, wide_output.frames, (slice(None), slice(None), slice(20))),
        (output.sidechain_frames, wide_output.sidechain_frames, (slice(None), slice(20))),
    ):
        theirs.rotation[cut], theirs.translation[cut] = ours.rotation, ours.translation
    assert_close(loss(batch, output), loss(wide, wide_output), 1e-6)


def test_batch_of_two_lengths_is_two_batches_of_one(cases):
    batch, output = cases.make(ALL, "DEFYWGACK", seed=3)
    output = cases.perturb(output, 1.5)
    batch = replace(batch, resolution=torch.tensor([2.0, torch.nan]))
    both = loss(batch, output)
    for i in range(2):
        alone = loss(*cases.one_chain(batch, output, i))
        for name in NAMES:
            torch.testing.assert_close(both.terms[name][i], alone.terms[name][0], msg=name)
        torch.testing.assert_close(both.total[i], alone.total[0], rtol=1e-4, atol=1e-4)
    for name in CONFIDENCE:
        assert both.terms[name][0] > 0
        assert both.terms[name][1] == 0


def test_symmetric_names_in_the_file_change_nothing(cases):
    # Every ASP, GLU, PHE and TYR named the other way round: the same molecule.
    batch, output = cases.make("ADEFYK", seed=5)
    output = cases.perturb(output, 0.5)
    positions = batch.positions.clone()
    for residue, pairs in {
        1: [(6, 7)],
        2: [(7, 8)],
        3: [(6, 7), (8, 9)],
        4: [(6, 7), (8, 9)],
    }.items():
        for one, two in pairs:
            positions[0, residue, [one, two]] = positions[0, residue, [two, one]]
    one, two = loss(batch, output), loss(replace(batch, positions=positions), output)
    torch.testing.assert_close(one.terms["sidechain_fape"], two.terms["sidechain_fape"])
    # Ideal geometry is planar within a degree, so χ turned by π is met by the swapped atoms' χ.
    torch.testing.assert_close(one.terms["chi"], two.terms["chi"], rtol=0.02, atol=0.0)


def test_every_part_of_the_prediction_gets_a_finite_gradient(cases):
    batch, output = cases.make(ALL, "DEFYW", seed=1)
    output = leaves(cases, cases.perturb(output, 1.0))
    loss(batch, output).total.mean().backward()
    for tensor in tensors_of(cases, output):
        assert gradient(tensor).isfinite().all()
        assert (gradient(tensor) != 0).any()
    padding = ~batch.mask
    assert (output.positions.grad[padding] == 0).all()
    assert (output.frames.translation.grad[:, padding] == 0).all()
    assert (output.frames.translation.grad[:, batch.mask] != 0).any(-1).all()


def test_backbone_only_chain(cases):
    batch, output = cases.make(ALL, seed=1)
    output = leaves(cases, cases.perturb(output, 1.0))
    result = loss(cases.backbone_only(batch), output)
    result.total.sum().backward()
    assert result.terms["chi"].tolist() == [0.0]
    for name in NAMES:
        assert name == "chi" or 0.01 < result.terms[name].item() < 100, name
    assert all(gradient(tensor).isfinite().all() for tensor in tensors_of(cases, output))
    whole = loss(batch, output).terms
    for name in ("backbone_fape", "angle_norm", "violation", "distogram", "plddt", "pae"):
        assert torch.equal(whole[name], result.terms[name])


def test_ca_only_chain_trains_its_confidence_alone(cases):
    batch, output = cases.make(ALL)
    atom_mask = batch.atom_mask & (torch.arange(14) == 1)
    batch = replace(batch, atom_mask=atom_mask, positions=batch.positions * atom_mask[..., None])
    terms = loss(batch, cases.perturb(output, 1.0)).terms
    for name in ("backbone_fape", "sidechain_fape", "chi", "distogram", "pae"):
        assert terms[name].tolist() == [0.0]
    assert terms["plddt"].item() > 1


def test_a_residue_without_a_letter_does_not_teach_that_its_atoms_are_missing(cases):
    batch, output = cases.make("AXA")
    output = replace(output, resolved_logits=torch.zeros(1, 3, 37, requires_grad=True))
    loss(batch, output, replace(NOTHING, resolved=1.0)).total.sum().backward()
    pushed = output.resolved_logits.grad.abs().sum(-1)[0]
    assert (pushed > 0).tolist() == [True, False, True]


def test_unresolved_chain_costs_what_needs_no_truth(cases):
    batch, output = cases.make(ALL, "ACDEF")
    atom_mask = batch.atom_mask.clone()
    atom_mask[1] = False
    batch = replace(batch, atom_mask=atom_mask, positions=batch.positions * atom_mask[..., None])
    output = leaves(cases, cases.perturb(output, 1.0))
    result = loss(batch, output)
    result.total.sum().backward()
    for name in NAMES:
        without_truth = name in ("angle_norm", "violation", "resolved")
        assert (result.terms[name][1] == 0) == (not without_truth)
    assert (output.distogram_logits.grad[1] == 0).all()
    assert all(gradient(tensor).isfinite().all() for tensor in tensors_of(cases, output))


@pytest.mark.parametrize(
    ("field", "at_fault"),
    [
        ("positions", ["sidechain_fape", "violation", "plddt"]),
        ("torsions", ["chi"]),
        *((f"{head}_logits", [head]) for head in HEADS),
    ],
)
def test_nan_of_one_chain_is_named_and_stays_in_its_loss(cases, field, at_fault):
    batch, output = cases.make(ALL, ALL)
    assert loss(batch, output).faults(batch.ids) == []
    broken = getattr(output, field).clone()
    chain = broken[0, 1] if field == "torsions" else broken[1]
    if field == "positions":
        chain[3, 1] = torch.nan  # Cα
    else:
        chain.view(-1)[-1] = torch.nan
    result = loss(batch, replace(output, **{field: broken}))
    assert result.total.isnan().tolist() == [False, True]
    named = ", ".join(f"{name} is nan" for name in at_fault)
    assert result.faults(batch.ids) == [f"chain_1: {named}"]


def test_an_infinite_total_is_named_too():
    terms = LossTerms(torch.tensor([1.0, math.inf]), {"chi": torch.tensor([1.0, 2.0])})
    assert terms.faults(["a", "b"]) == ["b: total is inf"]


@pytest.mark.parametrize("atoms", [False, True])
@pytest.mark.parametrize("name", CONFIDENCE)
def test_only_well_resolved_chains_teach_the_heads_of_confidence(cases, name, atoms):
    batch, output = cases.make(*["ACDEF"] * 5)
    batch = replace(batch, resolution=torch.tensor([0.05, 0.1, 3.0, 3.1, torch.nan]))
    bins = (37, 50) if atoms and name == "plddt" else getattr(output, f"{name}_logits").shape[-1:]
    shape = (5, 5, 5, *bins) if name == "pae" else (5, 5, *bins)
    logits = torch.zeros(shape, requires_grad=True)
    output = replace(output, **{f"{name}_logits": logits})
    alone = replace(NOTHING, **{name: 1.0})
    cost = math.log(2 if name == "resolved" else bins[-1])
    for bounds, counts in (((0.1, 3.0), [0, 1, 1, 0, 0]), (None, [1] * 5)):
        value = loss(batch, output, alone, resolution_range=bounds).terms[name]
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.tolist() == pytest.approx([cost * one for one in counts])
        assert (gradient != 0).flatten(1).any(-1).int().tolist() == counts


def test_autocast_changes_nothing(cases):
    batch, output = cases.make(ALL, "DEFYW")
    output = cases.perturb(output, 1.0)
    before = loss(batch, output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = loss(batch, output)
    assert torch.equal(before.total, after.total)
    assert after.total.dtype == torch.float32

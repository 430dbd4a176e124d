import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esmfold_peft.datasets.features import features
from esmfold_peft.geometry.frames import atom14_from_frames, frames_from_torsions
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.violations import ViolationCounts, count_violations, violation_loss
from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.residues import ATOM14, ATOM14_MASK, RESIDUES_X, UNKNOWN, encode
from esmfold_peft.protein.stereochemistry import BOND_LENGTHS
from tests.losses.naive_violations import CA, C, N, naive

CB = 4
Chain = tuple[Tensor, Tensor, Tensor, Tensor]
"""The arguments of the loss."""

SIDE_CHAINS = {"P": (30.0, -35.0), "W": (-60.0, 90.0)}
"""χ1 and χ2 that close the ring of proline, and keep that of tryptophan off the next residues; all
others are 180°."""


def place(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, torsion: float) -> Tensor:
    """The atom bound to `c` with the angle b-c-x and the torsion a-b-c-x, in degrees."""
    angle, torsion = math.radians(angle), math.radians(torsion)
    local = (
        -length * math.cos(angle),
        length * math.sin(angle) * math.cos(torsion),
        length * math.sin(angle) * math.sin(torsion),
    )
    # The frame's x axis is b to c, and a is in the x-y plane with y > 0.
    return Rigid.from_three_points(b, c, a).apply(torch.tensor(local, dtype=a.dtype))


def sin_cos(degrees: float) -> Tensor:
    return torch.tensor([math.sin(math.radians(degrees)), math.cos(math.radians(degrees))])


def strand(
    sequence: str,
    *,
    length: float = 1.329,
    ca_c_n: float = 116.568,
    c_n_ca: float = 121.352,
    omega: float = 180.0,
) -> Chain:
    """An extended chain of ideal residues with the given peptide bonds."""
    backbone = [torch.tensor([0.0, 0, 0]), torch.tensor([1.46, 0, 0]), torch.tensor([2.0, 1.4, 0])]
    for i in range(1, len(sequence)):
        for bond, angle, torsion in (
            (length, ca_c_n, 140.0),
            (1.46, c_n_ca, omega),
            (BOND_LENGTHS[sequence[i]]["CA", "C"][0], 111.0, -75.0 if sequence[i] == "P" else -120),
        ):
            backbone.append(place(*backbone[-3:], bond, angle, torsion))
    n, ca, c = torch.stack(backbone).view(1, -1, 3, 3).unbind(2)
    aatype = torch.tensor(encode(sequence))[None]
    turned = Rigid.from_three_points(c, ca, n).rotation * torch.tensor([-1.0, 1, -1])
    torsions = sin_cos(180.0).repeat(1, len(sequence), 7, 1)
    torsions[:, :, 2] = sin_cos(140.0)
    for i, letter in enumerate(sequence):
        for chi, degrees in enumerate(SIDE_CHAINS.get(letter, ())):
            torsions[0, i, 3 + chi] = sin_cos(degrees)
    positions = atom14_from_frames(
        frames_from_torsions(Rigid(turned, ca), torsions, aatype), aatype
    )
    positions[:, :, [N, C]] = torch.stack((n, c), 2)
    index = torch.arange(len(sequence))[None]
    return positions, aatype, index, torch.ones_like(index, dtype=torch.bool)


def facing(one: str, atom: str, two: str, other: str, distance: float) -> Chain:
    """Two residues far apart in their chain whose given atoms, in the end of each, face each other.

    The second is reflected, which changes no distance within it.
    """
    half = []
    for letter, name in ((one, atom), (two, other)):
        positions = strand(letter)[0][0, 0]
        end = positions[ATOM14[letter].index(name)]
        inwards = positions[: len(ATOM14[letter])].mean(0)
        half.append(Rigid.from_three_points(inwards, end, positions[N]).apply_inverse(positions))
    half[1] = half[1] * torch.tensor([-1.0, 1, 1]) + torch.tensor([distance, 0, 0])
    mask = torch.ones(1, 2, dtype=torch.bool)
    return (
        torch.stack(half)[None],
        torch.tensor(encode(one + two))[None],
        torch.tensor([[0, 9]]),
        mask,
    )


def random_chain(cases, *sequences: str, size: float = 0.4, seed: int = 0) -> Chain:
    """Compact chains of bent residues and broken bonds."""
    batch, output = cases.make(*sequences, seed=seed)
    positions = cases.perturb(output, size, seed).positions
    return positions, batch.aatype, batch.residue_index, batch.mask


def numbers(counts: ViolationCounts) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in vars(counts).items() if value.any()}


def assert_as_naive(loss: Tensor, counts: ViolationCounts, positions, sequences, index) -> None:
    for i, sequence in enumerate(sequences):
        expected, numbers = naive(positions[i], sequence, index[i].tolist())
        assert min(numbers) > 0
        assert loss[i].item() == pytest.approx(expected, rel=1e-5)
        assert [count[i].item() for count in vars(counts).values()] == numbers


def test_agrees_with_loops(cases):
    sequences = ("MCPWXC", "GRPHCE", "VDILYF", "KQNSTA")
    positions, aatype, index, mask = random_chain(cases, *sequences)
    index = index + (torch.arange(6) > 2).long()  # a gap after the third residue
    loss = violation_loss(positions, aatype, index, mask)
    counts = count_violations(positions, aatype, index, mask)
    assert_as_naive(loss, counts, positions, sequences, index)


@pytest.mark.parametrize("sequence", ["GG", RESIDUES_X, "PPPWWWRRR", "FYHCMX"])
def test_ideal_chain_has_no_violation_and_no_gradient(sequence):
    positions, *others = strand(sequence)
    positions.requires_grad_()
    loss = violation_loss(positions, *others)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (positions.grad == 0).all()
    assert numbers(count_violations(positions, *others)) == {}


@pytest.mark.parametrize(
    ("sequence", "length", "expected"),
    [
        ("GA", 1.329 + 0.167, 0.0),
        ("GA", 1.329 + 0.250, 0.250 - 12 * 0.014),
        ("GA", 1.329 - 0.250, 0.250 - 12 * 0.014),
        ("GP", 1.341 + 0.190, 0.0),
        ("GP", 1.341 + 0.250, 0.250 - 12 * 0.016),
        ("PG", 1.329 + 0.250, 0.250 - 12 * 0.014),
        ("GGA", 1.329 + 0.250, 0.250 - 12 * 0.014),
    ],
)
@pytest.mark.parametrize("omega", [180.0, 0.0])
def test_stretched_peptide_bond_cis_or_trans(sequence, length, expected, omega):
    chain = strand(sequence, length=length, omega=omega)
    assert violation_loss(*chain).item() == pytest.approx(expected, abs=1e-5)
    wrong = [float(len(sequence) - 1)] if expected else [0.0]
    assert count_violations(*chain).bonds.tolist() == wrong


@pytest.mark.parametrize(
    ("field", "mean", "std"), [("ca_c_n", -0.4473, 0.0311), ("c_n_ca", -0.5203, 0.0353)]
)
def test_bent_peptide_angle(field, mean, std):
    def bent(cosine: float) -> Chain:
        return strand("GA", **{field: math.degrees(math.acos(cosine))})

    for cosine in (mean - 11.9 * std, mean + 11.9 * std):
        assert violation_loss(*bent(cosine)).item() == 0
    chain = bent(mean - 12 * std - 0.03)
    assert violation_loss(*chain).item() == pytest.approx(0.03, abs=1e-5)
    assert numbers(count_violations(*chain)) == {"angles": [1.0]}


def test_one_broken_bond_among_several_is_averaged():
    positions, *others = strand("AAAAA")
    bond = positions[0, 3, N] - positions[0, 2, C]
    positions[0, 3:] += 0.3 * bond / bond.norm()
    assert violation_loss(positions, *others).item() == pytest.approx((0.3 - 0.168) / 4, abs=1e-5)
    assert numbers(count_violations(positions, *others)) == {"bonds": [1.0]}


def test_gap_in_the_index_takes_the_bond_and_its_exemption_away():
    positions, aatype, index, mask = strand("GG")
    index[0, 1] = 5
    # C and N, 1.329 Å apart, are now a clash; the 8 atoms carry the loss of the pair twice.
    expected = 2 * (1.7 + 1.55 - 1.5 - 1.329) / 8
    chain = positions, aatype, index, mask
    assert violation_loss(*chain).item() == pytest.approx(expected, abs=1e-5)
    assert numbers(count_violations(*chain)) == {"clashes": [1.0]}
    positions[0, 1] += torch.tensor([20.0, 0, 0])
    assert violation_loss(*chain).item() == 0
    index[0, 1] = 1
    assert violation_loss(*chain).item() > 15


@pytest.mark.parametrize(
    ("one", "atom", "two", "other", "nearest"),
    [
        ("A", "CB", "A", "CB", 1.70 + 1.70 - 1.5),
        ("K", "NZ", "A", "CB", 1.55 + 1.70 - 1.5),
        ("A", "CB", "C", "SG", 1.70 + 1.80 - 1.5),
        ("K", "NZ", "C", "SG", 1.55 + 1.80 - 1.5),
    ],
)
def test_two_atoms_that_overlap(one, atom, two, other, nearest):
    apart = facing(one, atom, two, other, nearest + 0.01)
    assert violation_loss(*apart).item() == 0
    close = facing(one, atom, two, other, nearest - 0.25)
    atoms = len(ATOM14[one]) + len(ATOM14[two])
    assert violation_loss(*close).item() == pytest.approx(2 * 0.25 / atoms, abs=1e-5)
    assert numbers(count_violations(*close)) == {"clashes": [1.0]}


def test_disulfide_bond_is_no_clash():
    assert violation_loss(*facing("C", "SG", "C", "SG", 1.0)).item() == 0
    # Other sixth atoms are not bonded, which AF2's code overlooks: this is OG.
    assert numbers(count_violations(*facing("C", "SG", "S", "OG", 1.0)))["clashes"] == [1.0]


def test_atoms_of_one_residue_too_far_and_too_near():
    positions, *others = strand("A")
    far = positions.clone()
    outwards = far[0, 0, CB] - far[0, 0, CA]
    far[0, 0, CB] += 20 * outwards / outwards.norm()
    assert count_violations(far, *others).within_residues.tolist() == [3.0]  # to N, CA and C
    near = positions.clone()
    near[0, 0, CB] = near[0, 0, 3]  # on O
    expected, counts = naive(near[0], "A", [0])
    assert expected > 4 * (1.7 + 1.52 - 1.5) / 5
    assert violation_loss(near, *others).item() == pytest.approx(expected, rel=1e-5)
    assert count_violations(near, *others).within_residues.tolist() == [float(counts[3])]


def test_atom_far_from_its_residue_can_clash():
    positions, aatype, index, mask = facing("A", "CB", "A", "CB", 40.0)
    before = violation_loss(positions, aatype, index, mask)
    positions[0, 0, CB] = positions[0, 1, CB] + torch.tensor([0.0, 0.5, 0])
    counts = count_violations(positions, aatype, index, mask)
    assert before.item() == 0
    assert counts.clashes.item() >= 2  # CB, and CA behind it


def test_rigid_motion_and_reflection_change_nothing(cases):
    positions, *others = random_chain(cases, "ARNDCQEGHILKMFPSTWYV")
    before = violation_loss(positions, *others)
    turn = cases.random_frames(torch.Generator().manual_seed(7), 1).rotation
    moved = Rigid(turn, torch.tensor([[8.0, -3.0, 5.0]])).apply(positions)
    assert before.item() > 1
    torch.testing.assert_close(violation_loss(moved, *others), before, rtol=1e-5, atol=0)
    mirrored = positions * torch.tensor([1.0, 1, -1])
    torch.testing.assert_close(violation_loss(mirrored, *others), before, rtol=1e-6, atol=0)


def test_batch_of_two_is_two_batches_of_one(cases):
    lengths = 20, 9
    chain = random_chain(cases, "ARNDCQEGHILKMFPSTWYV", "DEFYWGACK", size=0.6)
    both, counts = violation_loss(*chain), count_violations(*chain)
    for i, length in enumerate(lengths):
        alone = [tensor[i : i + 1, :length] for tensor in chain]
        torch.testing.assert_close(violation_loss(*alone)[0], both[i], rtol=1e-6, atol=0)
        for name, value in vars(count_violations(*alone)).items():
            assert value[0] == getattr(counts, name)[i]


def test_padding_is_no_neighbour_and_no_clash():
    positions, aatype, index, mask = strand("ACDEF")
    wide = torch.zeros(1, 9, 14, 3)  # in the midst of the chain, at its first N
    wide[:, :5] = positions
    padded = (
        wide.requires_grad_(),
        torch.cat((aatype, torch.full((1, 4), 20)), 1),
        torch.cat((index, torch.zeros(1, 4, dtype=torch.long)), 1),
        torch.cat((mask, torch.zeros(1, 4, dtype=torch.bool)), 1),
    )
    assert violation_loss(*padded).item() == 0
    assert numbers(count_violations(*padded)) == {}
    padded[2][0, 5] = 5  # even where the index goes on
    assert violation_loss(*padded).item() == 0
    padded[1][0, 5] = 0  # X would have no atoms
    padded[3][0, 5] = True
    assert violation_loss(*padded).item() > 1


@pytest.mark.parametrize("length", [1, 3])
def test_chain_without_residues_costs_nothing(length):
    positions = torch.zeros(1, length, 14, 3, requires_grad=True)
    index = torch.zeros(1, length, dtype=torch.long)
    chain = positions, index, index, index.bool()
    loss = violation_loss(*chain)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (positions.grad == 0).all()
    assert numbers(count_violations(*chain)) == {}


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [(2, CB), (0, CA), (4, C), (4, 13), (5, 0)])
def test_nan_in_the_prediction_stays_nan(broken, place):
    # In a Cβ, in peptide bonds, at the end, in an absent atom and in the padding.
    positions, *others = (torch.cat((tensor, tensor)) for tensor in strand("ACDEFG"))
    others[2][:, 5] = False
    positions[1, 1, CB] += 4
    positions[(0, *place)] = broken
    positions.requires_grad_()
    loss = violation_loss(positions, *others)
    assert loss.isnan().tolist() == [True, False]
    alone = violation_loss(positions[1:], *(tensor[1:] for tensor in others))
    torch.testing.assert_close(loss[1:], alone)
    loss[1].backward()
    assert positions.grad[1].isfinite().all()
    assert (positions.grad[1] != 0).any()
    for count in vars(count_violations(positions, *others)).values():
        assert count.isnan().tolist() == [True, False]


def test_gradient_is_that_of_the_value(cases):
    positions, aatype, index, mask = random_chain(cases, "CPW", size=0.6)
    # Closer, so that residues clash too.
    positions = (0.7 * positions.double()).requires_grad_()
    assert count_violations(positions, aatype, index, mask).clashes.item() > 3
    assert torch.autograd.gradcheck(lambda x: violation_loss(x, aatype, index, mask), positions)


def test_following_the_gradient_mends_a_chain():
    positions, *others = strand("ACDEFGHIKL")
    torch.manual_seed(0)
    positions = (positions + 0.4 * torch.randn(positions.shape)).requires_grad_()
    before = violation_loss(positions, *others).item()
    optimizer = torch.optim.Adam([positions], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        violation_loss(positions, *others).sum().backward()
        optimizer.step()
    assert violation_loss(positions, *others).item() < 0.05 * before


@pytest.mark.parametrize("what", ["chain", "residue", "pair", "backbone"])
def test_gradient_of_coincident_atoms_is_finite(cases, what):
    positions, *others = random_chain(cases, "ARNDCQEGHILKMFPSTWYV")
    if what == "chain":
        positions[:] = 3.0
    elif what == "residue":
        positions[0, 3] = positions[0, 3, CA]
    elif what == "pair":
        positions[0, 9, CB] = positions[0, 3, CB]
    else:
        positions[0, 3, CA] = positions[0, 3, C] = positions[0, 4, N] = positions[0, 4, CA]
    positions.requires_grad_()
    loss = violation_loss(positions, *others)
    loss.sum().backward()
    assert loss.item() > 1
    assert positions.grad.isfinite().all()


def test_unknown_residues_have_no_atoms(cases):
    sequences = ("AXDEFXXGHX", "XCCXKWLMNP")
    positions, aatype, index, mask = random_chain(cases, *sequences, size=0.6)
    positions = (0.8 * positions).requires_grad_()  # closer, so that residues clash too
    unknown = aatype == UNKNOWN
    loss = violation_loss(positions, aatype, index, mask)
    (gradient,) = torch.autograd.grad(loss.sum(), positions)
    counts = count_violations(positions, aatype, index, mask)
    assert_as_naive(loss, counts, positions.detach(), sequences, index)
    assert (gradient[unknown] == 0).all()
    assert (gradient[~unknown] != 0).any()
    # Bit for bit the loss of the chain whose unknown residues do not exist, where those are alanine
    # or anywhere else.
    alanine, elsewhere = aatype.masked_fill(unknown, 0), positions.detach().clone()
    elsewhere[unknown] += 3.0
    assert torch.allclose(violation_loss(positions, alanine, index, mask & ~unknown), loss)
    assert torch.allclose(violation_loss(elsewhere, aatype, index, mask), loss)
    as_alanine = violation_loss(positions, alanine, index, mask)
    assert ((as_alanine - loss).abs() > 0.02 * loss).all()


def test_autocast_changes_nothing(cases):
    positions, *others = random_chain(cases, "ARNDCQEGHILKMFPSTWYV", "DEFYW")
    before = violation_loss(positions, *others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = violation_loss(positions, *others)
    assert torch.equal(before, after)
    rounded = positions.bfloat16()
    loss = violation_loss(rounded, *others)
    assert after.dtype == loss.dtype == torch.float32
    assert torch.equal(loss, violation_loss(rounded.float(), *others))


def test_all_ways_to_find_clashes_give_the_same_loss_and_gradient(cases, monkeypatch):
    """In blocks, and all pairs as on a GPU: with cysteines, X, a gap, equal indices, padding."""
    positions, aatype, index, mask = random_chain(cases, "ARNDCQEGHILKMFPSTWYV", "CXCYWGACC")
    index = index.clone()
    index[0, 7:] += 3
    index[1, 5] = 4
    chain = positions.double().requires_grad_(), aatype, index, mask

    def found() -> tuple[Tensor, Tensor]:
        loss = violation_loss(*chain)
        (gradient,) = torch.autograd.grad((loss * torch.tensor([1.0, 3.0])).sum(), chain[0])
        return loss.detach(), gradient

    expected = found()
    monkeypatch.setattr("esmfold_peft.losses.violations._BLOCK", 7)
    torch.testing.assert_close(found(), expected, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("esmfold_peft.losses.violations.lists_pairs", lambda device: False)
    for pairs in (2**24, 14 * 40 * 3):
        monkeypatch.setattr("esmfold_peft.losses.violations._DENSE", pairs)
        torch.testing.assert_close(found(), expected, rtol=1e-9, atol=1e-9)
    assert (count_violations(*chain).clashes > 20).all()


def real_chain(path: Path) -> Chain:
    """A chain without the residues that lack an atom."""
    (structure,) = read_chains(path)
    arrays = features(structure)
    whole = (arrays.atom_mask == ATOM14_MASK[arrays.aatype]).all(-1)
    tensors = arrays.positions, arrays.aatype, arrays.residue_index, whole
    return tuple(torch.tensor(array)[None] for array in tensors)


@pytest.mark.parametrize(
    "name", ["held_out/1ubq_A", "train/1hf9_A", "held_out/3u8v_A", "held_out/4zey_A"]
)
def test_real_structures_have_no_violation_and_shrunk_ones_many(example, name):
    positions, *others = real_chain(example / f"{name}.cif.gz")
    residues = int(others[2].sum())
    assert residues > 40
    assert violation_loss(positions, *others).item() == 0
    assert numbers(count_violations(positions, *others)) == {}
    counts = count_violations(0.7 * positions, *others)
    assert counts.bonds.item() > 0.95 * residues
    assert counts.angles.item() == 0
    assert counts.clashes.item() > 1.5 * residues
    assert counts.within_residues.item() > 10 * residues
    assert violation_loss(0.7 * positions, *others).item() > 1.5

import pytest
import torch
from torch import Tensor

from esmfold_peft.metrics.lddt import AllAtomLDDT, lddt_all_atom, lddt_ca
from esmfold_peft.protein.residues import ATOM14, ATOM14_MASK, encode

AMBIGUOUS = {
    "D": ("OD1", "OD2"),
    "E": ("OE1", "OE2"),
    "F": ("CD1", "CD2", "CE1", "CE2"),
    "Y": ("CD1", "CD2", "CE1", "CE2"),
}
"""Names of atoms that are exchanged together, in pairs."""


def random_chain(sequence: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """aatype, atoms scattered about a compact walk, and the atoms that the residues have."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(len(sequence), 3, generator=generator, dtype=torch.float64)
    walk = (3.0 * step / step.norm(dim=-1, keepdim=True)).cumsum(0)
    atoms = 1.5 * torch.randn(len(sequence), 14, 3, generator=generator, dtype=torch.float64)
    aatype = torch.tensor(encode(sequence))
    return aatype[None], (walk[:, None] + atoms)[None], torch.tensor(ATOM14_MASK)[aatype][None]


def noisy(atoms: Tensor, sigma: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return atoms + sigma * torch.randn(atoms.shape, generator=generator, dtype=atoms.dtype)


def exchanged(atoms: Tensor, residue: int, letter: str, *names: str) -> Tensor:
    """Atoms of a residue under each other's names, which are given in pairs."""
    columns = [ATOM14[letter].index(name) for name in names]
    partners = [columns[i ^ 1] for i in range(len(columns))]
    atoms = atoms.clone()
    atoms[:, residue, columns] = atoms[:, residue, partners]
    return atoms


def assert_same(one: AllAtomLDDT, two: AllAtomLDDT) -> None:
    for name in ("per_atom", "per_residue", "per_chain", "pairs"):
        assert torch.equal(getattr(one, name).nan_to_num(-1), getattr(two, name).nan_to_num(-1))


def naive_share(predicted, true, pairs) -> tuple[float, int]:
    """Preserved quarters and number of the pairs of ((residue, atom), (residue, atom)) in reach."""
    quarters, count = 0, 0
    for a, b in pairs:
        there = (true[a] - true[b]).norm().item()
        if a[0] != b[0] and there <= 15:
            off = abs((predicted[a] - predicted[b]).norm().item() - there)
            quarters += sum(off <= limit for limit in (0.5, 1, 2, 4))
            count += 1
    return quarters / 4, count


def naive_named(sequence: str, predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """The reference with better-scoring names, by loops over the atoms of one chain."""
    ambiguous = {
        (i, ATOM14[letter].index(name))
        for i, letter in enumerate(sequence)
        for name in AMBIGUOUS.get(letter, ())
    }
    known = [(i, a) for i, a in mask.nonzero().tolist()]
    named = true.clone()
    for i, letter in enumerate(sequence):
        pairs = [
            (a, b) for a in known for b in known if a in ambiguous and a[0] == i
            and b not in ambiguous
        ]  # fmt: skip
        if pairs:
            other = exchanged(true[None], i, letter, *AMBIGUOUS[letter])[0]
            if naive_share(predicted, other, pairs)[0] > naive_share(predicted, true, pairs)[0]:
                named[i] = other[i]
    return named


def test_all_atom_score_by_hand():
    # N and Cα of two residues on a line; the last atom moves by 1.5 Å, so its two pairs keep 2 and
    # 4 Å. Pairs within a residue do not count: there are four.
    true, mask = torch.zeros(1, 2, 14, 3), torch.zeros(1, 2, 14, dtype=torch.bool)
    mask[:, :, :2] = True
    true[0, :, :2, 0] = torch.tensor([[0.0, 1.5], [4.0, 5.5]])
    predicted = true.clone()
    predicted[0, 1, 1, 0] = 7
    result = lddt_all_atom(predicted, true, mask, aatype=torch.zeros(1, 2, dtype=torch.long))
    assert result.pairs.tolist() == [4]
    assert result.per_atom[mask].tolist() == [0.75, 0.75, 1.0, 0.5]
    assert result.per_atom[~mask].isnan().all()
    assert result.per_residue.tolist() == [[0.75, 0.75]]
    assert result.per_chain.tolist() == [0.75]


def test_of_ca_alone_is_lddt_ca():
    aatype, true, mask = random_chain("DEFYWACKRG" * 4, seed=11)
    mask = mask & (torch.arange(14) == 1)
    predicted = noisy(true, 1.0)
    result = lddt_all_atom(predicted, true, mask, aatype=aatype)
    expected = lddt_ca(predicted, true, mask)
    assert torch.equal(result.per_residue, expected.per_residue)
    assert torch.equal(result.per_atom[:, :, 1], expected.per_residue)
    assert torch.equal(result.per_chain, expected.per_chain)
    assert torch.equal(result.pairs, expected.pairs)


def test_names_are_chosen_against_unambiguous_atoms_alone():
    sequence = "DEFYDEFYG"
    aatype, true, mask = random_chain(sequence, seed=12)
    predicted = noisy(true, 4.0)
    named = naive_named(sequence, predicted[0], true[0], mask[0])
    chosen = lddt_all_atom(predicted, true, mask, aatype=aatype)
    fixed = lddt_all_atom(predicted, named[None], mask, aatype=torch.full_like(aatype, 20))
    assert_same(chosen, fixed)


def test_all_atom_score_agrees_with_loops():
    sequence = "DAEFYRW"
    aatype, true, mask = random_chain(sequence, seed=1)
    mask[0, 2, 7:] = False
    mask[0, 4, 0] = False
    predicted = noisy(true, 1.5)
    for i, letter in ((0, "D"), (3, "F")):
        predicted = exchanged(predicted, i, letter, *AMBIGUOUS[letter])
    result = lddt_all_atom(predicted, true, mask, aatype=aatype)
    named = naive_named(sequence, predicted[0], true[0], mask[0])
    moved = (named != true[0]).flatten(1).any(-1)
    assert moved[0]
    assert moved[3]
    known = [(i, a) for i, a in mask[0].nonzero().tolist()]
    for atom in known:
        kept, count = naive_share(predicted[0], named, [(atom, other) for other in known])
        assert result.per_atom[0][atom].item() == pytest.approx(kept / count, rel=1e-12)
    for i in range(len(sequence)):
        pairs = [(a, b) for a in known for b in known if a[0] == i]
        kept, count = naive_share(predicted[0], named, pairs)
        assert result.per_residue[0, i].item() == pytest.approx(kept / count, rel=1e-12)
    kept, count = naive_share(predicted[0], named, [(a, b) for a in known for b in known])
    assert result.per_chain.item() == pytest.approx(kept / count, rel=1e-12)
    assert result.pairs.item() == count // 2


@pytest.mark.parametrize(("letter", "names"), AMBIGUOUS.items())
def test_names_that_may_be_exchanged_cost_nothing(letter, names):
    aatype, true, mask = random_chain(f"AG{letter}LK", seed=2)
    swapped = exchanged(true, 2, letter, *names)
    assert lddt_all_atom(swapped, true, mask, aatype=aatype).per_chain.tolist() == [1.0]
    named = lddt_all_atom(swapped, true, mask, aatype=torch.full_like(aatype, 20))
    assert named.per_chain.item() < 1


@pytest.mark.parametrize(
    ("letter", "names"),
    [
        ("N", ("OD1", "ND2")),
        ("R", ("NH1", "NH2")),
        ("L", ("CD1", "CD2")),
        ("V", ("CG1", "CG2")),
        ("F", ("CD1", "CD2")),
    ],
)
def test_other_exchanges_cost(letter, names):
    aatype, true, mask = random_chain(f"AG{letter}LK", seed=2)
    swapped = exchanged(true, 2, letter, *names)
    assert lddt_all_atom(swapped, true, mask, aatype=aatype).per_chain.item() < 1


def test_either_naming_in_either_file_gives_the_same_score():
    aatype, true, mask = random_chain("DAEKFLYG", seed=3)
    predicted = noisy(true, 1.0)
    before = lddt_all_atom(predicted, true, mask, aatype=aatype)
    other = exchanged(exchanged(true, 0, "D", *AMBIGUOUS["D"]), 6, "Y", *AMBIGUOUS["Y"])
    assert_same(before, lddt_all_atom(predicted, other, mask, aatype=aatype))
    renamed = exchanged(predicted, 2, "E", *AMBIGUOUS["E"])
    after = lddt_all_atom(renamed, true, mask, aatype=aatype)
    assert torch.equal(after.per_residue, before.per_residue)
    columns = [ATOM14["E"].index(name) for name in AMBIGUOUS["E"]]
    assert torch.equal(after.per_atom[0, 2, columns], before.per_atom[0, 2, columns[::-1]])


def test_names_that_score_alike_stay():
    aatype, true, mask = random_chain("GADAG", seed=4)
    od1, od2 = ATOM14["D"].index("OD1"), ATOM14["D"].index("OD2")
    mask[0, 2, od2] = False
    result = lddt_all_atom(9 * true, true, mask, aatype=aatype)
    assert result.per_atom[0, 2, od1] == 0
    assert result.per_atom[0, 2, od2].isnan()


@pytest.mark.parametrize("missing_in_prediction", [True, False])
def test_only_known_atom_of_a_pair_takes_the_name_of_the_prediction(missing_in_prediction):
    aatype, true, mask = random_chain("GADAG", seed=4)
    od1, od2 = ATOM14["D"].index("OD1"), ATOM14["D"].index("OD2")
    predicted = exchanged(true, 2, "D", "OD1", "OD2")
    mask[0, 2, od2] = False
    found = mask.new_ones(mask.shape)
    found[0, 2, od1] = not missing_in_prediction
    result = lddt_all_atom(predicted, true, mask, aatype=aatype, predicted_atom_mask=found)
    assert result.per_chain.tolist() == [1.0]
    assert result.per_atom[0, 2, od2] == 1
    assert result.per_atom[0, 2, od1].isnan()


def test_atom_missing_in_the_prediction_loses_its_pairs():
    aatype, true, mask = random_chain("GAWAG", seed=5)
    found = mask.clone()
    found[0, 2, 10] = False
    result = lddt_all_atom(true, true, mask, aatype=aatype, predicted_atom_mask=found)
    assert result.per_atom[0, 2, 10] == 0
    others = mask.clone()
    others[0, 2] = False
    lost = int((true[others] - true[0, 2, 10]).norm(dim=-1).le(15).sum())
    assert lost > 10
    expected = 1 - lost / result.pairs.item()
    assert result.per_chain.item() == pytest.approx(expected, rel=1e-12)


def test_all_atom_padding_batch_and_unknown_atoms_change_nothing():
    sequences = "DEFYWACKR", "GGD"
    chains = [random_chain(sequence, seed=6) for sequence in sequences]
    aatype = torch.full((3, 9), 20)
    true = torch.full((3, 9, 14, 3), torch.nan, dtype=torch.float64)
    mask = torch.zeros(3, 9, 14, dtype=torch.bool)
    predicted = torch.zeros_like(true)
    for b, (types, atoms, known) in enumerate(chains):
        n = types.shape[1]
        aatype[b, :n], mask[b, :n] = types[0], known[0]
        true[b, :n] = torch.where(known[0][..., None], atoms[0], torch.nan)
        predicted[b, :n] = noisy(atoms, 1.0)[0]
    batch = lddt_all_atom(predicted, true, mask, aatype=aatype)
    for b, (types, atoms, known) in enumerate(chains):
        n = types.shape[1]
        alone = lddt_all_atom(noisy(atoms, 1.0), atoms, known, aatype=types)
        rows = slice(b, b + 1)
        part = AllAtomLDDT(
            per_atom=batch.per_atom[rows, :n],
            per_residue=batch.per_residue[rows, :n],
            per_chain=batch.per_chain[rows],
            pairs=batch.pairs[rows],
        )
        assert_same(part, alone)
        assert batch.per_atom[b, n:].isnan().all()
    assert batch.per_chain[2].isnan()
    assert batch.pairs[2] == 0


@pytest.mark.parametrize("pairs", [1, 100, 2000])
def test_size_of_the_blocks_changes_nothing(monkeypatch, pairs):
    aatype, true, mask = random_chain("DEFYWACKR", seed=7)
    predicted = noisy(true, 1.0)
    whole = lddt_all_atom(predicted, true, mask, aatype=aatype)
    monkeypatch.setattr("esmfold_peft.metrics.lddt._BLOCK", pairs)
    assert_same(lddt_all_atom(predicted, true, mask, aatype=aatype), whole)


def test_rigid_motion_changes_no_all_atom_score():
    aatype, true, mask = random_chain("DEFYWACKR", seed=8)
    predicted = noisy(true, 1.0)
    generator = torch.Generator().manual_seed(8)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    before = lddt_all_atom(predicted, true, mask, aatype=aatype)
    assert 0.3 < before.per_chain.item() < 0.9
    assert_same(lddt_all_atom(predicted @ rotation + 7, true, mask, aatype=aatype), before)
    assert_same(lddt_all_atom(predicted, true @ rotation - 3, mask, aatype=aatype), before)


def test_broken_coordinates_of_one_chain_touch_no_other():
    aatype, true, mask = random_chain("DEFYWACKR", seed=9)
    aatype, true, mask = (x.repeat_interleave(2, 0) for x in (aatype, true, mask))
    predicted = noisy(true, 1.0)
    before = lddt_all_atom(predicted, true, mask, aatype=aatype)
    predicted[0, 3, 5] = torch.nan
    after = lddt_all_atom(predicted, true, mask, aatype=aatype)
    assert after.per_atom[0, 3, 5] == 0
    assert after.per_chain[0] < before.per_chain[0]
    assert torch.equal(after.per_atom[1].nan_to_num(-1), before.per_atom[1].nan_to_num(-1))


def test_all_atom_scores_have_the_dtype_of_the_coordinates_and_no_gradient():
    aatype, true, mask = random_chain("DEFYWACKR", seed=10)
    predicted = noisy(true, 1.0).requires_grad_()
    double = lddt_all_atom(predicted, true, mask, aatype=aatype)
    assert double.per_atom.dtype == torch.float64
    assert not double.per_atom.requires_grad
    single = lddt_all_atom(predicted.float(), true.float(), mask, aatype=aatype)
    assert single.per_atom.dtype == torch.float32
    assert single.per_chain.item() == pytest.approx(double.per_chain.item(), abs=1e-3)


EITHER_WAY = {
    **{"D": ("OD1", "OD2"), "E": ("OE1", "OE2"), "R": ("NH1", "NH2")},
    **{"L": ("CD1", "CD2"), "V": ("CG1", "CG2")},
}
FIXED = {"N": ("OD1", "ND2"), "Q": ("OE1", "NE2"), "T": ("OG1", "CG2")}


@pytest.mark.parametrize(("letter", "names"), {**EITHER_WAY, **FIXED}.items())
def test_names_that_openstructure_lets_be_exchanged(letter: str, names: tuple[str, str]):
    aatype, true, mask = random_chain(f"AG{letter}WK", seed=0)
    predicted = exchanged(true, 2, letter, *names)
    score = lddt_all_atom(predicted, true, mask, aatype=aatype, naming="openstructure").per_chain
    assert (score.item() == 1) == (letter in EITHER_WAY)

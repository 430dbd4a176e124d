from importlib.util import find_spec
from pathlib import Path
from typing import Any

import biotite.structure as struc
import numpy as np
import pytest
import torch
from biotite.structure.io import pdbx
from torch import Tensor

from esmfold_peft.metrics.lddt import LDDT, lddt, lddt_ca

# Scores of these chains at noise of 0.3, 1 and 2 Å, by OpenStructure, for other draws of the noise.
PUBLISHED = {
    "1ubq": (0.9319, 0.6259, 0.4444),
    "3u8v": (0.9345, 0.6294, 0.4359),
    "1y57": (0.9389, 0.6591, 0.4373),
}


def structure_file(name: str) -> Path:
    spec = find_spec("openfold3")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the mmCIF files that openfold3 brings")
    folder = Path(spec.submodule_search_locations[0]) / "tests" / "test_data" / "mmcifs"
    if not folder.is_dir():
        pytest.skip("this openfold3 brings no mmCIF files")
    return folder / f"{name}.cif"


def ca_atoms(name: str) -> Any:
    atoms: Any = pdbx.get_structure(pdbx.CIFFile.read(structure_file(name)), model=1)
    atoms = atoms[(atoms.atom_name == "CA") & struc.filter_amino_acids(atoms)]
    return atoms[atoms.chain_id == atoms.chain_id[0]]


def line(*x: float) -> Tensor:
    """One chain with its atoms on the x axis, as doubles."""
    points = torch.zeros(1, len(x), 3, dtype=torch.float64)
    points[0, :, 0] = torch.tensor(x, dtype=torch.float64)
    return points


def score(predicted: Tensor, true: Tensor, predicted_mask: Tensor | None = None) -> LDDT:
    everything = torch.ones(true.shape[:2], dtype=torch.bool)
    return lddt(predicted, true, everything, predicted_mask=predicted_mask)


@pytest.fixture
def coil() -> Tensor:
    """A compact random walk of 60 residues in steps of 3.8 Å, as doubles."""
    generator = torch.Generator().manual_seed(3)
    step = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    walk = (3.8 * step / step.norm(dim=-1, keepdim=True)).cumsum(0)
    return (walk * 0.7)[None]


@pytest.mark.parametrize("name", ["1ubq", "3u8v", "1y57", "4zey", "7l39", "1kd8"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_agrees_with_biotite_on_real_chains(name, sigma):
    atoms = ca_atoms(name)
    rng = np.random.default_rng(17)
    noisy = (atoms.coord + rng.normal(scale=sigma, size=atoms.coord.shape)).astype(np.float32)
    ours = score(torch.tensor(noisy)[None].double(), torch.tensor(atoms.coord)[None].double())
    assert ours.per_chain.item() == pytest.approx(struc.lddt(atoms, noisy), abs=1e-6)
    per_residue = struc.lddt(atoms, noisy, aggregation="residue")
    np.testing.assert_allclose(ours.per_residue[0].numpy(), per_residue, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("column", "sigma"), [(0, 0.3), (1, 1.0), (2, 2.0)])
def test_published_score_is_a_likely_draw_of_the_noise(name, column, sigma):
    true = torch.tensor(ca_atoms(name).coord)[None].double()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(20, *true.shape[1:], generator=generator, dtype=torch.float64)
    draws = score(true + sigma * noise, true.expand_as(noise)).per_chain
    assert draws.std() < 0.03
    assert (draws.mean() - PUBLISHED[name][column]).abs() < 3 * draws.std()


@pytest.mark.parametrize("missing_as_nan", [True, False])
def test_agrees_with_biotite_when_residues_are_missing(missing_as_nan):
    atoms = ca_atoms("3u8v")
    rng = np.random.default_rng(2)
    noisy = (atoms.coord + rng.normal(scale=0.6, size=atoms.coord.shape)).astype(np.float32)
    in_true, in_predicted = rng.random((2, len(atoms))) > 0.15
    oracle = noisy.copy()
    oracle[~in_predicted] = np.nan
    reference = atoms[in_true]
    expected = struc.lddt(reference, oracle[in_true])
    predicted = oracle if missing_as_nan else noisy
    true = torch.tensor(atoms.coord)[None].double()
    ours = lddt(
        torch.tensor(predicted)[None].double(),
        torch.where(torch.tensor(in_true)[None, :, None], true, 0.0),
        torch.tensor(in_true)[None],
        predicted_mask=None if missing_as_nan else torch.tensor(in_predicted)[None],
    )
    assert ours.per_chain.item() == pytest.approx(expected, abs=1e-6)
    assert ours.per_residue[0].isnan().tolist() == (~in_true).tolist()
    assert (ours.per_residue[0, torch.tensor(in_true & ~in_predicted)] == 0).all()


def test_identical_structures_score_one(coil):
    result = score(coil, coil)
    assert result.per_chain.tolist() == [1.0]
    assert (result.per_residue == 1).all()


def test_one_residue_has_no_score():
    result = score(line(1.0), line(1.0))
    assert result.per_chain.isnan().all()
    assert result.per_residue.isnan().all()
    assert result.pairs.tolist() == [0]


def test_residue_without_neighbours_has_no_score_and_does_not_count():
    result = score(line(0, 4, 50), line(0, 4, 100))
    assert result.per_residue[0].isnan().tolist() == [False, False, True]
    assert result.per_chain.tolist() == [1.0]
    assert result.mean_per_residue.tolist() == [1.0]


def test_shifted_atom_loses_exactly_its_thresholds():
    # Six pairs; the last atom moves by 1.5 Å along the line, so its three pairs keep 2 and 4 Å.
    result = score(line(0, 4, 8, 13.5), line(0, 4, 8, 12))
    assert result.pairs.tolist() == [6]
    assert result.per_chain.tolist() == [(3 * 4 + 3 * 2) / (6 * 4)]
    third = (1 + 1 + 0.5) / 3
    assert result.per_residue[0].tolist() == pytest.approx([third, third, third, 0.5])


def test_chain_score_weighs_pairs_and_not_residues():
    # Atoms at 0, 10 and 20 have pairs 0-10 and 10-20; only 10-20 is broken, beyond 4 Å.
    result = score(line(0, 10, 30), line(0, 10, 20))
    assert result.per_chain.tolist() == [0.5]
    assert result.per_residue[0].tolist() == [1.0, 0.5, 0.0]
    assert result.mean_per_residue.tolist() == [0.5]


def test_pair_at_exactly_the_cutoff_counts():
    assert score(line(0, 15), line(0, 15)).pairs.tolist() == [1]
    assert score(line(0, 15), line(0, 15.000001)).pairs.tolist() == [0]


@pytest.mark.parametrize(
    ("deviation", "expected"), [(0.5, 1.0), (1.0, 0.75), (2.0, 0.5), (4.0, 0.25), (4.25, 0.0)]
)
def test_deviation_of_exactly_a_threshold_is_preserved(deviation, expected):
    assert score(line(0, 8 + deviation), line(0, 8)).per_chain.tolist() == [expected]
    assert score(line(0, 8 - deviation), line(0, 8)).per_chain.tolist() == [expected]


def test_residue_missing_in_the_prediction_loses_its_pairs():
    true = line(0, 4, 8)
    present = torch.tensor([[True, True, False]])
    result = score(true, true, predicted_mask=present)
    assert result.per_chain.tolist() == pytest.approx([1 / 3])
    assert result.per_residue[0].tolist() == [0.5, 0.5, 0.0]
    assert result.pairs.tolist() == [3]


def test_residue_missing_in_the_reference_does_not_count(coil):
    mask = torch.ones(1, 60, dtype=torch.bool)
    mask[:, 10:20] = False
    broken = coil.clone()
    broken[:, 10:20] += 100
    result = lddt(broken, torch.where(mask[..., None], coil, torch.nan), mask)
    assert result.per_chain.tolist() == [1.0]
    assert result.per_residue[0].isnan().tolist() == (~mask[0]).tolist()


def test_rigid_motion_of_either_structure_changes_nothing(coil):
    generator = torch.Generator().manual_seed(8)
    noisy = coil + torch.randn(coil.shape, generator=generator, dtype=torch.float64)
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(matrix)
    before, after = score(noisy, coil), score(noisy @ rotation + 7.0, coil)
    assert 0.3 < before.per_chain.item() < 0.9
    assert torch.equal(before.per_residue, after.per_residue)
    assert torch.equal(before.per_chain, after.per_chain)
    assert torch.equal(before.per_chain, score(noisy, coil @ rotation - 3.0).per_chain)


def test_padding_and_order_of_residues_change_nothing(coil):
    generator = torch.Generator().manual_seed(9)
    noisy = coil + torch.randn(coil.shape, generator=generator, dtype=torch.float64)
    alone = score(noisy, coil)
    order = torch.randperm(60, generator=generator)
    shuffled = score(noisy[:, order], coil[:, order])
    assert torch.equal(shuffled.per_residue, alone.per_residue[:, order])
    pad = torch.zeros(1, 11, 3, dtype=torch.float64)
    mask = torch.arange(71)[None] < 60
    padded = lddt(torch.cat((noisy, pad), 1), torch.cat((coil, pad), 1), mask)
    assert torch.equal(padded.per_chain, alone.per_chain)
    assert torch.equal(padded.pairs, alone.pairs)
    assert torch.equal(padded.per_residue[:, :60], alone.per_residue)
    assert padded.per_residue[:, 60:].isnan().all()


def test_lddt_ca_reads_ca_alone_and_computes_in_double():
    generator = torch.Generator().manual_seed(4)
    true = 6 * torch.randn(2, 20, 14, 3, generator=generator)
    predicted = true + torch.randn(true.shape, generator=generator)
    atom_mask = torch.zeros(2, 20, 14, dtype=torch.bool)
    atom_mask[:, :, 1] = True
    atom_mask[1, 15:] = False
    result = lddt_ca(predicted, true, atom_mask)
    expected = lddt(predicted[:, :, 1].double(), true[:, :, 1].double(), atom_mask[:, :, 1])
    assert result.per_chain.dtype == torch.float64
    assert torch.equal(result.per_chain, expected.per_chain)
    predicted_atoms = atom_mask.clone()
    predicted_atoms[0, 0, 1] = False
    fewer = lddt_ca(predicted, true, atom_mask, predicted_atom_mask=predicted_atoms)
    assert fewer.per_residue[0, 0] == 0
    assert fewer.per_chain[0] < result.per_chain[0]
    assert fewer.per_chain[1] == result.per_chain[1]

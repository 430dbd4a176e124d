"""All-atom lDDT of real structures against biotite, which takes names as they are."""

from pathlib import Path

import biotite.structure as struc
import numpy as np
import pytest
import torch
from torch import Tensor

from esmfold_peft.datasets.features import Features, features
from esmfold_peft.metrics.lddt import lddt_all_atom
from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.residues import AMBIGUOUS_ATOMS, ATOM14, ONE_TO_THREE, RESIDUES_X, UNKNOWN

CHAINS = ("1ubq_A", "1hf9_A", "3u8v_A", "4zey_A")


@pytest.fixture(params=CHAINS)
def chain(request: pytest.FixtureRequest, example: Path) -> Features:
    (path,) = example.glob(f"*/{request.param}.cif.gz")
    (structure,) = read_chains(path)
    return features(structure)


def atom_array(chain: Features, mask: np.ndarray) -> struc.AtomArray:
    """The masked atoms of a chain, in the order of the mask."""
    residue, column = np.nonzero(mask)
    letters = [RESIDUES_X[aatype] for aatype in chain.aatype[residue]]
    atoms = struc.AtomArray(len(residue))
    atoms.coord = chain.positions[mask]
    atoms.chain_id[:] = "A"
    atoms.res_id[:] = residue + 1
    atoms.res_name[:] = [ONE_TO_THREE[letter] for letter in letters]
    atoms.atom_name[:] = [ATOM14[letter][i] for letter, i in zip(letters, column, strict=True)]
    return atoms


def jittered(chain: Features, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(11).normal(scale=sigma, size=chain.positions.shape)
    return (chain.positions + noise).astype(np.float32)


def double(positions: np.ndarray) -> Tensor:
    return torch.tensor(positions)[None].double()


def exchange_names(chain: Features, positions: np.ndarray) -> np.ndarray:
    """Every second residue that can be named in two ways under the other naming."""
    positions = positions.copy()
    letters = [RESIDUES_X[aatype] for aatype in chain.aatype]
    chosen = [i for i, letter in enumerate(letters) if letter in AMBIGUOUS_ATOMS][::2]
    for i in chosen:
        for pair in AMBIGUOUS_ATOMS[letters[i]]:
            columns = [ATOM14[letters[i]].index(name) for name in pair]
            positions[i, columns] = positions[i, columns[::-1]]
    return positions


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_scores_of_chain_residues_and_atoms(chain, sigma):
    predicted, mask = jittered(chain, sigma), torch.tensor(chain.atom_mask)[None]
    # X has no ambiguous atoms: every name is taken as it is.
    aatype = torch.full((1, len(chain)), UNKNOWN)
    ours = lddt_all_atom(double(predicted), double(chain.positions), mask, aatype=aatype)
    reference, subject = atom_array(chain, chain.atom_mask), predicted[chain.atom_mask]
    # A pair whose deviation lies at a threshold falls to either side in biotite's single precision.
    assert ours.per_chain.item() == pytest.approx(struc.lddt(reference, subject), abs=1e-5)
    resolved = mask[0].any(-1)
    np.testing.assert_allclose(
        ours.per_residue[0][resolved], struc.lddt(reference, subject, "residue"), atol=1e-3
    )
    per_atom = struc.lddt(reference, subject, "atom")
    np.testing.assert_allclose(ours.per_atom[mask], per_atom, atol=3e-3)
    assert np.median(np.abs(ours.per_atom[mask].numpy() - per_atom)) < 1e-7
    assert ours.per_atom[~mask].isnan().all()
    assert ours.per_residue[0][~resolved].isnan().all()


def test_exchanged_names_score_as_the_right_ones_do_there(chain):
    predicted, mask = jittered(chain, 0.2), torch.tensor(chain.atom_mask)[None]
    aatype, true = torch.tensor(chain.aatype)[None], double(chain.positions)
    exchanged = exchange_names(chain, predicted)
    reference = atom_array(chain, chain.atom_mask)
    right = struc.lddt(reference, predicted[chain.atom_mask])
    assert struc.lddt(reference, exchanged[chain.atom_mask]) < right - 1e-3
    for names in (predicted, exchanged):
        ours = lddt_all_atom(double(names), true, mask, aatype=aatype)
        assert ours.per_chain.item() == pytest.approx(right, abs=1e-5)


def test_atoms_missing_in_prediction_or_reference(chain):
    rng = np.random.default_rng(3)
    predicted, absent = jittered(chain, 0.6), rng.random((2, *chain.atom_mask.shape)) < 0.1
    in_true, in_predicted = chain.atom_mask & ~absent[0], chain.atom_mask & ~absent[1]
    subject = np.where(in_predicted[..., None], predicted, np.nan)[in_true]
    ours = lddt_all_atom(
        double(predicted),
        double(chain.positions),
        torch.tensor(in_true)[None],
        aatype=torch.full((1, len(chain)), UNKNOWN),
        predicted_atom_mask=torch.tensor(in_predicted)[None],
    )
    expected = struc.lddt(atom_array(chain, in_true), subject)
    assert ours.per_chain.item() == pytest.approx(expected, abs=1e-5)
    assert (ours.per_atom[0].numpy()[in_true & ~in_predicted] == 0).all()

"""From structures to batches."""

import time
from pathlib import Path

import numpy as np
import torch

from esmfold_peft.datasets.batch import collate
from esmfold_peft.datasets.features import features
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.residues import ATOM14, ATOM37_INDEX, UNKNOWN


def test_atom14_holds_the_atoms_of_atom37(example: Path):
    structure = read_structure(example / "held_out" / "1ubq_A.cif.gz")
    found = features(structure)
    assert found.aatype[0] == 12  # M, as AlphaFold 2 counts
    for row, letter in enumerate(structure.sequence):
        for column, name in enumerate(ATOM14[letter]):
            column37 = ATOM37_INDEX[name]
            assert found.atom_mask[row, column] == structure.atom_mask[row, column37]
            expected = structure.positions[row, column37]
            assert np.array_equal(found.positions[row, column], expected)
        assert not found.atom_mask[row, len(ATOM14[letter]) :].any()
    assert found.atom_mask.sum() > 590  # 1ubq has 602 heavy atoms, one of them OXT
    assert found.resolution == 1.8


def test_a_crop_is_a_stretch_that_keeps_its_numbers(example: Path):
    whole = features(read_structure(example / "held_out" / "1ubq_A.cif.gz"))
    part = whole.crop(10, 20)
    assert len(part) == 20
    assert np.array_equal(part.residue_index, np.arange(10, 30))
    assert np.array_equal(part.positions, whole.positions[10:30])


def test_padding_is_marked_and_empty(example: Path):
    whole = features(read_structure(example / "held_out" / "1ubq_A.cif.gz"))
    batch = collate([whole, whole.crop(0, 30)], [True, False])
    assert batch.aatype.shape == (2, 76)
    assert batch.mask.sum(1).tolist() == [76, 30]
    assert (batch.aatype[1, 30:] == UNKNOWN).all()
    assert not batch.atom_mask[1, 30:].any()
    assert not batch.positions[1, 30:].any()
    assert batch.clamped.tolist() == [True, False]
    assert torch.equal(batch.positions[0, :30], batch.positions[1, :30])


def test_an_unknown_resolution_is_not_zero(example: Path):
    files = sorted((example / "train").glob("*.cif.gz"))
    found = [features(read_structure(file)) for file in files]
    assert any(np.isnan(chain.resolution) for chain in found)
    assert not any(chain.resolution == 0 for chain in found)


def test_features_take_less_than_a_millisecond(example: Path):
    structure = read_structure(example / "held_out" / "1ubq_A.cif.gz")
    features(structure)
    started = time.process_time()
    for _ in range(100):
        features(structure)
    assert (time.process_time() - started) / 100 < 1e-3

"""Chains as bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.datasets.features import Features, features
from esmfold_peft.datasets.records import from_record, sequence_of, to_record
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_structure


def same(a: Features, b: Features) -> bool:
    arrays = ("aatype", "residue_index", "positions", "atom_mask")
    return all(
        getattr(a, name).dtype == getattr(b, name).dtype
        and np.array_equal(getattr(a, name), getattr(b, name))
        for name in arrays
    )


def test_a_chain_of_the_archive_comes_back_bit_for_bit(example: Path):
    for file in sorted((example / "held_out").glob("*.cif.gz")):
        chain = features(read_structure(file))
        found = from_record(to_record(chain), chain.id, chain.resolution)
        assert same(found, chain)
        assert found.id == chain.id
        assert found.resolution == chain.resolution or np.isnan(chain.resolution)


def test_gaps_in_the_numbers_and_unresolved_ends_are_kept(example: Path):
    chain = features(read_structure(example / "held_out" / "3u8v_A.cif.gz"))
    assert not chain.atom_mask[:, 1].all()
    numbers = chain.residue_index.copy()
    numbers[40:] += 1000
    numbers -= numbers[0] - 7
    chain = replace(chain, residue_index=numbers)
    assert same(from_record(to_record(chain), "x", 1.0), chain)


@pytest.mark.parametrize("far", [-99_999.999, 99_999.999, 0.0])
def test_coordinates_anywhere_within_the_bounds_are_kept_to_a_thousandth(far: float):
    positions = np.zeros((3, 14, 3), dtype=np.float32)
    mask = np.zeros((3, 14), dtype=bool)
    positions[0, 1], positions[2, 13] = far, -far
    mask[0, 1] = mask[2, 13] = True
    chain = Features("x", np.array([0, 20, 17]), np.arange(3), positions, mask, 1.0)
    found = from_record(to_record(chain), "x", 1.0)
    assert np.abs(found.positions - positions).max() <= 0.0079  # float32 itself, at 10^5
    assert np.array_equal(found.atom_mask, mask)


def test_a_chain_without_atoms_is_a_chain():
    empty = np.zeros((5, 14), dtype=bool)
    chain = Features(
        "x", np.full(5, 20), np.arange(5), np.zeros((5, 14, 3), np.float32), empty, 1.0
    )
    assert same(from_record(to_record(chain), "x", 1.0), chain)
    assert sequence_of(to_record(chain)) == "XXXXX"


def test_full_atom_chains_take_at_most_sixty_bytes_a_residue(shared_structures: Path):
    files = sorted((shared_structures / "cameo2022").glob("*.cif.gz"))[::6]
    chains = [features(read_structure(file)) for file in files]
    size = sum(len(to_record(chain)) for chain in chains)
    resolved = sum(int(chain.atom_mask[:, 1].sum()) for chain in chains)
    assert size / resolved < 50
    assert size / sum(map(len, chains)) < 45


def test_a_damaged_record_says_whose_it_is(example: Path):
    record = to_record(features(read_structure(example / "held_out" / "1ubq_A.cif.gz")))
    flipped = bytearray(record)
    flipped[200] ^= 255
    for damaged in (b"", record[:3], record[:100], record[:-9], bytes(flipped), b"\x07" + record):
        with pytest.raises(UserError, match="1ubq_A: its record in the store is damaged"):
            from_record(bytes(damaged), "1ubq_A", 1.0)


def test_the_sequence_is_read_without_unpacking(example: Path):
    structure = read_structure(example / "held_out" / "4zey_A.cif.gz")
    assert sequence_of(to_record(features(structure))) == structure.sequence

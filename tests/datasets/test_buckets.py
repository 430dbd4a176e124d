"""Whole chains in batches of similar length."""

import numpy as np
import pytest

from esmfold_peft.datasets.buckets import length_buckets, share_of

LENGTHS = np.random.default_rng(0).integers(20, 900, 301).tolist()


def test_every_chain_is_in_one_batch_within_the_limit():
    batches = length_buckets(LENGTHS, 1024)
    assert sorted(i for batch in batches for i in batch) == list(range(301))
    for batch in batches:
        assert len(batch) * max(LENGTHS[i] for i in batch) <= 1024
    longest = [LENGTHS[i] for batch in batches for i in batch]
    assert longest == sorted(longest)
    assert len(batches) < 200


def test_a_chain_above_the_limit_is_alone():
    assert length_buckets([30, 10, 40, 10, 31], 29) == [[1, 3], [0], [4], [2]]
    assert length_buckets([30], 29) == [[0]]
    assert length_buckets([15, 14, 15], 30) == [[1, 0], [2]]
    assert length_buckets([], 29) == []


@pytest.mark.parametrize("world", [1, 2, 3, 8, 400])
def test_processes_have_equally_many_batches_and_all_chains(world: int):
    batches = length_buckets(LENGTHS, 1024)
    shares = [share_of(batches, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-len(batches) // world)}
    assert {i for share in shares for batch in share for i in batch} == set(range(301))


def test_processes_have_equal_work():
    batches = length_buckets(LENGTHS, 1024)

    def work(rank: int) -> int:
        return sum(LENGTHS[i] ** 3 for batch in share_of(batches, rank, 4) for i in batch)

    loads = [work(rank) for rank in range(4)]
    assert max(loads) < 1.1 * min(loads)

"""Which chain and which crop a training step sees, and whole chains in batches."""

from itertools import islice

import numpy as np
import pytest
from torch.utils.data import ConcatDataset

from esmfold_peft.datasets.order import Mixture, StoreOrder
from esmfold_peft.datasets.samples import (
    CroppedChains,
    StepBatches,
    crop_start,
    length_buckets,
    share_of,
)


def mixture(*sizes: int, seed: int = 3, shares: tuple[float, ...] = (1.0,)) -> Mixture:
    """Stores of chains with weights 1, 1/2, 1/3, 1/1, 1/2, ..."""
    orders = [
        StoreOrder(1 / (1 + np.arange(size) % 3), seed, store) for store, size in enumerate(sizes)
    ]
    return Mixture(orders, shares, seed)


def numbers(mixture: Mixture, world: int, chains: int, steps: int, start: int = 0):
    """Draws of all processes, interleaved as an optimizer step of the whole world sees them."""
    ranks = [iter(StepBatches(mixture, chains, rank, world, start)) for rank in range(world)]
    return [draw for _ in range(steps) for rank in ranks for draw in next(rank)]


def test_the_world_sees_the_same_samples_whatever_its_size():
    mixed = mixture(7, 20, shares=(0.4, 0.6))
    alone = numbers(mixed, world=1, chains=4, steps=200)
    assert [number for _, number in alone] == list(range(800))
    assert numbers(mixed, world=2, chains=2, steps=200) == alone
    assert numbers(mixed, world=4, chains=1, steps=200) == alone
    assert numbers(mixed, world=2, chains=1, steps=400) == alone


def test_processes_do_not_overlap():
    shares = [list(islice(StepBatches(mixture(50), 3, rank, 4), 10)) for rank in range(4)]
    seen = [number for share in shares for batch in share for _, number in batch]
    assert sorted(seen) == list(range(120))


@pytest.mark.parametrize("start", [1, 17, 4095, 4096, 9999])
def test_a_start_leaves_out_what_came_before(start: int):
    mixed = mixture(7, 5000, shares=(0.3, 0.7))
    whole = numbers(mixed, world=1, chains=100, steps=110)
    assert numbers(mixed, 1, 100, 10, start) == whole[start : start + 1000]
    assert numbers(mixed, 2, 5, 100, start) == whole[start : start + 1000]


def test_a_batch_may_be_larger_than_the_data_set():
    batch = next(iter(StepBatches(mixture(2), chains=5, rank=0, world=1)))
    assert len(batch) == 5
    assert {index for index, _ in batch} == {0, 1}


def test_a_mixture_has_the_shares_it_was_given_and_every_store_its_own_order():
    draws = np.array(numbers(mixture(10, 1, 30, shares=(0.2, 0.1, 0.7)), 1, 5000, 4))[:, 0]
    counts = np.histogram(draws, bins=[0, 10, 11, 41])[0]
    assert counts.sum() == 20_000
    # Four standard deviations of a binomial distribution.
    assert np.allclose(counts / 20_000, [0.2, 0.1, 0.7], atol=4 * np.sqrt(0.25 / 20_000))
    alone = next(StoreOrder(1 / (1 + np.arange(30) % 3), 3, store=2).parts(0))
    assert np.array_equal(draws[draws >= 11][: len(alone)] - 11, alone)


def test_stores_of_one_seed_differ_in_order():
    orders = [
        np.concatenate(list(islice(StoreOrder(np.ones(9), 3, s).parts(0), 3))) for s in (0, 1)
    ]
    assert not np.array_equal(*orders)


def test_the_order_differs_with_the_seed():
    first = numbers(mixture(5, seed=1), 1, 2, 6)
    assert numbers(mixture(5, seed=1), 1, 2, 6) == first
    assert numbers(mixture(5, seed=2), 1, 2, 6) != first


def test_the_samples_of_a_seed_stay_what_they_are(make_chain):
    """In another process, on another machine, and in a later version: a run can be resumed."""
    mixed = mixture(7, 20, shares=(0.4, 0.6))
    begin = [index for index, _ in numbers(mixed, world=1, chains=12, steps=1)]
    assert begin == [4, 10, 15, 11, 26, 22, 0, 3, 23, 6, 2, 16]
    later = [index for index, _ in numbers(mixed, world=1, chains=6, steps=1, start=10_000)]
    assert later == [21, 25, 19, 22, 17, 15]
    chains = CroppedChains(
        ConcatDataset([[make_chain("a", 50)]]), crop=20, clamp_probability=0.5, seed=1
    )
    samples = [chains[0, number] for number in range(6)]
    found = [(int(c.residue_index[0]), clamped) for c, clamped in samples]
    assert found == [(17, True), (6, False), (6, False), (9, False), (11, True), (4, False)]


def test_a_sample_depends_on_its_number_alone(make_chain):
    chains = ConcatDataset([[make_chain("a", 50)], [make_chain("b", 70), make_chain("c", 60)]])
    assert [chain.id for chain in chains] == ["a", "b", "c"]

    def samples() -> CroppedChains:
        return CroppedChains(chains, crop=20, clamp_probability=0.5, seed=1)

    first, second = samples(), samples()
    forward = [first[1, number] for number in range(20)]
    backward = [second[1, number] for number in reversed(range(20))][::-1]
    starts = [chain.residue_index[0] for chain, _ in forward]
    assert starts == [chain.residue_index[0] for chain, _ in backward]
    assert [clamped for _, clamped in forward] == [clamped for _, clamped in backward]
    assert len(set(starts)) > 5
    assert {clamped for _, clamped in forward} == {True, False}


def test_clamped_crops_are_uniform_and_unclamped_ones_lean_to_the_n_terminus():
    rng = np.random.default_rng(0)
    clamped = np.array([crop_start(14, 10, True, rng) for _ in range(20_000)])
    counts = np.bincount(clamped, minlength=5) / len(clamped)
    assert np.allclose(counts, 1 / 5, atol=0.015)
    unclamped = np.array([crop_start(14, 10, False, rng) for _ in range(20_000)])
    # Start s is drawn uniformly from 0 to 4 - x for x uniform in 0..4: P(s) = sum 1/(5 (5 - x)).
    expected = [sum(1 / (5 * (5 - x)) for x in range(5 - s)) for s in range(5)]
    assert np.allclose(np.bincount(unclamped, minlength=5) / 20_000, expected, atol=0.015)


def test_a_short_chain_is_whole():
    rng = np.random.default_rng(0)
    assert {crop_start(10, 10, clamped, rng) for clamped in (True, False)} == {0}


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

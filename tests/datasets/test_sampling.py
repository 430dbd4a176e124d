"""Which chain and which crop a training step sees."""

from itertools import islice

import numpy as np

from esmfold_peft.datasets.crop import crop_start
from esmfold_peft.datasets.sampler import MicroBatches


def numbers(world: int, micro: int, steps: int, chains: int = 7) -> list[tuple[int, int]]:
    """Draws of all processes, interleaved as an optimizer step of the whole world sees them."""
    ranks = [iter(MicroBatches(chains, micro, rank, world, seed=3)) for rank in range(world)]
    return [draw for _ in range(steps) for rank in ranks for draw in next(rank)]


def test_every_epoch_holds_every_chain_once():
    draws = numbers(world=1, micro=2, steps=14)
    for epoch in range(4):
        part = draws[epoch * 7 : epoch * 7 + 7]
        assert sorted(index for index, _ in part) == list(range(7))


def test_epochs_differ_in_order():
    draws = [index for index, _ in numbers(world=1, micro=7, steps=3)]
    assert draws[:7] != draws[7:14] != draws[14:]


def test_the_world_sees_the_same_samples_whatever_its_size():
    alone = numbers(world=1, micro=4, steps=6)
    assert [number for _, number in alone] == list(range(24))
    assert numbers(world=2, micro=2, steps=6) == alone
    assert numbers(world=4, micro=1, steps=6) == alone


def test_a_batch_may_be_larger_than_the_data_set():
    batch = next(iter(MicroBatches(chains=2, micro=5, rank=0, world=1, seed=0)))
    assert len(batch) == 5
    assert {index for index, _ in batch} == {0, 1}


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


def test_an_epoch_is_the_same_in_another_process():
    first = list(islice(iter(MicroBatches(5, 2, 0, 1, seed=1)), 6))
    assert list(islice(iter(MicroBatches(5, 2, 0, 1, seed=1)), 6)) == first
    assert list(islice(iter(MicroBatches(5, 2, 0, 1, seed=2)), 6)) != first

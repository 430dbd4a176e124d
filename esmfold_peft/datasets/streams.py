"""The random numbers of a run: each use has its own stream, which follows from the seed."""

import numpy as np

STORES = 2**32 - 1
CROPS = 2**32 - 2
RECYCLES = 2**32 - 3
DROPOUT = 2**32 - 4
"""First keys of streams; stores of training chains have the small numbers."""


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each key.

    Unlike a tuple of numbers, whose zeros at the end NumPy does not see, every key differs from
    every other.
    """
    return np.random.default_rng(_sequence(seed, key))


def random_seed(seed: int, *key: int) -> int:
    """A seed of 63 bits for generators of another kind, one for each key."""
    return int(_sequence(seed, key).generate_state(1, np.uint64)[0] >> 1)


def _sequence(seed: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)

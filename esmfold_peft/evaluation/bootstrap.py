"""How sure a mean over chains is."""

import numpy as np
from jaxtyping import Float64

SEED = 0
RESAMPLES = 5_000
CONFIDENCE = 0.95
FEWEST = 5
"""Values of which an interval is given. Percentile intervals are too narrow for few: of normal
values those that should hold the mean in 95 % do so in 51 (2 values), 72 (3), 84 (5), 91 (10)."""

_AT_ONCE = 2**20
"""Numbers drawn at a time, which bounds the memory."""


def mean_interval(
    values: Float64[np.ndarray, "n"],
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % percentile interval of the mean by bootstrap (Efron 1979), always with one seed.

    Args:
        values: in any order.

    Returns:
        Its lower and upper end; None for fewer than five values. It is too narrow for few: in 84 %
        of cases it holds the mean that it should in 95 % with five normal values, in 91 % with ten.
    """
    if len(values) < FEWEST:
        return None, None
    ordered = np.sort(values)
    generator = np.random.default_rng(SEED)
    rows = max(1, _AT_ONCE // len(ordered))
    means = np.concatenate(
        [
            ordered[
                generator.integers(len(ordered), size=(min(rows, RESAMPLES - k), len(ordered)))
            ].mean(-1)
            for k in range(0, RESAMPLES, rows)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)

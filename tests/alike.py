"""Results of two computations in different processes, or of numbers in other places of memory.

The order in which a processor adds may depend on both, so that only rounding may differ.
"""

import pytest


def assert_alike(one: object, other: object) -> None:
    """The same keys, words and integers; numbers, also those of tables, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_alike(value, other[key])
    elif isinstance(one, list) and isinstance(other, list):
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif (number := _number(one)) is not None:
        assert number == pytest.approx(_number(other), rel=1e-5, abs=1e-9, nan_ok=True)
    else:
        assert one == other


def _number(value: object) -> float | None:
    """A float, or what a table writes for one."""
    if not isinstance(value, float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None

"""Real entries that come with an installed package, so that they are there wherever tests run."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mmcifs() -> Path:
    """The mmCIF files of openfold3's tests, found without importing that package."""
    spec = find_spec("openfold3")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tests" / "test_data" / "mmcifs"

"""Shape checking of every annotated function, and where the real structures lie.

Tests demand equal bits of copies, of counts, and of the same operations on tensors of the same
shapes in one process: there PyTorch has its numbers at aligned places, and one thread. Whatever
else is computed twice is compared but for rounding.
"""

import gc
import os
import signal
import sys

# Collecting imports 5,700 modules. Compiled files save 18 of its 29 seconds, also where the
# environment forbids them; nothing that is imported becomes garbage, which is not looked for.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.disable()

# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread per process: two spinning OpenMP threads on busy cores are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("esmfold_peft", "beartype.beartype")

from pathlib import Path

import pytest

from tests.nursery import Nursery
from tests.nursery import nursery as started_nursery
from tests.tiny import TINY_ESMFOLD

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest test first, so that no process is left alone with it at the end.

    What proves is slow, and so is what starts commands in processes of their own.
    """
    items.sort(key=lambda item: item.path.name != "test_overfit.py")
    for item in items:
        if item.get_closest_marker("proof") or "nursery" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Looks for garbage again, but not among what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def example() -> Path:
    """The chains and the FASTA that come with the project."""
    return ROOT / "data" / "example"


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """Starts commands in processes of their own."""
    return started_nursery()


@pytest.fixture(scope="session")
def shared_structures() -> Path:
    """The folder of real structures beside the project, which is not part of it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the structures of ../shared/data")
    return path


@pytest.fixture(scope="session")
def tiny():
    """Settings of a tiny model with the trunk esmfold_v1."""
    return TINY_ESMFOLD


@pytest.fixture(scope="session")
def folding_model():
    """Makes our model with random weights."""
    from esmfold_peft.adapters.base import AttentionShape
    from esmfold_peft.model.folding import FoldingModel
    from esmfold_peft.model.language_model import LanguageModel

    def make(config, shape=None):
        shape = shape or AttentionShape(layers=2, width=40, heads=4)
        return FoldingModel(LanguageModel.random(shape, seed=1), config, bf16=False)

    return make

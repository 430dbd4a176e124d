"""Checks that need a GPU. scripts/gpu_check.py runs them and keeps their numbers.

Without a GPU they skip. With GPU_CHECK_TINY=1 they run at tiny sizes, on a CPU too, where another
path through the same mathematics stands in for the device.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_checks.models import FULL, TINY, Sizes, small_model, wide_model

from esmfold_peft.config import ModelConfig


@dataclass(frozen=True)
class Scale:
    """How large the checks are.

    Attributes:
        measured: sizes of the measurements.
        models: of the comparison with the CPU by name.
        length: residues of the longer of its two chains.
        trained: the model that the commands train.
        crop: residues of its crops.
        steps: of the training that must learn.
        ends: steps at both ends over which loss and lDDT-Cα are averaged.
        largest_loss: the loss at the end as a share of that at the start, at most.
        least_gain: of lDDT-Cα from start to end.
        compared_steps: of runs that are compared with each other.
        scarce: chains and residues that are folded with too little memory.
    """

    measured: Sizes
    models: dict[str, ModelConfig]
    length: int
    trained: ModelConfig
    crop: int
    steps: int
    ends: int
    largest_loss: float
    least_gain: float
    compared_steps: int
    scarce: tuple[int, int] = (8, 256)


SCALES = {
    False: Scale(
        measured=FULL,
        models={"small": small_model(2, 4), "wide": wide_model(2, 8)},
        length=64,
        trained=small_model(2, 4),
        crop=64,
        steps=200,
        ends=20,
        largest_loss=0.8,
        least_gain=0.1,
        compared_steps=10,
    ),
    True: Scale(
        measured=TINY,
        models={"small": small_model(1, 2), "wide": wide_model(1, 2)},
        length=16,
        trained=small_model(1, 2),
        crop=24,
        steps=20,
        ends=4,
        largest_loss=0.95,
        least_gain=0.01,
        compared_steps=4,
    ),
}


def is_tiny() -> bool:
    """Whether the sizes are those for a CPU."""
    return bool(os.environ.get("GPU_CHECK_TINY"))


@pytest.fixture(scope="session")
def scale() -> Scale:
    return SCALES[is_tiny()]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; a CPU for tiny sizes where there is none."""
    if torch.cuda.is_available():
        torch.set_num_threads(min(8, os.cpu_count() or 1))  # the CPU does half of a comparison
        return torch.device("cuda", torch.cuda.current_device())
    if not is_tiny():
        pytest.skip("needs an NVIDIA GPU: PyTorch finds none (GPU_CHECK_TINY=1 takes the CPU)")
    torch.set_num_threads(1)
    return torch.device("cpu")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, where no CPU can stand in for it."""
    if device.type != "cuda":
        pytest.skip("absent: needs a GPU")
    return device


Limit = Callable[[str, float, float], None]


@pytest.fixture
def at_most(record_property) -> Limit:
    """Asserts that a number is within its limit (NaN is not), and keeps both for the report."""

    def check(name: str, value: float, limit: float) -> None:
        record_property(name, f"{value:.3g} <= {limit:.3g}")
        assert value <= limit, f"{name}: {value:.3g} > {limit:.3g}"

    return check


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sends the result of a test to gpu_check.py as soon as it is known."""
    pipe = os.environ.get("GPU_CHECK_ROWS")
    if not pipe or (report.when != "call" and report.passed):
        return
    if report.skipped and isinstance(report.longrepr, tuple):
        detail = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        detail = str(crash.message if crash else report.longrepr).partition("\n")[0]
    else:
        detail = ", ".join(f"{name} {found}" for name, found in report.user_properties)
    file, _, test = report.nodeid.partition("::test_")
    name = f"{Path(file).stem.removeprefix('test_')}: {test.replace('_', ' ')}"
    row = {"name": name, "check": report.nodeid, "status": report.outcome, "detail": detail}
    os.write(int(pipe), (json.dumps(row) + "\n").encode())

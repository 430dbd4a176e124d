"""The host never waits for the GPU in a training step but once, to fetch the step's summary."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from gpu_checks.report import Report
from gpu_checks.running import Context
from gpu_checks.step import AbsentError, Setup, optimizer_step

import esmfold_peft
from tests.gpu.conftest import Scale

PACKAGE = Path(esmfold_peft.__file__).parent
SUMMARY = "training/step_summary.py:"
SYNCHRONIZED = "called a synchronizing CUDA operation"
"""What PyTorch warns of."""


def waits(step: Callable[[], object]) -> Counter[str]:
    """How often a step waits for the GPU, by the innermost line of the package.

    PyTorch must warn of such waits.
    """
    places: Counter[str] = Counter()

    def note(message: Warning | str, *others: object, **more: object) -> None:
        if SYNCHRONIZED in str(message):
            places[own_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        step()
    return places


def own_line() -> str:
    """The innermost line of the package on the stack; the backward pass has none."""
    for frame, line in traceback.walk_stack(None):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE)}:{line}"
    return "elsewhere"


def needless(places: Counter[str]) -> Counter[str]:
    """Waits but for one, of the summary."""
    fetched = [place for place in places if place.startswith(SUMMARY)]
    return places - Counter(fetched[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("setup", [Setup(), Setup(compile=True, graphs=True)], ids=str)
def test_a_step_waits_only_for_its_summary(setup: Setup, scale: Scale, device, tmp_path: Path):
    if setup.compile and not jaxtyping.config.jaxtyping_disable:
        pytest.skip("needs JAXTYPING_DISABLE=1: checks of shapes cannot be compiled")
    sizes = replace(scale.measured, paper=scale.trained, crop=scale.crop)
    context = Context(device, sizes, tmp_path, Report(tmp_path / "r"), tmp_path / "t")
    try:
        step = partial(optimizer_step(setup, context, chains=2), 1)
    except AbsentError as error:
        pytest.skip(str(error))
    for _ in range(2):
        step()  # warms up
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        found = waits(step)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert not needless(found), found


def test_waits_are_counted_by_the_line_of_the_package_that_made_them():
    from esmfold_peft.model.trunks.blocks import run_blocks

    def wait(weights, *tracks_and_dropout):
        warnings.warn(SYNCHRONIZED, stacklevel=1)
        return tracks_and_dropout[:2]

    def step():
        tracks = torch.ones(1), torch.ones(1)
        run_blocks(wait, [None] * 2, [None] * 2, *tracks, recompute=False)
        wait(None)
        warnings.warn("of something else", stacklevel=1)

    found = waits(step)
    (place,) = found.keys() - {"elsewhere"}
    assert place.startswith("model/trunks/blocks.py:")
    assert (found[place], found["elsewhere"]) == (2, 1)
    assert needless(found) == found
    for fetches, over in ((1, 0), (2, 1)):  # a step fetches its summary once
        assert needless(Counter({f"{SUMMARY}59": fetches})).total() == over

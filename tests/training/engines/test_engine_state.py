"""Every engine gives and takes the same parameters, moments, gradients and averages.

`engine_worker.py` trains a toy, in one process and in two. What is copied has the same bits. What
is computed twice may differ by rounding: an engine has its numbers in other places of memory each
time, and processors add in an order that may depend on the place.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esmfold_peft.runs.checkpoint import AdamMoments
from esmfold_peft.training.ema import decay_at

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
WORKER = ROOT / "tests" / "training" / "engines" / "engine_worker.py"
STEPS, BROKEN, CLIP, DECAY = 6, 3, 0.1, 0.4  # as in the worker
ONE = ["single_1", "zero2_1", "zero3_1"]
TWO = ["ddp_2", "zero0_2", "zero1_2", "zero2_2", "zero3_2", "zero2_offload_2", "zero3_offload_2"]
every_engine = pytest.mark.parametrize("engine", ONE + TWO)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each engine's probes have seen."""
    folder = tmp_path_factory.mktemp("engines")
    command = [sys.executable, str(WORKER), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return {p.stem: torch.load(p, weights_only=False) for p in folder.glob("*.pt")}


def assert_close(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        difference = (ours[name].double() - tensor.double()).norm()
        assert difference <= 3e-6 * tensor.double().norm(), name


def assert_copied(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].view(torch.int32), tensor.view(torch.int32)), name


def flat(moments: dict[str, AdamMoments]) -> Tensors:
    """Moments and counts as tensors by name."""
    keys = ("exp_avg", "exp_avg_sq")
    found = {f"{key} {name}": getattr(m, key) for name, m in moments.items() for key in keys}
    return found | {f"step {n}": torch.tensor(float(m.step)) for n, m in moments.items()}


def everything(state: dict) -> Tensors:
    """All that a training resumes from."""
    averages = {f"average {n}": tensor for n, tensor in state["average"].items()}
    return state["parameters"] | flat(state["adam"]) | averages


@every_engine
def test_all_engines_come_to_the_same_training(engine: str, results):
    ours, theirs = (results[e]["plain"]["end"] for e in (engine, "single_1"))
    assert_close(everything(ours), everything(theirs))
    assert {moments.step for moments in ours["adam"].values()} == {STEPS}
    # Trained ones, the frozen layer and a buffer; what two layers share is one.
    frozen = {"base.weight", "base.bias", "drawn"}
    assert ours["parameters"].keys() == ours["adam"].keys() | frozen
    assert "first.factor" in ours["adam"]
    assert "second.factor" not in ours["parameters"]
    assert results[engine]["plain"]["untrained"] == {}


@every_engine
def test_reading_averaging_and_validating_change_nothing(engine: str, results):
    plain, probed = (results[engine][run]["end"] for run in ("plain", "probed"))
    assert_close(everything(probed), everything(plain))


@every_engine
def test_a_training_resumes_as_if_it_had_never_stopped(engine: str, results):
    mine = results[engine]
    assert_copied(everything(mine["resumed"]["start"]), everything(mine["probed"]["saved"]))
    assert_close(everything(mine["resumed"]["end"]), everything(mine["plain"]["end"]))
    assert mine["resumed"]["end"]["updates"] == STEPS


@every_engine
def test_a_training_resumes_with_another_engine_or_number_of_processes(engine: str, results):
    mine = results[engine]
    assert_close(everything(mine["moved"]["end"]), everything(mine["plain"]["end"]))


@every_engine
def test_norms_are_those_of_the_whole_averaged_gradient(engine: str, results):
    ours, theirs = (results[e]["probed"]["norms"] for e in (engine, "single_1"))
    assert len(ours) == STEPS
    for mine, single in zip(ours, theirs, strict=True):
        assert list(mine) == ["adapter", "trunk", "head", "total"]
        assert mine == pytest.approx(single, rel=1e-6)
        assert mine["total"] == pytest.approx(math.hypot(*list(mine.values())[:-1]), rel=1e-9)
        assert mine["total"] > 10 * CLIP


@every_engine
def test_norms_are_those_that_move_the_parameters(engine: str, results):
    # Adam with a large eps makes a first step along the gradient, which was clipped.
    seen = results[engine]["clipped"]
    before, after = seen["path"]
    moved = {name: (after[name] - tensor).norm() for name, tensor in before.items()}
    assert math.hypot(*moved.values()) == pytest.approx(CLIP, rel=1e-3)
    share = CLIP / seen["norms"][0]["total"]
    trunk = math.hypot(moved["trunk.weight"], moved["trunk.bias"])
    assert trunk == pytest.approx(share * seen["norms"][0]["trunk"], rel=1e-2)


@every_engine
@pytest.mark.parametrize("run", ["broken", "discarded"])
def test_a_discarded_step_leaves_no_trace(engine: str, run: str, results):
    seen = results[engine][run]
    assert_copied(flat(seen["after"]["adam"]), flat(seen["kept"]["adam"]))
    assert_copied(seen["after"]["parameters"], seen["kept"]["parameters"])
    skipped = results[engine]["skipped"]["end"]
    assert_close(flat(seen["end"]["adam"]), flat(skipped["adam"]))
    assert_close(seen["end"]["parameters"], skipped["parameters"])
    # Lightning's count and the learning rate continue as if it had been made.
    assert seen["steps"] == STEPS
    assert seen["rates"] == pytest.approx([0.01 * 0.9 ** (i + 1) for i in range(STEPS)])


@every_engine
def test_a_nan_in_one_process_is_seen_in_all(engine: str, results):
    norms = results[engine]["broken"]["norms"]
    for step, found in enumerate(norms):
        assert all(math.isnan(norm) == (step == BROKEN) for norm in found.values())


@every_engine
def test_the_average_has_its_closed_form(engine: str, results):
    seen = results[engine]["probed"]
    first, *path = seen["path"]
    average = {name: tensor.double() for name, tensor in first.items()}
    for step, parameters in enumerate(path):
        keep = min(DECAY, (1 + step) / (10 + step))
        for name in average:
            average[name] = keep * average[name] + (1 - keep) * parameters[name].double()
    assert len(path) == seen["end"]["updates"] == STEPS
    assert_close(seen["end"]["average"], average)


@every_engine
def test_a_validation_sees_the_average_and_later_ones_the_parameters(engine: str, results):
    seen = results[engine]["probed"]
    average, raw = results[engine]["expected"]
    assert_close({"inside": seen["inside"]}, {"inside": average})
    assert_close({"outside": seen["outside"]}, {"outside": raw})
    assert (average - raw).abs().max() > 1e-3


def test_the_toy_has_parameters_that_stage_3_keeps_whole(results):
    for engine in ("zero3_1", "zero3_2", "zero3_offload_2"):
        seen = results[engine]["plain"]
        assert set(seen["end"]["adam"]) - set(seen["persistent"]) == {"trunk.weight"}


def test_a_single_process_does_without_deepspeed(results):
    assert not results["single_1"]["plain"]["imported"]
    assert results["zero2_1"]["plain"]["imported"]


def test_an_average_forgets_its_beginning_fast_and_then_slowly():
    assert [decay_at(n, 0.999) for n in (0, 8, 8989)] == pytest.approx([0.1, 0.5, 0.999], abs=2e-6)
    assert decay_at(10**6, 0.999) == 0.999
    assert decay_at(100, 0.0) == 0.0

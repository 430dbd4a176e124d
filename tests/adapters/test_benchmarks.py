"""The benchmarks of adapters: who takes part, how many kernels a step needs, and what they show."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esmfold_peft.adapters.insert import ADAPTERS

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"
LAYERS = 12  # of the benchmark's "tiny"


@pytest.fixture(scope="module")
def script():
    """Imports a file of the benchmarks by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module


@pytest.fixture(scope="module")
def report(script, tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark") / "adapters.json"
    words = "--models tiny --batch 2 --length 12 --padding 3 --rounds 2 --device cpu"
    words += " --many 5 --many-length 7"
    targets = "--targets query key value output"
    script("adapters").main([*words.split(), *targets.split(), "--output", str(output)])
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def found(report):
    return report["models"]["tiny"]


def test_every_adapter_and_all_baselines_take_part(found):
    assert set(found) == {*ADAPTERS, "frozen", "peft lora", "authors' lorta"}
    assert found["frozen"]["parameters"] == 0
    assert found["peft lora"]["parameters"] == found["lora"]["parameters"]
    assert found["authors' lorta"]["parameters"] == found["lorta"]["parameters"]


def test_lorta_computes_at_most_60_kernels_a_layer(found):
    assert found["lorta"]["kernels"] <= 60 * LAYERS


def test_lorta_needs_far_fewer_kernels_than_its_authors_program_and_peft(found):
    assert found["authors' lorta"]["kernels"] > 5 * found["lorta"]["kernels"]
    assert found["lorta"]["kernels"] < found["peft lora"]["kernels"]


def test_ratios_are_those_of_the_rounds(found):
    for row in found.values():
        assert set(row["over"]) == {"frozen", "lora", "peft"}
        assert all(value > 0 for value in (row["seconds"], *row["over"].values()))
        assert row["peak_bytes"] > 0
    assert found["frozen"]["over"]["frozen"] == 1.0
    first, second = (
        mine / frozen
        for mine, frozen in zip(
            found["lorta"]["seconds_of_rounds"], found["frozen"]["seconds_of_rounds"], strict=True
        )
    )
    assert found["lorta"]["over"]["frozen"] == pytest.approx((first + second) / 2)


def test_many_adapters_are_timed_beside_one(report):
    many = report["many"]["tiny"]
    assert set(many) == {"one adapter", "one each", "ratio"}
    assert all(value > 0 for value in many.values())


def test_the_record_says_what_was_measured_and_where(report):
    assert report["settings"]["rank"] == 8
    assert report["circumstances"]["threads"] == 1
    assert report["circumstances"]["torch"] == torch.__version__
    assert {"device", "git_commit", "date"} <= report["circumstances"].keys()


def test_peak_memory_of_a_hand_counted_step(script):
    def step():
        first = torch.empty(1000, 1000)
        second = first + first  # two matrices
        del first
        third = second + second  # two again
        second + third  # three

    peak = script("measuring").peak_memory(step, torch.device("cpu"))
    assert 12_000_000 <= peak < 12_001_000  # and a few scalars


def test_kernels_of_a_hand_counted_step(script):
    x = torch.ones(4, 4, requires_grad=True)

    def step():
        y = (x @ x).T.reshape(-1)[None]  # a product, and a copy because of the transposition
        y.sum().backward(torch.ones(()))  # a sum and a 1; backward two products and their sum

    # All else is views: transpose, [None], and the gradients of these and of the sum.
    assert script("measuring").kernels(step) == 7


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_a_model_with_other_weights_is_not_timed(script):
    contenders = script("contenders")
    lm = contenders.frozen_model(script("adapters").MODELS["tiny"], torch.device("cpu"))
    other = contenders.hugging_face_model(lm)
    aatype = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        other.encoder.layer[2].output.dense.bias.add_(0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "hugging_face_model", lambda lm: other)
        config = script("adapters").AdapterConfig(rank=2)
        with pytest.raises(SystemExit, match="peft lora is not comparable"):
            contenders.build_contenders(lm, [], config, aatype, aatype == 0)


def found_by(name, *words, folder):
    """What a benchmark writes, in a process of its own, whose steps no type checks slow."""
    command = [sys.executable, SCRIPTS / name, *words, "--output", folder / "found.json"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.proof
def test_one_scale_suits_every_rank_with_unit_factors_and_not_with_the_papers(
    script, tmp_path: Path
):
    """The claim that init "unit" exists for: the best alpha / rank does not move with the rank."""
    found = found_by("lorta_scale.py", "--quick", folder=tmp_path)["inits"]
    unit, paper = found["unit"], found["paper"]
    assert unit["spread"] <= 4, unit["best"]
    assert paper["spread"] > 10, paper["best"]
    # Unit's best lie inside the grid, so that their spread is known; where the paper's lie at its
    # edges, a wider grid would only move them further apart (the script without --quick: 2 and
    # 16384).
    scales = script("lorta_scale").QUICK.scales["unit"]
    assert all(scales[0] < best < scales[-1] for best in unit["best"].values())


def test_a_student_can_learn_and_a_hopeless_one_is_given_up(script):
    module = script("lorta_scale")
    task = module.make_task(0)
    config = module.AdapterConfig("lorta", 8, 16.0, targets=module.ATTENTION)
    assert module.train(task, config, 5) < 1
    assert task.lm.adapter is None


@pytest.mark.proof
def test_openfolds_epsilon_holds_lorta_of_rank_64_still(tmp_path: Path):
    words = ["--arms", "lorta_r64", "--eps", "1e-5", "1e-15", "--steps", "3"]
    damped, free = found_by("paper_arms.py", *words, folder=tmp_path)["rows"]
    factors = ("a", "c_h", "c_l", "c_m")
    assert all(damped["damping"][name] < 0.01 for name in factors)
    assert all(free["damping"][name] > 0.9 for name in (*factors, "b"))
    # Of B, whose gradient is the largest, it leaves a part.
    assert damped["damping"]["a"] < damped["damping"]["b"] < 0.5
    assert 0 < damped["relative_update"] < free["relative_update"]

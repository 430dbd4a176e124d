"""The claim that init "unit" exists for: the best alpha / rank of LoRTA does not move with rank."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("lorta_scale")


@pytest.mark.proof
def test_one_scale_suits_every_rank_with_unit_factors_and_not_with_the_papers(
    script, tmp_path: Path
):
    # In a process of its own, whose steps no type checks slow.
    words = [SCRIPTS / "lorta_scale.py", "--quick", "--output", tmp_path / "found.json"]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())["inits"]
    unit, paper = found["unit"], found["paper"]
    assert unit["spread"] <= 4, unit["best"]
    assert paper["spread"] > 10, paper["best"]
    # Unit's best lie inside the grid, so that their spread is known; where the paper's lie at its
    # edges, a wider grid would only move them further apart (the script without --quick: 2 and
    # 16384).
    scales = script.QUICK.scales["unit"]
    assert all(scales[0] < best < scales[-1] for best in unit["best"].values())


def test_a_student_can_learn_and_a_hopeless_one_is_given_up(script):
    task = script.make_task(0)
    config = script.AdapterConfig("lorta", 8, 16.0, targets=script.ATTENTION)
    assert script.train(task, config, 5) < 1
    assert task.lm.adapter is None

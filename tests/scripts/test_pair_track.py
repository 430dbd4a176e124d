"""The script that trains with both types of the pair track: a tiny run, and its kept result."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
RESULT = BENCHMARKS / "results" / "pair_track_cpu.json"
TRACKS = ("bf16, float32 track", "bf16, bf16 track")


@pytest.mark.slow
def test_the_ways_start_alike_and_the_tracks_differ(tmp_path: Path):
    output = tmp_path / "found.json"
    words = "--steps 4 --window 2 --blocks 1 --seeds 3 --output".split()
    command = [sys.executable, BENCHMARKS / "pair_track.py", *words, output]
    subprocess.run(command, check=True, capture_output=True)
    exact, wide, narrow = json.loads(output.read_text())["rows"]
    assert (wide["way"], narrow["way"]) == TRACKS
    assert {row["seed"] for row in (exact, wide, narrow)} == {3}
    # The same weights, crops and dropout: in the first steps only roundings differ.
    for row in (wide, narrow):
        assert row["curve"] == pytest.approx(exact["curve"], rel=0.01)
        assert len(row["curve"]) == 2
    # At the very first step no loss depends on pairs: the layers behind them are zero.
    assert len({row["last"] for row in (exact, wide, narrow)}) == 3


def laws(found: dict) -> None:
    """What the numbers of any run obey."""
    by = {(row["seed"], row["way"]): row for row in found["rows"]}
    seeds = found["settings"]["seeds"]
    for way, numbers in found["differences"].items():
        for name, gaps in numbers.items():
            own = [by[seed, way][name] - by[seed, TRACKS[0]][name] for seed in seeds]
            assert gaps == pytest.approx(own)
    for row in found["rows"]:
        assert row["mean"] == pytest.approx(statistics.fmean(row["curve"]), rel=0.01)
        assert row["curve"][-1] < row["curve"][0]


def test_the_kept_result_is_paired_and_names_no_machine():
    text = RESULT.read_text()
    found = json.loads(text)
    laws(found)
    assert len(found["rows"]) == 3 * len(found["settings"]["seeds"]) >= 9
    assert "-dirty" not in found["circumstances"]["git_commit"]
    assert not any(folder in text for folder in ("/home", "/tmp", "/work", "/root"))

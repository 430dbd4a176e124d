"""All of scripts/gpu_check.py at tiny sizes on a CPU, and what its verdicts rest on."""

import json
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from esmfold_peft.config import EvoformerConfig, ModelConfig
from esmfold_peft.model.trunks.openfold import Evoformer
from esmfold_peft.model.trunks.tiling import Tiles, read_tiles, tiles_on, write_tiles

SCRIPTS = Path(__file__).parents[2] / "scripts"
HARDWARE_OR_PACKAGE = ("absent: ", "not installed", "no peak is known", "tiny: ")


@pytest.fixture
def context(script, tmp_path):
    """What checks share, at tiny sizes on a CPU; what they change is forgotten."""
    running, report = script("gpu_checks.running"), script("gpu_checks.report")
    sizes, tiles = script("gpu_checks.models").TINY, tmp_path / "tiles" / "cpu.json"
    found = report.Report(tmp_path / "found.json")
    tiles_on.cache_clear()
    yield running.Context(torch.device("cpu"), sizes, tmp_path, found, tiles)
    tiles_on.cache_clear()


@pytest.fixture(scope="module")
def tiny(script, tmp_path_factory):
    """Exit code and JSON of the whole command, which no clock ends: the machine may be busy."""
    folder = tmp_path_factory.mktemp("gpu_check")
    output = folder / "found.json"
    words = ["--tiny", "--device", "cpu", "--minutes", "60", "--output", str(output)]
    patient = [replace(check, seconds=3600) for check in script("gpu_check").CHECKS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", str(folder))
        patch.setattr(script("gpu_check"), "CHECKS", patient)
        code = script("gpu_check").main(words)
    tiles_on.cache_clear()
    assert not list(folder.glob("gpu_check_*"))  # no scratch is left
    return code, json.loads(output.read_text()), folder


@pytest.mark.proof
def test_everything_runs_at_tiny_sizes_on_a_cpu(script, tiny):
    code, found, _ = tiny
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])  # every name once
    assert [row for row in rows.values() if row["status"] == "failed"] == []
    skipped = [row for row in rows.values() if row["status"] == "skipped"]
    assert all(row["detail"].startswith(HARDWARE_OR_PACKAGE) for row in skipped)
    # Kernels of 12 kinds, memory twice, waits compiled; cuEquivariance, the peak, a block and a
    # step compiled, CUDA graphs twice, PEFT, the profile's busy share.
    assert len(skipped) <= 12 + 2 + 1 + 8
    assert code == 0
    assert found["environment"]["torch"] == torch.__version__
    checks = [check.name for check in script("gpu_check").CHECKS]
    assert [name for name in found["ended"] if "::" not in name] == checks
    # In the order of the checks, each of which has rows; the tests have names of their own.
    own = dict.fromkeys(row["check"].partition("/")[0] for row in rows.values())
    assert list(own) == checks
    assert "positions " in rows["parity: float32 is the cpus[small-positions]"]["detail"]


@pytest.mark.proof
def test_the_step_and_the_goals_have_their_rows(tiny):
    rows = {row["name"]: row for row in tiny[1]["rows"]}
    step = {name.partition(": ")[2]: row["value"] for name, row in rows.items() if "step," in name}
    parts = ("language model", "trunk", "structure module", "losses", "operations of the model")
    assert all(step[part] > 0 for part in parts)
    once, twice = (rows[f"step, 2 x 12, plain, {k} recycles"]["value"] for k in range(2))
    mean = rows["step, 2 x 12, plain, mean over 0 to 3 recycles"]["value"]
    by_recycles = [once + k * (twice - once) for k in range(4)]
    assert mean == pytest.approx(sum(by_recycles) / 4)
    goals = {name: row["limit"] for name, row in rows.items() if row["limit"] is not None}
    assert goals == {
        "step, 2 x 12, plain, mean over 0 to 3 recycles": 2.5,
        "ESM-2 tiny, 1 x 8, bf16: lora / frozen": 1.1,
        "ESM-2 tiny, 1 x 8, bf16: lorta / lora": 1.0,
        "inference, 8 residues, 3 recycles, bf16": 0.08,
        "inference, 12 residues, 3 recycles, bf16": 1.5,
    }


@pytest.mark.proof
def test_the_package_reads_the_tiles_that_a_sweep_writes(tiny):
    default = tiles_on(torch.device("cpu"))
    found = read_tiles(tiny[2] / "tiles" / "cpu.json", default)
    assert found.keys() == {key for key in default if key[1] == torch.bfloat16}


def block_flops(c: EvoformerConfig, n: int) -> int:
    """Matrix products of one Evoformer block on one chain, counted by hand; 2 for each term."""
    msa, pair = c.heads_msa * c.c_head_msa, c.heads_pair * c.c_head_pair
    row_attention = n**2 * c.c_z * c.heads_msa + 5 * n * c.c_m * msa + 2 * n**2 * msa
    transitions = 2 * c.transition * (n * c.c_m**2 + n**2 * c.c_z**2)
    # The outer product of one row sums nothing: it is no matrix product. Half of what follows it is
    # done residue by residue.
    outer = 2 * n * c.c_m * c.c_opm + n * c.c_opm**2 * c.c_z + n**2 * c.c_opm * c.c_z
    multiplication = n**2 * (5 * c.c_z * c.c_mul + c.c_z**2) + n**3 * c.c_mul
    attention = n**2 * c.c_z * (c.heads_pair + 5 * pair) + 2 * n**3 * pair
    return 2 * (row_attention + transitions + outer + 2 * multiplication + 2 * attention)


@pytest.mark.parametrize("n", [7, 12])
def test_operations_of_the_evoformer_are_those_counted_by_hand(script, n):
    config = EvoformerConfig(
        c_m=24, c_z=16, c_s=20, heads_msa=3, c_head_msa=5, heads_pair=2, c_head_pair=6,
        c_opm=4, c_mul=10, transition=2, blocks=1,
    )  # fmt: skip
    evoformer = Evoformer(ModelConfig(evoformer=config))

    @torch.no_grad()
    def fold():
        mask = torch.ones(1, n, dtype=torch.bool)
        evoformer(torch.randn(1, n, config.c_m), torch.randn(1, n, n, config.c_z), mask, None)

    single = 2 * n * config.c_m * config.c_s
    assert script("gpu_checks.card").counted(fold) == block_flops(config, n) + single


def test_operations_of_two_blocks_give_those_of_all(script):
    flops, models, paper = (script(f"gpu_checks.{name}") for name in ("card", "models", "step"))
    model = models.shaken_model(models.settings(models.small_model(3, 1)))
    training = paper.training_of(model, models.real_batch(6, 1), 0)
    found = flops.model_flops(training)

    def step():
        training.loss(training.fold()).backward()

    assert found.step == flops.counted(step)
    once, twice = (paper.training_of(model, training.batch, k).fold for k in (1, 2))
    assert found.recycle == flops.counted(twice) - flops.counted(once)


@pytest.mark.parametrize(
    ("name", "tflops", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
    ],
)
def test_peaks_of_a_card_by_its_name(script, name, tflops, gigabytes):
    found = script("gpu_checks.card").peaks_of(name)
    assert found == pytest.approx((tflops * 1e12, gigabytes * 1e9))


def test_no_peak_is_made_up(script):
    for name in ("CPU", "NVIDIA H1000", "NVIDIA L400", "NVIDIA GeForce RTX 4080"):
        assert script("gpu_checks.card").peaks_of(name) == (None, None)


def test_only_the_checks_that_are_named_are_run(script):
    check = script("gpu_check")

    def chosen(names, call):
        return [each.name for each in check.chosen_checks(names, call)]

    assert chosen(["step", "card"], None) == ["card", "step"]
    assert chosen(["step", "card"], 2) == ["step"]
    assert check.chosen_checks(None, None) == check.CHECKS
    assert chosen(None, 1) + chosen(None, 2) == [each.name for each in check.CHECKS]
    with pytest.raises(SystemExit, match='no check is named "steps"; there are: environment, '):
        check.main(["--only", "steps", "--tiny"])


def test_full_sizes_are_not_begun_without_a_gpu(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = script("gpu_check")
    assert check.chosen_device("auto", tiny=True) == torch.device("cpu")
    with pytest.raises(SystemExit, match="finds no GPU"):
        check.chosen_device("auto", tiny=False)
    with pytest.raises(SystemExit, match="finds no GPU"):
        check.chosen_device("cuda", tiny=True)


def test_the_limit_of_a_check_rings_the_alarm(script):
    running = script("gpu_checks.running")
    with pytest.raises(running.OutOfTimeError), running.time_limit(0.01):
        time.sleep(60)


def test_a_check_that_breaks_or_takes_too_long_loses_no_other(script, context, tmp_path):
    running, report = (script(f"gpu_checks.{name}") for name in ("running", "report"))
    path = tmp_path / "found.json"

    def breaks(context):
        yield report.measured("before", 1.0)
        raise SystemExit("not comparable")

    def sleeps(context):
        yield report.measured("begun", float("nan"))
        signal.raise_signal(signal.SIGALRM)  # the alarm of its limit
        time.sleep(60)

    def last(context):
        written = json.loads(path.read_text())["rows"]
        yield report.measured("rows written before", len(written))

    check = partial(running.Check, call=1, seconds=60)
    checks = [
        check("breaks", run=breaks),
        check("sleeps", run=sleeps),
        check("sleeps too", run=sleeps, required=True),
        check("last", run=last),
        check("long", run=last, needs=1e6),
        check("also long", run=last, needs=1e6, required=True),
    ]
    deadline = time.monotonic() + 1000
    running.run_checks(checks, context, deadline=deadline, say=lambda row: None)
    written = json.loads(path.read_text())
    assert [(row["name"], row["status"], row["value"]) for row in written["rows"]] == [
        ("before", "passed", 1.0),
        ("breaks", "failed", None),
        ("begun", "passed", "nan"),
        ("sleeps", "skipped", None),
        ("begun", "passed", "nan"),
        ("sleeps too", "failed", None),
        ("rows written before", "passed", 6),
        ("long", "skipped", None),
        ("also long", "failed", None),
    ]
    assert "SystemExit: not comparable (test_gpu_check.py:" in written["rows"][1]["detail"]
    assert written["rows"][7]["detail"] == "no time left"
    assert written["counts"] == {"passed": 4, "failed": 3, "skipped": 2}
    assert written["ended"] == ["breaks", "last"]


GPU_TESTS = """
import os
import signal

def test_passes():
    pass

def test_fails():
    assert 1 == 2

def test_breaks():
    os.kill(os.getpid(), signal.SIGKILL) if not os.path.exists("mended") else None

def test_last():
    pass
"""


@pytest.mark.slow
def test_gpu_tests_that_ended_are_not_run_again(script, context, monkeypatch, tmp_path):
    running = script("gpu_checks.running")
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    hook = (SCRIPTS.parent / "tests" / "gpu" / "conftest.py").read_text().partition("Limit = ")[2]
    imports = (
        "import json, os, pytest\nfrom pathlib import Path\nfrom collections.abc import Callable"
    )
    (folder / "conftest.py").write_text(f"{imports}\nLimit = {hook}")
    (folder / "test_x.py").write_text("import pytest\npytestmark = pytest.mark.gpu\n" + GPU_TESTS)
    monkeypatch.setattr(running, "ROOT", tmp_path)
    check = running.Check("tests", 1, running.gpu_tests, 100, required=True)

    def run() -> list[tuple[str, str]]:
        before = len(context.report.rows)
        running.run_checks([check], context, deadline=time.monotonic() + 100, say=lambda row: None)
        return [(row.name, row.status) for row in context.report.rows[before:]]

    assert run() == [("x: passes", "passed"), ("x: fails", "failed"), ("pytest", "failed")]
    assert "assert 1 == 2" in context.report.rows[1].detail
    assert "ended with code -9" in context.report.rows[2].detail
    (tmp_path / "mended").touch()
    context.report.ended.remove("tests")  # as if the call had been stopped
    assert run() == [("x: breaks", "passed"), ("x: last", "passed")]


def test_a_resumed_report_runs_again_only_what_had_not_ended(script, tmp_path, monkeypatch):
    check, report = script("gpu_check"), script("gpu_checks.report")
    file, runs = tmp_path / "found.json", []

    def checks(broken):
        def rows_of(name):
            def rows(context):
                runs.append(name)
                yield report.measured(f"{name}: first", len(runs))
                if name == broken:
                    raise KeyboardInterrupt  # the machine is taken away
                yield report.failed(f"{name}: second", "wrong")

            return rows

        return [check.Check(k, int(k[1]), rows_of(k), 60) for k in ("a1", "b1", "c2")]

    def call(*words, broken=None):
        monkeypatch.setattr(check, "CHECKS", checks(broken))
        check.main(["--tiny", "--device", "cpu", *map(str, words)])

    with pytest.raises(KeyboardInterrupt):
        call("--output", file, "--call", 1, broken="b1")
    names = [row["name"] for row in json.loads(file.read_text())["rows"]]
    assert names == ["a1: first", "a1: second", "b1: first"]
    call("--resume", file, "--call", 1)
    call("--resume", file)
    assert runs == ["a1", "b1", "b1", "c2"]
    found = [(row["name"], row["value"]) for row in json.loads(file.read_text())["rows"]]
    assert found == [
        ("a1: first", 1), ("a1: second", None), ("b1: first", 3), ("b1: second", None),
        ("c2: first", 4), ("c2: second", None),
    ]  # fmt: skip
    call("--resume", file, "--output", tmp_path / "other.json")  # nothing is left to do
    assert (
        json.loads((tmp_path / "other.json").read_text())["rows"]
        == json.loads(file.read_text())["rows"]
    )


def test_a_report_of_another_card_is_not_resumed(script, tmp_path):
    check, file = script("gpu_check"), tmp_path / "found.json"
    content = {"tiny": True, "card": "NVIDIA H100 PCIe", "ended": [], "rows": []}
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"json: its card is NVIDIA H100 PCIe, here it is cpu"):
        check.main(["--tiny", "--device", "cpu", "--resume", str(file)])
    file.write_text("{}")
    with pytest.raises(SystemExit, match=r"found\.json: not a report"):
        check.main(["--tiny", "--device", "cpu", "--resume", str(file)])


def test_a_sweep_takes_the_fastest_tiles_that_are_right(script, context, monkeypatch):
    sweeps = script("gpu_checks.kernels")
    key, table = ("key", torch.bfloat16, True), tiles_on(context.device)
    usual, fast, faster, wrong, broken = table[key], *(Tiles(16, w, 1) for w in (1, 2, 4, 8))
    times = {usual: 5.0, fast: 3.0, faster: 2.0, wrong: 1.0}
    monkeypatch.setattr(sweeps, "milliseconds", lambda *arguments: times[table[key]])

    def step():
        if table[key] == broken:
            raise RuntimeError("out of resources")
        return (torch.full((4,), 2.0 if table[key] == wrong else 1.0),)

    candidates = [broken, fast, faster, wrong]
    row = sweeps.fastest("x", key, candidates, step, context, seconds=60)
    assert table[key] == faster
    assert (row.value, row.unit) == (2.0, "ms")
    assert "16/all, 8 warps, 1: RuntimeError; 16/all, 1 warps, 1: 3.000" in row.detail
    assert "16/all, 4 warps, 1: off by 100%" in row.detail
    table[key] = usual
    row = sweeps.fastest("x", key, candidates, step, context, seconds=0)
    assert (table[key], row.value) == (usual, 5.0)
    assert row.detail.endswith("no time for the others")


def test_the_tiles_of_an_earlier_call_are_used(script, context):
    check = script("gpu_check")
    check.use_tiles(context)  # there is no file
    key = ("key", torch.bfloat16, True)
    write_tiles(context.tiles, {key: Tiles(64, 16, 3)}, {})
    check.use_tiles(context)
    assert tiles_on(context.device)[key] == Tiles(64, 16, 3)
    context.tiles.write_text("{")
    with pytest.raises(SystemExit, match=r"gpu_check: .*cpu\.json: "):
        check.use_tiles(context)


def test_a_sweep_tries_twelve_tiles_at_most(script):
    sweeps = script("gpu_checks.kernels")
    default = tiles_on(torch.device("cpu"))
    for (kernel, whole), shapes in sweeps.SHAPES.items():
        usual = default[kernel, torch.bfloat16, whole]
        tried = {Tiles(t, w, s, block) for t, w, block in shapes for s in sweeps.STAGES[whole]}
        assert len({usual, *tried}) <= 12

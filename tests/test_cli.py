"""The command line as a user meets it: help, settings, and every way to get them wrong."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from esmfold_peft.cli import main, parse
from esmfold_peft.config import DataConfig, SearchConfig, TrainConfig
from esmfold_peft.config.parsing import (
    config_of,
    config_parser,
    config_text,
    read_config,
    to_config,
)
from esmfold_peft.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "tiny.yaml")

TRAIN = ["train", "--run", "r", "--data.train", "t"]
HEAVY = {"torch", "pytorch_lightning", "numpy", "scipy", "matplotlib", "pyarrow", "gemmi"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["predict", "--help"],
        ["evaluate", "--help"],
        [*TRAIN, "--config", TINY, "--print_config"],
        ["adapters", "--help"],
        ["adapters", "count", "--help"],
        ["adapters", "merge", "--help"],
        ["adapters", "export", "--help"],
        ["adapters", "import", "--help"],
        ["weights", "--help"],
        ["weights", "inspect", "--help"],
    ],
)
def test_help_and_settings_need_no_package_that_takes_long_to_import(arguments: list[str]):
    code = (
        "import sys\nfrom esmfold_peft.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
        f"found = {HEAVY!r} & {{*sys.modules}}\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or "language_model" in done.stdout


FAULTS = """
import ctypes, resource
from esmfold_peft.cli import _reuse_freed_memory
_reuse_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(1 << 26)
    libc.memset(block, 1, 1 << 26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_the_kernel():
    """Twenty blocks of 64 MiB cost the page faults of one, but where the environment decides."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    counts = [
        int(subprocess.check_output([sys.executable, "-c", FAULTS], env=own | more))
        for more in ({}, {"MALLOC_MMAP_THRESHOLD_": "1000000"})
    ]
    assert 10 * counts[0] < counts[1]


def fails_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Runs a command that must end with exit code 2 and one line, which is returned."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data.trian", "x"], "data.trian"),
        (["--adapter.kind", "lorat"], "error: adapter.kind: lorat is none of none, full, lora, "),
        (["--adapter.targets", "[qury]"], "error: adapter.targets: qury is none of query, "),
        (["--engine.steps", "many"], "error: engine.steps: many is not a whole number"),
        (["--engine.batch_size", "0"], "engine.batch_size: 0"),
        (["--engine.micro_batch", "0"], "engine.micro_batch: 0 is less than 1"),
        (["--engine.micro_batch", "-1"], "engine.micro_batch: -1 is less than 1"),
        (
            ["--engine.micro_batch", "many"],
            "error: engine.micro_batch: many is none of a whole number, auto",
        ),
        (
            ["--engine.cuda_graphs", "3"],
            "error: engine.cuda_graphs: 3 is none of true, false, auto",
        ),
        (["--model.chunk", "many"], "error: model.chunk: many is none of a whole number, null"),
        (["--model.evoformer.blocks", "-1"], "model.evoformer.blocks: -1"),
        (["--model.evoformer.checkpoint", "true"], "this setting is now called recompute"),
        (["--optimizer.lr", "-0.1"], "optimizer.lr: -0.1"),
        (["--loss.clamp_probability", "1.5"], "loss.clamp_probability: 1.5"),
        (["--model.evoformer.dropout_pair", "1.5"], "model.evoformer.dropout_pair: 1.5"),
        (["--model.freeze", "[head]"], "model.freeze: head would stay random"),
        (
            [
                "--model.freeze",
                "[head]",
                "--model.trunk",
                "esmfold_v1",
                "--loss.weights.resolved",
                "1",
            ],
            "loss.weights.resolved: the published weights of esmfold_v1 have no such head",
        ),
        (
            [f"--loss.weights.{name}=0" for name in ("fape", "chi", "distogram", "plddt")],
            "loss.weights: all are 0",
        ),
        (
            ["--model.kernels", "openfold", "--engine.compile", "true"],
            "engine.compile: not possible",
        ),
        (
            ["--model.kernels", "openfold", "--engine.cuda_graphs", "true"],
            "engine.cuda_graphs: not possible with model.kernels openfold; choose fused",
        ),
        (
            ["--model.kernels", "openfold", "--model.trunk", "esmfold_v1"],
            "model.kernels: openfold is for",
        ),
        (["--model.trunk", "esmfold_v1", "--model.evoformer.blocks", "6"], "blocks: has no effect"),
        (["--adapter.kind", "none", "--adapter.freeze", "[zzz]"], "adapter.freeze: has no effect"),
        (["--model.esmfold.heads", "7"], "model.esmfold.heads: 7 does not divide c_s 1024"),
        (["--model.esmfold.dropout", "0.5"], "model.esmfold.dropout: 0.5"),
        (["--model.chunk", "0"], "model.chunk: 0"),
        (["--optimizer.betas", "[0.9,1.0]"], "optimizer.betas"),
        (
            ["--optimizer.schedule", "linear", "--optimizer.decay_steps", "1000"],
            "optimizer.decay_steps: 1000 is not above optimizer.warmup_steps 1000",
        ),
        (
            ["--optimizer.schedule", "linear", "--engine.steps", "50001"],
            "optimizer.decay_steps: 50000 is below engine.steps 50001",
        ),
        (["--seed", "-1"], "seed: -1"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_wrong_setting_is_named(flags: list[str], named: str, tmp_path: Path, capsys):
    run = tmp_path / "run"
    line = fails_with_one_line(["train", "--run", str(run), "--data.train", "x", *flags], capsys)
    assert named in line
    assert not run.exists()


def test_a_search_with_two_files_says_how_to_give_the_second(capsys):
    line = fails_with_one_line(["search", "a.yaml", "b.yaml", "--output", "s"], capsys)
    assert line.endswith("error: b.yaml: give every file after the first as --config b.yaml")


def test_settings_of_predictions_are_refused_without_them(tmp_path: Path, capsys):
    words = ["prepare", "x", "--output", str(tmp_path / "out"), "--plddt.min_mean", "80"]
    assert "plddt.min_mean: only with --predicted" in fails_with_one_line(words, capsys)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"adapter: 3\n", "adapter: 3 is no group of settings"),
        (b"adapter: {kind: \xff}\n", "not UTF-8"),
        (b"adapter: [1\n", "parsing"),
        (b"- 1\n", "- 1"),
        (b"", ""),
    ],
)
def test_a_file_that_holds_no_settings_is_named(content: bytes, named: str, tmp_path: Path, capsys):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    words = ["train", "--config", str(file), "--run", str(tmp_path / "run"), "--data.train", "x"]
    assert named in fails_with_one_line(words, capsys)
    with pytest.raises(UserError, match=rf"^{file}: "):
        read_config(file, TrainConfig)


@dataclass(frozen=True)
class Broken:
    """Settings whose check has a fault."""

    number: int = 1

    def __post_init__(self) -> None:
        {}["fault"]


def test_a_fault_of_the_program_is_no_wrong_setting(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("number: 2\n")
    with pytest.raises(KeyError, match="fault"):
        read_config(file, Broken)
    with pytest.raises(KeyError, match="fault"):
        config_of({"number": 2}, Broken, file)


@pytest.mark.parametrize("values", [None, 5, [1]])
def test_what_is_no_group_of_settings_is_named(values: Any):
    with pytest.raises(UserError, match=r"^file: .* is no group of settings"):
        config_of(values, TrainConfig, Path("file"))


def test_a_wrong_key_in_a_file_is_named(tmp_path: Path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("adapter:\n  rnak: 2\n")
    line = fails_with_one_line(
        ["train", "--config", str(config), "--run", "r", "--data.train", "x"], capsys
    )
    assert "rnak" in line


def test_training_without_chains_writes_nothing(tmp_path: Path, capsys):
    run = tmp_path / "run"
    line = fails_with_one_line(
        ["train", "--config", TINY, "--run", str(run), "--data.train", str(tmp_path / "none")],
        capsys,
    )
    assert str(tmp_path / "none") in line
    assert not run.exists()


def test_preparing_what_is_not_mmcif_gives_the_reason(tmp_path: Path, capsys):
    file = tmp_path / "page.cif"
    file.write_text("<html>404 not found</html>")
    line = fails_with_one_line(["prepare", str(file), "--output", str(tmp_path / "out")], capsys)
    assert "page.cif" in line
    assert "neither mmCIF nor PDB" in line
    assert "neither mmCIF nor PDB" in (tmp_path / "out" / "rejected.csv").read_text()
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_an_output_that_is_a_file_is_named(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("mine")
    source = ROOT / "data" / "example" / "train"
    for output in (tmp_path / "file", tmp_path / "file" / "deeper"):
        line = fails_with_one_line(["prepare", str(source), "--output", str(output)], capsys)
        assert str(output) in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "named"), [("", "empty"), ("MKT\n", ":1"), (">a\nMKT\n\0\n", "not a text file")]
)
def test_a_broken_fasta_is_named_before_anything_is_written(
    content: str, named: str, tmp_path: Path, capsys
):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(content)
    line = fails_with_one_line(
        ["predict", str(fasta), "--run", "r", "--output", str(tmp_path / "out")], capsys
    )
    assert "in.fasta" in line
    assert named in line
    assert not (tmp_path / "out").exists()


def test_a_missing_run_and_a_missing_checkpoint_are_named(tmp_path: Path, capsys):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYIAK\n")
    command = ["predict", str(fasta), "--run", str(tmp_path), "--output", str(tmp_path / "out")]
    assert "not the folder of a training run" in fails_with_one_line(command, capsys)
    (tmp_path / "config.yaml").write_text("run: x\n")
    assert "model.safetensors" in fails_with_one_line(command, capsys)
    assert not (tmp_path / "out").exists()


def test_evaluate_needs_one_source(tmp_path: Path, capsys):
    line = fails_with_one_line(
        ["evaluate", "--references", str(tmp_path), "--output", str(tmp_path / "out")], capsys
    )
    assert "--run" in line
    assert not (tmp_path / "out").exists()


_SEARCHES = ("paper/figure5.yaml", "paper/table10.yaml", "nano/table10.yaml")
SEARCHES = [ROOT / "configs" / name for name in _SEARCHES]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p not in SEARCHES)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_valid_and_survives_a_round_trip(file: Path, tmp_path: Path):
    parser = config_parser(TrainConfig)
    parsed = parser.parse_args(["--config", str(file), "--run", "r", "--data.train", "t"])
    shipped = to_config(parser, parsed, TrainConfig)
    # Every file sets something, but for the one that writes the defaults out.
    default = TrainConfig(run=Path("r"), data=DataConfig(train=Path("t")))
    assert (shipped == default) == (file.name == "initial.yaml")
    written = tmp_path / "config.yaml"
    written.write_text(config_text(shipped))
    assert read_config(written, TrainConfig) == shipped


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_settings_and_values(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["completion", "bash"])
    assert not leaving.value.code
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    typed = {
        "pre": {"prepare", "predict"},
        "weights f": {"fetch"},
        "train --adapter.ki": {"--adapter.kind"},
        "train --adapter.kind lora_": {"lora_fa"},
    }
    for words, expected in typed.items():
        ask = f"""source {script}
            COMP_WORDS=(esmfold-peft {words}) COMP_CWORD={len(words.split())} COMPREPLY=()
            _shtab_esmfold_peft; echo "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("name", ["paper/lorta_r8", "paper/lorta_r8.yaml", "tiny"])
def test_a_shipped_config_is_found_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    file = (ROOT / "configs" / name).with_suffix(".yaml")
    for words in (["--config", name], [f"--config={name}"]):
        assert _train_settings(words) == _train_settings(["--config", str(file)])


def test_a_file_goes_before_a_shipped_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("engine:\n  steps: 7\n")
    assert _train_settings(["--config", "tiny"]).engine.steps == 7


def test_an_unknown_config_names_the_shipped_ones(capsys):
    line = fails_with_one_line([*TRAIN, "--config", "paper/lora"], capsys)
    assert "paper/lora'" in line
    assert "paper/lora_r1, paper/lorta_r1" in line


def _train_settings(words: list[str]) -> TrainConfig:
    parsed = parse([*TRAIN, *words])
    return to_config(parsed.parser, parsed.values, TrainConfig)


@pytest.mark.parametrize("file", SEARCHES, ids=lambda p: p.name)
def test_every_shipped_search_is_valid_and_survives_a_round_trip(file: Path, tmp_path: Path):
    words = ["search", str(file), "--output", "o", "--data.train", "t", "--data.validation", "v"]
    parsed = parse(words)
    shipped = to_config(parsed.parser, parsed.values, SearchConfig)
    assert shipped.grid == {"lora": [1], "lorta": [1, 8, 64], "none": [], "full": []}
    written = tmp_path / "search.yaml"
    written.write_text(config_text(shipped))
    assert read_config(written, SearchConfig) == shipped


@pytest.mark.parametrize(
    ("stage", "weights", "crop"),
    [
        ("initial", {}, 256),
        ("finetune", {"resolved": 0.01, "violation": 1.0, "pae": 0.1}, 384),
    ],
)
def test_the_stages_are_alphafold2s(stage: str, weights: dict[str, float], crop: int):
    parser = config_parser(TrainConfig)
    file = ROOT / "configs" / "stages" / f"{stage}.yaml"
    parsed = parser.parse_args(["--config", str(file), "--run", "r", "--data.train", "t"])
    config = to_config(parser, parsed, TrainConfig)
    used = {name: value for name, value in asdict(config.loss.weights).items() if value}
    assert used == {"fape": 1.0, "chi": 1.0, "distogram": 0.3, "plddt": 0.01, **weights}
    assert config.data.crop == crop
    if stage == "initial":
        assert config.loss == TrainConfig(config.run, config.data).loss


def test_help_says_what_the_command_does_and_shows_the_most_used_settings_first(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    places = [
        words.index(text)
        for text in (
            "usage: esmfold-peft train [--config FILE] --run RUN --data.train TRAIN [--SETTING",
            "Train an adapter, the trunk and the head on a store of chains.",
            "required: --run RUN",
            "--data.train TRAIN store of the training chains",
            "settings that people change most: --data.validation",
            "--adapter.kind",
            "--adapter.rank",
            "--adapter.alpha",
            "--engine.steps",
            "options:",
            "the folding model:",
        )
    ]
    assert places == sorted(places)
    assert words.count("--engine.steps") == 1

"""The commands of `adapters` as a user meets them: lists, files, and ways to get them wrong."""

import re
from pathlib import Path

import pytest

from esmfold_peft.cli import main, parse
from esmfold_peft.config import CountConfig, ExportConfig, ImportConfig, MergeConfig
from esmfold_peft.config.parsing import to_config


def settings(*arguments: str):
    """What a command line makes of its command's settings."""
    parsed = parse(["adapters", *arguments])
    return to_config(parsed.parser, parsed.values, parsed.settings)


def fails_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Runs a command that must end with exit code 2 and one line, which is returned."""
    try:
        code = main(["adapters", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_lists_are_words_one_after_the_other():
    flags = "--kinds lorta lora --ranks 1 8 64 --models esm2_t33_650M_UR50D --targets query value"
    assert settings("count", *flags.split()) == CountConfig(
        models=("esm2_t33_650M_UR50D",),
        kinds=("lorta", "lora"),
        ranks=(1, 8, 64),
        targets=("query", "value"),
    )
    assert settings("count") == CountConfig()


def test_lists_in_a_file_are_overridden_by_flags(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("kinds: [dora, loretta_rep]\nranks: [4]\ntt_rank: 3\n")
    found = settings("count", "--config", str(file), "--ranks", "2", "6")
    assert found == CountConfig(kinds=("dora", "loretta_rep"), ranks=(2, 6), tt_rank=3)


def test_export_and_import_take_the_adapter_without_a_flag():
    a, b = Path("a"), Path("b")
    assert settings("export", "a", "--output", "b") == ExportConfig(adapter=a, output=b)
    found = settings("import", "a", "--output", "b", "--kind", "lora_fa")
    assert found == ImportConfig(adapter=a, output=b, kind="lora_fa")


def test_merge_takes_both_formats_or_one():
    run, output = Path("r"), Path("o")
    flags = ["--run", "r", "--output", "o", "--formats"]
    assert settings("merge", *flags[:-1]) == MergeConfig(run=run, output=output)
    both = settings("merge", *flags, "transformers", "fair-esm")
    assert both.formats == ("transformers", "fair-esm")
    assert settings("merge", *flags, "fair-esm").formats == ("fair-esm",)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("count --kinds lorat", " count: error: .*lorat"),
        ("count --kinds full", " count: error: kinds: full is no adapter"),
        ("count --ranks 8 many", " count: error: .*many"),
        ("count --ranks 8 0", " count: error: ranks: 0 is less than 1"),
        ("count --targets qury", " count: error: .*qury"),
        ("count --targets query query", " count: error: targets: query is named twice"),
        ("count --models esm3", ' count: error: language model "esm3" is unknown'),
        ("count --tt_rank 0", " count: error: tt_rank: 0 is less than 1"),
        ("count --kinds lora ia3 --bases 3", " count: error: bases: not of the kinds lora, ia3"),
        ("count --reference llama2-7b --bases 3", " count: error: bases: not with --reference"),
        ("count --reference llama3", " count: error: .*llama3"),
        ("count --format xml", " count: error: .*xml"),
        ("count --rnak 3", " count: error: .*rnak"),
        ("merge --output o", " merge: error: give either --run or --adapter"),
        ("merge --output o --run r --adapter a", " merge: error: give either --run or --adapter"),
        ("merge --output o --run r --formats pt", " merge: error: .*pt"),
        ("merge --output o --run nowhere", " merge: error: nowhere: not the folder of a training"),
        (
            "merge --output o --adapter a --language_model.weights random",
            " merge: error: language_model.weights: random has no file",
        ),
        (
            "merge --output o --run r --language_model.name esm2_t6_8M_UR50D",
            " merge: error: language_model: with --run the language model is the run's",
        ),
        ("export --output o", " export: error: .*adapter"),
        ("import a", " import: error: .*output"),
        ("split", ": error: .*split"),
        ("", ": error: .*count,merge,export,import"),
    ],
)
def test_what_is_wrong_is_named_after_the_command(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = fails_with_one_line(arguments.split(), capsys)
    assert re.match(f"esmfold-peft adapters{line}", found), found
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_in_a_file_is_named(tmp_path: Path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("knds: [lora]\n")
    line = fails_with_one_line(["count", "--config", str(file)], capsys)
    assert line == "esmfold-peft adapters count: error: Option 'knds' is not accepted"

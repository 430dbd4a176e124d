"""What is refused before a search begins, in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.cli import main
from esmfold_peft.errors import UserError
from esmfold_peft.search.beginning import begin_folder
from tests.search.test_driver import search_config


def test_a_search_is_gone_on_with_by_the_same_settings_alone(tmp_path: Path):
    config = search_config(tmp_path)
    begin_folder(config)
    begin_folder(replace(config, grid={"lorta": [8, 64], "none": []}, seeds=(0, 1)))
    other = replace(config, ladder=replace(config.ladder, factor=2.0))
    with pytest.raises(UserError, match=r"ladder.factor is 2.0, was 4.0"):
        begin_folder(other)
    longer = replace(config, engine=replace(config.engine, steps=11))
    with pytest.raises(UserError, match=r"engine.steps is 11, was 10"):
        begin_folder(longer)
    colder = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    with pytest.raises(UserError, match=r"optimizer.lr is 0.5, was 0.001"):
        begin_folder(colder)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis.txt is there, and .* is no search"):
        begin_folder(search_config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ladder.floor", 200), "ladder.floor: 200 is above 128 of the first multiples"),
        ((), "data.validation: a search needs validation chains to choose by"),
        (("--executor.kind", "pbs"), "executor.kind"),
        (("--executor.kind", "ray"), "Ray is not installed: pip install 'esmfold-peft[ray]'"),
        (("--grid", "{loral: [1]}"), "grid: 'loral' is none of none, full, lora"),
        (("--data.train", "/nowhere"), "/nowhere: no such store"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_starts(
    words, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    validation = () if "validation" in message else ("--data.validation", tmp_path / "v")
    given = ("--data.train", tmp_path / "t", *validation, "--grid", "{lorta: [1]}")
    command = ["search", *given, "--output", tmp_path / "s", "--engine.accelerator", "cpu", *words]
    try:
        code = main([str(word) for word in command])
    except SystemExit as leaving:
        code = leaving.code
    printed = capfd.readouterr().err.strip()
    assert code == 2
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_status_and_report_name_a_folder_that_is_no_search(tmp_path: Path, capfd):
    for word in ("status", "report"):
        assert main(["search", word, str(tmp_path)]) == 2
        assert "is not the folder of a search (it has no search.yaml)" in capfd.readouterr().err

"""What is refused before a search begins, in one line."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.cli import main
from esmfold_peft.config import SearchConfig
from esmfold_peft.disk.locks import lock_folder
from esmfold_peft.errors import UserError
from esmfold_peft.search import preflight
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import Trial
from esmfold_peft.search.ledger import Ledger
from esmfold_peft.search.preflight import begin_folder, check_search, inputs_of
from tests.search.test_driver import search_config

ROOT = Path(__file__).parents[2]


def test_a_search_is_gone_on_with_by_the_same_settings_alone(tmp_path: Path):
    config = search_config(tmp_path)
    begin_folder(config, {})
    begin_folder(replace(config, grid={"lorta": [8, 64], "none": []}, seeds=(0, 1)), {})
    # Outcomes are judged anew; nothing is trained otherwise.
    begin_folder(replace(config, ladder=replace(config.ladder, beat_frozen=False)), {})
    other = replace(config, ladder=replace(config.ladder, factor=2.0))
    with pytest.raises(UserError, match=r"ladder.factor is 2.0, was 4.0"):
        begin_folder(other, {})
    longer = replace(config, engine=replace(config.engine, steps=11))
    with pytest.raises(UserError, match=r"engine.steps is 11, was 10"):
        begin_folder(longer, {})
    colder = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    with pytest.raises(UserError, match=r"optimizer.lr is 0.5, was 0.001"):
        begin_folder(colder, {})
    softer = replace(config, guard=replace(config.guard, score_floor=0.9))
    with pytest.raises(UserError, match=r"guard.score_floor is 0.9, was "):
        begin_folder(softer, {})


def test_files_may_move_but_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The ladder compares trials, of which some have not begun."""
    monkeypatch.setattr(preflight, "manifest_hash", lambda store: f"{store.name:x<64}")
    monkeypatch.setattr(preflight, "order_of", lambda *_: {"data.train": "a", "data.mix": ""})
    weights, moved = tmp_path / "esm2.pt", tmp_path / "moved.pt"
    weights.write_bytes(b"weights")
    moved.write_bytes(b"weights")

    def config(weights: Path, validation: str = "v") -> SearchConfig:
        made = search_config(tmp_path / "s")
        language_model = replace(made.model.language_model, weights=str(weights))
        return replace(
            made,
            model=replace(made.model, language_model=language_model),
            data=replace(made.data, validation=Path(validation)),
        )

    def begin(config: SearchConfig) -> None:
        begin_folder(config, inputs_of(config))

    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".search.yaml.123.tmp").touch()  # a kill has left it
    begin(config(weights))
    begin(config(moved))
    with pytest.raises(UserError, match=r"data.validation is manifest wx+, was manifest vx+\)"):
        begin(config(weights, "w"))
    moved.write_bytes(b"others")
    with pytest.raises(UserError, match=r"model.language_model.weights is sha256 .*, was sha256"):
        begin(config(moved))
    moved.unlink()
    with pytest.raises(UserError, match=r"weights: .*moved.pt: No such file or directory"):
        begin(config(moved))
    with pytest.raises(UserError, match="/nowhere: not the folder of a training run"):
        inputs_of(replace(config(weights), start_from=Path("/nowhere")))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is no search and not empty \(thesis.txt\); choose"):
        begin_folder(search_config(tmp_path), {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ladder.floor", 200), "ladder.floor: 200 is above 128, one of the ladder.multiples"),
        ((), "data.validation: missing; a search scores its trials on validation chains"),
        (("--executor.kind", "pbs"), "executor.kind"),
        (("--executor.kind", "ray"), "Ray is not installed: pip install 'esmfold-peft[ray]'"),
        (("--grid", "{loral: [1]}"), "grid: 'loral' is none of none, full, lora"),
        (("--data.train", "/nowhere"), "/nowhere: no such store"),
        (("--engine.devices", 3), "engine.batch_size: 32 does not divide by devices x nodes"),
        (("--engine.deepspeed", "/nowhere.json"), "engine.deepspeed: /nowhere.json is not a JSON"),
        (("--executor.gpus", 1.5), "executor.gpus: 1.5 must be below 1 or a whole number"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_starts(
    words, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    validation = () if "data.validation" in message else ("--data.validation", tmp_path / "v")
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


def test_a_trial_on_ray_is_given_its_devices(tmp_path: Path):
    config = search_config(tmp_path, kind="ray", gpus=1.0)
    config = replace(config, engine=replace(config.engine, devices=2))
    with pytest.raises(UserError, match=r"executor.gpus: 1 for each .* has engine.devices 2"):
        check_search(config)


def test_status_says_whether_a_process_drives_the_search(tmp_path: Path, capfd):
    begin_folder(search_config(tmp_path), {})
    for folder, driven in ((None, False), (tmp_path, True)):
        with ExitStack() as opened:
            if folder is not None:
                opened.enter_context(lock_folder(folder))
            assert main(["search", "status", str(tmp_path), "--json"]) == 0
            assert json.loads(capfd.readouterr().out)["now_running"] is driven
            assert main(["search", "status", str(tmp_path)]) == 0
            assert ("no process runs this search" in capfd.readouterr().out) is not driven


@pytest.mark.slow
def test_status_is_shown_where_there_is_no_alpha_in_the_character_set(tmp_path: Path):
    begin_folder(search_config(tmp_path), {})
    Ledger(tmp_path).add("started", Arm("lorta", 8, 0), Trial(256.0, 10), handle={})
    command = [sys.executable, "-m", "esmfold_peft", "search", "status", str(tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert b"?=2048 interrupted at step 0 of 10" in done.stdout


def test_status_and_report_name_a_folder_that_is_no_search(tmp_path: Path, capfd):
    for word in ("status", "report"):
        assert main(["search", word, str(tmp_path)]) == 2
        assert "is not the folder of a search (it has no search.yaml)" in capfd.readouterr().err

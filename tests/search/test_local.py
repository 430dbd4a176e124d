"""Which GPUs a trial on this machine gets, and when there are too few."""

from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.search.executors import choice, local
from tests.search.test_driver import search_config


@pytest.mark.parametrize(
    ("visible", "slot", "devices", "expected"),
    [
        (None, 0, 1, "0"),
        (None, 1, 1, "1"),
        (None, 1, 2, "2,3"),
        ("4,6,7,5", 1, 2, "7,5"),
        ("4,6,7,5", 3, 1, "5"),
        ("4", 0, 0, "4"),
    ],
)
def test_each_trial_has_gpus_of_its_own(
    visible, slot, devices, expected, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local._environment(slot, devices)["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "expected"),
    [("cpu", 2, 8, 0), ("gpu", None, 8, 1), ("gpu", 2, 8, 2), ("auto", 2, 8, 2), ("auto", 2, 0, 0)],
)
def test_a_trial_takes_the_devices_of_its_engine(
    accelerator, devices, gpus, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choice, "_gpus", lambda: gpus)
    config = search_config(tmp_path)
    engine = replace(config.engine, accelerator=accelerator, devices=devices)
    assert choice.devices_of(replace(config, engine=engine)) == expected


def test_more_trials_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "_gpus", lambda: 3)
    config = search_config(tmp_path, concurrent=2)
    config = replace(config, engine=replace(config.engine, accelerator="gpu", devices=2))
    said = "executor.concurrent: 2 trials of 2 GPUs need 4, this machine has 3"
    with pytest.raises(UserError, match=said):
        choice.build_executor(config)
    several = replace(config, engine=replace(config.engine, nodes=2))
    with pytest.raises(UserError, match=r"engine.nodes: 2: a trial runs on one machine"):
        choice.build_executor(several)

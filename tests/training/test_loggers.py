"""Loggers that are asked for, and what they keep."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from esmfold_peft.config import LogConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training import loggers as module
from esmfold_peft.training.loggers import WandbRun, build_loggers


def test_by_default_there_is_none():
    assert build_loggers(LogConfig(), Path("run")) == []


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_an_absent_package_is_named_before_anything_is_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    config = LogConfig(tensorboard=True) if package == "tensorboard" else LogConfig(wandb="p")
    with pytest.raises(UserError) as caught:
        build_loggers(config, tmp_path / "run")
    assert str(caught.value) == (
        f"log.{package}: needs the package {package} (pip install 'esmfold-peft[{package}]')"
    )
    assert not any(tmp_path.iterdir())


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"^log\.every: 0"):
        LogConfig(every=0)
    with pytest.raises(UserError, match=r"^log\.wandb: ' ' is no name"):
        LogConfig(wandb=" ")


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the package tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_run_and_a_resumed_one_has_one_curve(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (2, 5.0)):  # the first run was killed after its third step
        (board,) = build_loggers(LogConfig(tensorboard=True), tmp_path, start)
        for step in range(start + 1, start + 4):
            board.log_metrics({"train/loss": value + step}, step)
        board.save()
        board.finalize("success")
    assert [p.name for p in tmp_path.iterdir()] == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 2.0), (2, 3.0), (3, 8.0), (4, 9.0), (5, 10.0)]


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for start in (0, 2):
        (run,) = build_loggers(LogConfig(wandb="project"), tmp_path / "run", start)
        assert isinstance(run, WandbRun)
        assert (tmp_path / "run").exists() == (start > 0)  # not before the training begins
        ids.append(run.experiment.id)
        assert run.experiment.project == "project"
        for step in range(start + 1, start + 4):
            run.log_metrics({"train/loss": float(step)}, step)
            assert run.experiment.summary["train/loss"] == step
            assert run.experiment.summary["step"] == step
        run.finalize("success")
    assert ids[0] == ids[1] == (tmp_path / "run" / "wandb_id").read_text().strip()
    offline = [p.name for p in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert all(name.endswith(ids[0]) for name in offline)
    assert offline


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_an_error_of_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import wandb

    def refuse(**arguments: object) -> None:
        raise wandb.Error("no key\nlog in")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"^log\.wandb: no key log in \(WANDB_MODE=offline"):
        _ = WandbRun("project", tmp_path).experiment

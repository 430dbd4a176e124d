"""Ray's executor on a Ray that runs on this machine."""

import time
from pathlib import Path

import pytest

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.search.attempt import attempts
from esmfold_peft.search.executors.protocol import Job
from esmfold_peft.search.executors.ray import NAMESPACE, RayExecutor

ray = pytest.importorskip("ray")


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_restarted_search_finds_its_actors_and_begins_lost_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "trial.yaml").write_text("wrong: true\n")  # training ends after its imports
    job = Job("a", folder, 0)
    config = ExecutorConfig(kind="ray", gpus=0.0)
    first = RayExecutor(config, tmp_path)
    try:
        handle = first.start(job)
        until(lambda: bool(attempts(folder)))
        later = RayExecutor(config, tmp_path)
        later.adopt(job, handle)
        assert later.alive(job)
        # Its node is lost: the job is gone.
        ray.kill(ray.get_actor(str(handle["actor"]), namespace=NAMESPACE))
        until(lambda: not later.alive(job))
        # Begun again, it ends by itself, and its actor gives back its name.
        later.start(job)
        until(lambda: not later.alive(job))
        assert attempts(folder)[-1].code == 2
        assert len(attempts(folder)) == 2
    finally:
        ray.shutdown()

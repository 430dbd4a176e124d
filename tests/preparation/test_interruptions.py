"""`prepare` that is killed or interrupted, again and again, and then finished."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.writer import StoreWriter
from tests.preparation.runs import (
    ROOT,
    finished,
    kill,
    many_entries,
    require_nobody_left,
    same_store,
    start,
)


@pytest.fixture(scope="module")
def source(example: Path, tmp_path_factory) -> Path:
    """A tar of 120 entries, one of them twice, with noise between them."""
    path = tmp_path_factory.mktemp("source") / "entries.tar"
    members = list(many_entries(example, 120).items())
    members += [("again.cif", members[7][1]), ("noise.cif", b"noise"), ("readme.md", b"hello")]
    random.Random(0).shuffle(members)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory) -> tuple[Path, float]:
    """The store of a run that nothing disturbed, and its seconds."""
    store = tmp_path_factory.mktemp("whole") / "store"
    begin = time.monotonic()
    assert "120 chains" in finished(source, output=store, workers=2)
    return store, time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_three_kills_at_random_moments_change_nothing(source, whole, seed: int, tmp_path: Path):
    store, (truth, seconds) = tmp_path / "store", whole
    moments = random.Random(seed)
    for workers in (1, 2, 1):
        killed = start(source, output=store, workers=workers)
        time.sleep(moments.uniform(0.2, seconds))
        kill(killed)
    finished(source, output=store, workers=1 + seed)
    assert same_store(store, truth)


def run_until(owner: object, name: str, number: int, config: PrepareConfig) -> None:
    """Runs `prepare` in a copy of this process, which is killed before a call of its own."""
    child = os.fork()
    if child == 0:
        original, left = getattr(owner, name), iter(range(number - 1))

        def counted(*args, **settings):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **settings)

        setattr(owner, name, counted)
        try:
            run(config)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# Making the file of the store, giving it its name, opening it, and each of the last tables.
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (lmdb, "open", 1),
        (Path, "rename", 1),
        (lmdb, "open", 2),
        (StoreWriter, "add", 2),
        *((os, "fsync", number) for number in (1, 2, 3)),
        *((Path, "replace", number) for number in (1, 2, 3)),
    ],
)
def test_a_kill_in_the_first_and_the_last_moments(
    small, monkeypatch, owner: object, name: str, number: int, tmp_path: Path
):
    monkeypatch.setattr("esmfold_peft.commands.prepare._FILES_IN_A_UNIT", 2)
    config, truth = small
    config = replace(config, output=tmp_path / "store")
    run_until(owner, name, number, config)
    with pytest.raises(UserError, match="not a whole one"):
        Store(config.output)
    assert run(config) == 0
    assert same_store(config.output, truth)


@pytest.fixture(scope="module")
def small(example: Path, tmp_path_factory) -> tuple[PrepareConfig, Path]:
    """A short run in units of two files, and its store."""
    config = PrepareConfig(
        sources=tuple(sorted((example / "train").iterdir())),
        output=tmp_path_factory.mktemp("small") / "store",
        clusters="none",
        workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esmfold_peft.commands.prepare._FILES_IN_A_UNIT", 2)
        assert run(config) == 0
    return config, config.output


def test_ctrl_c_ends_it_at_once_and_in_one_line(source: Path, whole, tmp_path: Path):
    store, (truth, _) = tmp_path / "store", whole
    stopped = start(source, output=store, workers=2)
    wait_for(store / "chains.lmdb", 60_000)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert said == ("esmfold-peft prepare: interrupted; resume with the same command\n")
    require_nobody_left(stopped.pid)
    finished(source, output=store, workers=1)
    assert same_store(store, truth)


@pytest.mark.slow
def test_workers_that_are_killed_cost_nothing(source: Path, whole, tmp_path: Path):
    store, (truth, _) = tmp_path / "store", whole
    going = start(source, output=store, workers=2)
    wait_for(store / "chains.lmdb", 60_000)
    for worker in workers_of(going.pid):
        os.kill(worker, signal.SIGKILL)
    said, _ = going.communicate(timeout=120)
    assert going.returncode == 0, said
    assert same_store(store, truth)


def wait_for(file: Path, size: int) -> None:
    """Waits until a file has a size."""
    while not file.exists() or file.stat().st_size < size:
        time.sleep(0.01)


def workers_of(process: int) -> list[int]:
    """Children that work; multiprocessing has one more, which looks after its resources."""
    children = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [k for k in children if b"spawn_main" in Path(f"/proc/{k}/cmdline").read_bytes()]


def test_neither_the_command_nor_its_workers_need_torch():
    modules = "sys, esmfold_peft.cli, esmfold_peft.commands.prepare"
    code = f"import {modules}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

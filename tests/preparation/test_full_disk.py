"""A disk that is full: one line, what was done is kept, and it goes on when there is space."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from tests.preparation.conftest import contents
from tests.preparation.runs import TABLES, finished, require_nobody_left, same_store, start

_FULL = r"chains\.lmdb: the disk is full or fails \(.*\); what was done so far is kept: free space"


@pytest.fixture(scope="module")
def sources(example: Path) -> list[Path]:
    return sorted((example / "held_out").iterdir())


@pytest.fixture(scope="module")
def truth(sources: list[Path], tmp_path_factory) -> Path:
    """The store of a run that nothing disturbed."""
    store = tmp_path_factory.mktemp("truth") / "store"
    finished(*sources, output=store)
    return store


@pytest.fixture
def again(sources: list[Path], monkeypatch, tmp_path: Path) -> Callable[[], Path]:
    """The same run in this process."""
    monkeypatch.setattr("esmfold_peft.commands.prepare._FILES_IN_A_UNIT", 4)
    # Under pytest it goes to a file, which must not be too large either.
    monkeypatch.setattr("esmfold_peft.commands.prepare.report", lambda line: None)
    config = PrepareConfig(tuple(sources), tmp_path / "store", clusters="none", workers=1)

    def prepared() -> Path:
        assert run(config) == 0
        return config.output

    return prepared


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond that many bytes of a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# A new file has two pages of 4096 bytes; LMDB reports another error if a write fits in part.
@pytest.mark.parametrize("size", [0, 5000, 8192, 9000, 16_384, 60_000, 100_000])
def test_a_write_that_fails_loses_nothing(again, truth: Path, size: int, tmp_path: Path):
    with files_of_at_most(size), pytest.raises(UserError, match=_FULL) as failure:
        again()
    assert len(str(failure.value).splitlines()) == 1
    with pytest.raises(UserError, match="not a whole one"):
        Store(tmp_path / "store")
    if size == 100_000:
        assert len(contents(tmp_path / "store")["journal"]) == 2
    assert same_store(again(), truth)


def test_tables_that_do_not_fit_are_written_later(again, truth: Path):
    store = again()
    for name in TABLES:
        (store / name).unlink()
    for name, size in (("rejected.csv", 10), ("report.json", 100), ("manifest.csv", 1000)):
        with files_of_at_most(size), pytest.raises(UserError, match=rf"{name}: File too large"):
            again()
    assert same_store(again(), truth)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 120 kB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(disk)]
    with suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield disk
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
            return
    pytest.skip("needs to mount a small disk")


def test_a_small_disk_is_filled_and_then_made_larger(sources, truth: Path, small_disk: Path):
    store = small_disk / "store"
    failed = start(*sources, output=store, workers=2)
    said, _ = failed.communicate(timeout=60)
    assert failed.returncode == 2
    assert said.startswith(f"esmfold-peft prepare: error: {store}/chains.lmdb: the disk is full")
    assert said.count("\n") == 1
    require_nobody_left(failed.pid)
    done = contents(store)
    subprocess.run(["mount", "-o", "remount,size=400k", str(small_disk)], check=True)
    assert f"{4 * len(done['journal'])} of 26 files were read before" in finished(
        *sources, output=store, workers=1
    )
    assert same_store(store, truth)
    assert done["journal"].items() <= contents(store)["journal"].items()

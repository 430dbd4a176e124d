"""A store that is broken, opened twice, forked, or replaced."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.datasets.store import CHAINS_FILE, Store
from esmfold_peft.errors import UserError


@pytest.fixture
def store(make_chain, write_store, tmp_path: Path) -> Path:
    """Forty chains: some in pages of their own, some in pages together."""
    lengths = [*range(20, 59), 900]
    return write_store(tmp_path / "store", [make_chain(f"c{n}", n) for n in lengths])


def test_a_store_with_fewer_lines_is_a_smaller_one(store: Path):
    manifest = store / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([lines[0], *lines[3:6]]))
    assert [chain.id for chain in Store(store)] == ["c22", "c23", "c24"]


def test_a_line_without_a_record_is_found_at_once(store: Path):
    manifest = store / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("\nc30,", "\nc30x,"))
    with pytest.raises(UserError, match=r"store: c30x of manifest.csv is not in chains.lmdb"):
        Store(store)


def test_a_record_of_another_store_is_refused(make_chain, write_store, store: Path, tmp_path: Path):
    other = write_store(tmp_path / "other", [make_chain(f"c{n}", n + 1) for n in range(20, 59)])
    lines = (store / "manifest.csv").read_text().splitlines(keepends=True)
    (other / "manifest.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"c25 in chains\.lmdb is not what manifest\.csv lists"):
        Store(other)[5]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_bytes(b""), "not the file of a store"),
        (lambda file: file.write_bytes(bytes(100)), "not the file of a store"),
        (lambda file: file.write_bytes(np.random.default_rng(0).bytes(90_000)), "not the file"),
        (lambda file: file.write_bytes(bytes(90_000)), "not the file of a store"),
        (lambda file: (file.unlink(), file.mkdir()), "not the file of a store"),
    ],
)
def test_what_is_no_file_of_a_store_is_refused(store: Path, damage, reason: str):
    damage(store / CHAINS_FILE)
    with pytest.raises(UserError, match=reason):
        Store(store)


READ_ALL = """
import sys
from contextlib import suppress
from pathlib import Path
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
for path in sys.argv[1:]:
    try:
        print(sum(len(chain) for chain in Store(Path(path))))
    except UserError as error:
        print(error)
"""


def test_a_file_that_was_cut_off_ends_nothing(store: Path, tmp_path: Path):
    """In a process of its own: LMDB maps files, and what is beyond the end of one is a SIGBUS."""
    size = (store / CHAINS_FILE).stat().st_size
    kept = sorted({*range(4096, size, size // 10 // 4096 * 4096), size // 2 + 100, size - 1})
    copies = [shutil.copytree(store, tmp_path / str(length)) for length in kept]
    for length, copy in zip(kept, copies, strict=True):
        os.truncate(copy / CHAINS_FILE, length)
    command = [sys.executable, "-c", READ_ALL, *map(str, copies), str(store)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *refused, last = result.stdout.splitlines()
    assert len(refused) == len(kept)
    assert all("cut off" in line or "not the file of a store" in line for line in refused)
    assert last == str(sum(range(20, 59)) + 900)


def test_a_page_of_noise_gives_what_was_there_or_a_line(store: Path):
    file = store / CHAINS_FILE
    data = file.read_bytes()
    found = []
    for start in range(2 * 4096, len(data), 4096):
        noise = np.random.default_rng(start).bytes(4096)
        file.unlink()  # so that it is a new file: the old one is open
        file.write_bytes(data[:start] + noise + data[start + 4096 :])
        with suppress(UserError):
            chains = Store(store)
            found.append(sum(len(chains[k]) for k in range(40)))
    assert set(found) <= {sum(range(20, 59)) + 900}
    assert len(found) < 4  # pages that are free


def test_two_stores_on_one_folder_are_independent(store: Path):
    one, other = Store(store), Store(store)
    assert np.array_equal(one[3].positions, other[3].positions)
    del one
    assert other[39].id == "c900"


def test_a_store_may_be_made_anew_under_its_readers(make_chain, write_store, store: Path):
    old = Store(store)
    assert len(old[0]) == 20
    shutil.rmtree(store)
    write_store(store, [make_chain("c20", 30), make_chain("new", 40)])
    assert [len(chain) for chain in Store(store)] == [30, 40]
    with pytest.raises(UserError, match=r"c21 of manifest.csv is not in chains.lmdb"):
        old[1]
    shutil.rmtree(store)
    with pytest.raises(UserError, match=r"chains\.lmdb: not the file of a store \(.*No such file"):
        old[0]


def test_a_store_may_lie_on_a_disk_that_is_only_read(store: Path):
    before = sorted(path.name for path in store.iterdir())
    Store(store)[0]
    assert sorted(path.name for path in store.iterdir()) == before


def _lengths(store: Store, queue) -> None:
    queue.put([len(store[k]) for k in range(len(store))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_their_parent_has_open(store: Path, method: str):
    chains = Store(store)
    first = chains[0]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_lengths, args=(chains, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert found == 2 * [[*range(20, 59), 900]]
    # What a child did with its copy of the open file is nothing to the parent.
    assert np.array_equal(chains[0].positions, first.positions)
    assert sum(len(chain) for chain in chains) == sum(found[0])


def test_a_child_that_is_killed_while_it_reads_leaves_no_lock(store: Path):
    chains = Store(store)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            while True:
                chains[0]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(chains[39]) == 900

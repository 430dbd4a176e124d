"""Files that cannot be used beside files that can: each has its reason, no other is lost."""

import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.reading import Read, Rules, read_item
from esmfold_peft.preparation.sources import Item, Loaded, list_items, shown
from tests.preparation.conftest import contents, rows
from tests.preparation.runs import ROOT, TABLES, command, same_store

_PAGE = "<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"
_WATER = "HETATM    1  O   HOH A   1       1.000   2.000   3.000  1.00 10.00           O  \nEND\n"


def broken(good: bytes) -> dict[str, tuple[bytes, str, str]]:
    """Content of files that give no chain, the kind of reason, and a part of it."""
    noise = random.Random(0).randbytes(100_000)
    text = gzip.decompress(good)
    return {
        "cut.cif.gz": (good[: len(good) // 2], "unreadable", "gzip"),
        "cut_early.cif.gz": (good[:5], "unreadable", "gzip"),
        "flipped.cif.gz": (good[:900] + bytes(40) + good[940:], "unreadable", "gzip"),
        "empty.cif": (b"", "unreadable", "empty"),
        "blank.pdb": (b"\n \n", "unreadable", "empty"),
        "nothing.cif.gz": (gzip.compress(b"", mtime=0), "unreadable", "empty"),
        "page.cif": (_PAGE.encode(), "unreadable", "neither mmCIF nor PDB"),
        "page.cif.gz": (
            gzip.compress(_PAGE.encode(), mtime=0),
            "unreadable",
            "neither mmCIF nor PDB",
        ),
        "noise.pdb": (noise, "unreadable", "neither mmCIF nor PDB"),
        "noise_in.cif": (text[:3000] + noise + text[3000:], "unreadable", ""),
        "line.cif": (b"data_" + b"x" * 10_000_000, "unreadable", ""),
        "line.pdb": (b"ATOM  " + b"1" * 10_000_000, "", ""),
        "water.pdb": (_WATER.encode(), "no protein", "no protein chain"),
        "header.cif": (b"data_1abc\n_entry.id 1abc\n", "unreadable", "no coordinates"),
    }


@pytest.fixture(scope="module")
def good(example: Path) -> bytes:
    return (example / "held_out" / "3u8v_A.cif.gz").read_bytes()


def test_what_is_broken_has_its_reason_and_nothing_else_is_lost(
    prepare, example: Path, good: bytes, tmp_path: Path
):
    source, cases = tmp_path / "in", broken(good)
    shutil.copytree(example / "train", source)
    for name, (data, _, _) in cases.items():
        (source / name).write_bytes(data)
    (source / "5k2l_copy.cif.gz").write_bytes((source / "5k2l_A.cif.gz").read_bytes())
    store = prepare(source)
    truth = prepare(example / "train", output=tmp_path / "truth")
    assert contents(store)["chains"] == contents(truth)["chains"]
    found = {Path(line["file"]).name: line for line in rows(store, "rejected.csv")}
    assert set(found) == {*cases, "5k2l_copy.cif.gz"}
    for name, (_, kind, reason) in cases.items():
        assert kind in found[name]["kind"]
        assert reason in found[name]["reason"]
        assert 5 < len(found[name]["reason"]) <= 300
        assert found[name]["reason"].isprintable()
    twin = found["5k2l_copy.cif.gz"]
    assert (twin["id"], twin["kind"]) == ("5k2l_A", "duplicate")
    assert twin["reason"] == f"the chain of this id is from {source}/5k2l_A.cif.gz"


_WITHOUT_POWERS = """
import ctypes, os, sys
for power in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads everything
    ctypes.CDLL(None).prctl(24, power, 0, 0, 0)
os.execv(sys.executable, sys.argv[1:])
"""


def without_powers(arguments: list[str]) -> subprocess.CompletedProcess:
    """Runs a command so that permissions hold for it, even if this is root."""
    begin = [sys.executable, "-c", _WITHOUT_POWERS]
    return subprocess.run([*begin, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_what_must_not_be_read_is_said_and_passed_over(prepare, example: Path, tmp_path: Path):
    source, store = tmp_path / "in", tmp_path / "store"
    shutil.copytree(example / "train", source)
    for name in ("closed", "listed"):
        (source / name).mkdir()
        shutil.copy(example / "held_out" / "3byb_B.cif.gz", source / name)
    (source / "listed" / "below").mkdir()
    shutil.copy(example / "held_out" / "3byb_B.cif.gz", source / "secret.cif.gz")
    shutil.copy(example / "held_out" / "3byb_B.cif.gz", source / "secret.tar")
    closed = [source / "secret.cif.gz", source / "secret.tar", source / "closed"]
    for path in closed:
        path.chmod(0)
    (source / "listed").chmod(0o444)
    result = without_powers(command(source, output=store))
    for path in (source / "closed", source / "listed"):
        path.chmod(0o755)
    assert result.returncode == 0, result.stderr
    found = {line["file"]: (line["kind"], line["reason"]) for line in rows(store, "rejected.csv")}
    listed = [source / "listed" / "3byb_B.cif.gz", source / "listed" / "below"]
    denied = ("unreadable", "Permission denied")
    assert found == {str(path): denied for path in [*closed, *listed]}
    truth = prepare(example / "train", output=tmp_path / "truth")
    assert contents(store)["chains"] == contents(truth)["chains"]


def test_a_store_that_must_not_be_written_to_is_one_line(example: Path, tmp_path: Path):
    store, closed = tmp_path / "store", tmp_path / "closed"
    store.mkdir(mode=0o555)
    closed.mkdir(mode=0)
    for output in (store, closed / "below"):
        result = without_powers(command(example / "train", output=output))
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert f"error: {output}: " in result.stderr
        assert "Permission denied" in result.stderr


@pytest.mark.parametrize("named", ["notes", "chains.lmdb"])
def test_a_store_that_is_something_else_is_one_line(prepare, example: Path, named, tmp_path: Path):
    (tmp_path / "notes").write_text("hello")
    (tmp_path / "store" / "chains.lmdb").mkdir(parents=True)
    output = tmp_path / "notes" if named == "notes" else tmp_path / "store"
    with pytest.raises(UserError, match=r"cannot make this folder|cannot be used as the file"):
        prepare(example / "train", output=output)


def crashing(loaded: Loaded, rules: Rules) -> Read:
    """Reads as `read_item`, but for two files: as a parser that crashes, or has no memory left."""
    name = Path(loaded[0].place).name
    if name == "3nir_A.cif.gz":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "5k2l_A.cif.gz":
        raise MemoryError
    return read_item(loaded, rules)


def test_a_file_that_ends_its_reader_costs_itself_only(
    prepare, example: Path, monkeypatch, tmp_path: Path, capfd
):
    truth = contents(prepare(example / "train", output=tmp_path / "truth"))["chains"]
    monkeypatch.setattr("esmfold_peft.commands.prepare.read_item", crashing)
    store = tmp_path / "store"
    config = PrepareConfig((example / "train",), store, clusters="none", workers=1)
    # The store is whole, but what it lacks is no fault of the files: nobody must overlook it.
    assert run(config) == 1
    assert "the reader itself failed on 2 files" in capfd.readouterr().err
    assert [
        (Path(r["file"]).name, r["kind"], r["reason"]) for r in rows(store, "rejected.csv")
    ] == [
        ("3nir_A.cif.gz", "crash", "reading it ended the process (a crash, or no memory)"),
        ("5k2l_A.cif.gz", "crash", "reading it failed (MemoryError)"),
    ]
    assert run(config) == 1  # nor the next time
    lost = {b"3nir_A", b"5k2l_A"}
    assert contents(store)["chains"] == {k: v for k, v in truth.items() if k not in lost}


def changed(change: Callable[[Path], None], item: Item) -> Read:
    change(item.path)
    return read_item((item, None), Rules(PrepareConfig((), Path()).filters, None, None))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-500]), "it changed after this run"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\n"), "it changed after this run"),
        (lambda file: os.utime(file, ns=(0, 0)), "it changed after this run"),
        (lambda file: file.unlink(), "No such file or directory"),
        (lambda file: (file.unlink(), file.mkdir()), "Is a directory"),
    ],
)
def test_a_file_that_changes_under_the_reader_is_not_half_read(
    example: Path, change: Callable[[Path], None], reason: str, tmp_path: Path
):
    shutil.copy(example / "train" / "3nir_A.cif.gz", tmp_path)
    (item,) = list_items((tmp_path,), None)
    assert len(changed(lambda file: None, item).chains) == 1
    found = changed(change, item)
    assert not found.chains
    assert (found.rejected[0].kind, reason in found.rejected[0].reason) == ("unreadable", True)


NAMES = ["with space.cif", "comma,.cif", 'quote".cif', "line\nbreak.cif", "return\r.cif", "é α.cif"]


def test_names_of_any_characters_come_out_again(prepare, example: Path, tmp_path: Path):
    good = gzip.decompress((example / "train" / "3nir_A.cif.gz").read_bytes())
    source = tmp_path / "in"
    source.mkdir()
    names = [*map(os.fsencode, NAMES), b"\xff\xfe.cif"]
    for number, name in enumerate(names):
        text = good.replace(b"3nir", b"%dnir" % (number + 1)).replace(
            b"3NIR", b"%dNIR" % (number + 1)
        )
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            file.write(text)
        with open(os.path.join(os.fsencode(source), b"bad " + name), "wb") as file:
            file.write(b"noise")
    with tarfile.open(source / "t.tar", "w") as tar:
        for name in ("../../up.cif", "/etc/absolute.cif", os.fsdecode(b"\xff.cif")):
            tar.addfile(tarfile.TarInfo(name))
    store = prepare(source)
    assert len(Store(store)) == len(names)
    used = {line["source"] for line in rows(store, "manifest.csv")}
    assert used == {f"{source}/{shown(os.fsdecode(name))}" for name in names}
    assert f"{source}/line\\nbreak.cif" in used
    left_out = {line["file"] for line in rows(store, "rejected.csv")}
    tar = {
        f"{source}/t.tar/{name}" for name in ("../../up.cif", "/etc/absolute.cif", r"\udcff.cif")
    }
    assert left_out == tar | {f"{source}/bad {shown(os.fsdecode(name))}" for name in names}


def test_ids_that_cannot_name_a_record_are_left_out(prepare, example: Path, tmp_path: Path):
    good = gzip.decompress((example / "train" / "3nir_A.cif.gz").read_bytes()).decode()
    entry = next(line for line in good.splitlines() if line.startswith("_entry.id"))
    source = tmp_path / "in"
    source.mkdir()
    for name, written in {
        "long": "x" * 600,
        "longest": "y" * 500,
        "empty": "''",
        "lines": "\n;a\nb\n;",
        "comma": "'a, \"b\"'",
    }.items():
        (source / f"{name}.cif").write_text(good.replace(entry, f"_entry.id {written}"))
    store = prepare(source)
    assert set(Store(store).manifest.ids) == {"y" * 500, 'a, "b"'}
    found = {Path(line["file"]).stem: line["reason"] for line in rows(store, "rejected.csv")}
    assert set(found) == {"long", "empty", "lines"}
    assert found["long"] == "its id is longer than 500 bytes"


def test_a_source_that_is_given_twice_is_read_twice_and_kept_once(
    prepare, example: Path, monkeypatch, tmp_path: Path
):
    shutil.copytree(example / "train", tmp_path / "in")
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in", "in")
    monkeypatch.chdir(tmp_path)
    once = prepare(tmp_path / "in", output=tmp_path / "once")
    tarred = Path("in.tar.gz")
    store = prepare(tmp_path / "in", Path("in"), tarred, tarred)
    assert contents(store)["chains"] == contents(once)["chains"]
    kinds = [line["kind"] for line in rows(store, "rejected.csv")]
    assert kinds == ["duplicate"] * 15


def test_a_store_inside_its_source_is_no_source(prepare, example: Path, tmp_path: Path):
    source = tmp_path / "in"
    shutil.copytree(example / "train", source)
    store = prepare(source, output=source / "a" / "store")
    before = {name: (store / name).read_bytes() for name in (*TABLES, "chains.lmdb")}
    assert prepare(source, output=store) == store
    assert before == {name: (store / name).read_bytes() for name in before}
    (source / "link").symlink_to(source / "a", target_is_directory=True)
    prepare(source, output=store)
    with pytest.raises(UserError, match="in: is a source and the output; choose another folder"):
        prepare(source, output=source)


def test_a_tar_without_a_byte_is_one_line_of_rejected(prepare, example: Path, tmp_path: Path):
    (tmp_path / "empty.tar").touch()
    (tmp_path / "empty.tar.gz").touch()
    sources = [example / "train", tmp_path / "empty.tar", tmp_path / "empty.tar.gz"]
    found = rows(prepare(*sources), "rejected.csv")
    assert [line["kind"] for line in found] == ["tar", "tar"]


def test_a_damaged_file_of_a_store_is_not_gone_on_with(prepare, example: Path, tmp_path: Path):
    sources = [example / "train", example / "held_out"]
    store = prepare(*sources)
    file = store / "chains.lmdb"
    whole = file.read_bytes()
    for size in (4096, 8192, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut off|cannot be used as the file of a store"):
            prepare(*sources)
    file.unlink()
    assert prepare(*sources) == store
    assert same_store(store, prepare(*sources, output=tmp_path / "truth"))


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_the_list_of_a_file_that_is_gone_goes_too(example: Path, prepare, monkeypatch):
    store = prepare(example / "train")
    (store / "chains.lmdb").unlink()
    monkeypatch.setattr(
        "esmfold_peft.commands.prepare._read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    config = PrepareConfig((example / "train",), store, clusters="none", predicted=True)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    with pytest.raises(UserError, match="not a whole one"):
        Store(store)

"""Which files the sources of `prepare` stand for."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.preparation.selection import Selection
from esmfold_peft.preparation.sources import list_items, load, split_lists


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


MEMBERS = {
    "a.cif": b"data_a\n",
    "deep/er/b.pdb.gz": gzip.compress(b"ATOM", mtime=0),
    "notes.md": b"hello",
}


def test_folders_are_walked_by_name_and_everything_in_them_is_listed(tmp_path: Path):
    (tmp_path / "z").mkdir()
    (tmp_path / ".partial").mkdir()
    for name in ("b.cif", "a.cif.gz", "z/c.ENT", "z/d.mmcif", "README.md", "z/e.json"):
        (tmp_path / name).write_text("x")
    for name in (".partial/half.cif", ".a.cif"):
        (tmp_path / name).write_text("x")
    items = list_items((tmp_path,), None)
    names = [str(Path(item.place).relative_to(tmp_path)) for item in items]
    hidden, seen = [".a.cif", ".partial/half.cif"], ["a.cif.gz", "b.cif", "z/c.ENT", "z/d.mmcif"]
    assert sorted(names) == sorted([*hidden, *seen, "README.md", "z/e.json"])
    assert [name for name in names if name in seen] == seen
    left_out = {name for name, item in zip(names, items, strict=True) if item.kind == "name"}
    assert left_out == {*hidden, "README.md", "z/e.json"}


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path):
    (tmp_path / "structure").write_text("x")
    assert [item.fault for item in list_items((tmp_path / "structure",), None)] == [""]


def test_members_of_a_tar_are_found_in_place(tmp_path: Path):
    path = tar_of(tmp_path / "x.tar", MEMBERS)
    items = list_items((tmp_path,), None)
    assert [item.place for item in items] == [f"{path}/{name}" for name in MEMBERS]
    assert [item.kind for item in items] == ["", "", "name"]
    data = path.read_bytes()
    for item, content in zip(items[:2], MEMBERS.values(), strict=False):
        assert item.offset is not None
        assert data[item.offset : item.offset + item.size] == content


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_members_of_a_compressed_tar_come_with_their_content(ending: str, tmp_path: Path):
    tar_of(tmp_path / f"x.tar.{ending}", MEMBERS, f"w:{ending}")
    items = list_items((tmp_path,), None)
    assert [content for _, content in load(items[:2])] == list(MEMBERS.values())[:2]
    assert [content for _, content in load(items[1:])] == [MEMBERS["deep/er/b.pdb.gz"], None]
    # The same tar twice: the second time it is read from its beginning again.
    twice = [content for _, content in load([*items[:2], *items[:2]])]
    assert twice == 2 * list(MEMBERS.values())[:2]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_members_before_the_damage_of_a_tar_are_read(mode: str, tmp_path: Path):
    many = {f"{k}.cif": os.urandom(2000) for k in range(20)}
    path = tar_of(tmp_path / ("x.tar" if mode == "w" else "x.tgz"), many, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    items = list_items((path,), None)
    loaded = list(load(items))
    good = [item for item, _ in loaded if not item.fault]
    assert 5 < len(good) < 15
    assert "damaged tar" in items[-1].fault
    assert len(loaded) == len(items)


def test_noise_that_is_called_a_tar_is_one_fault(tmp_path: Path):
    for name in ("x.tar", "y.tar.gz", "z.tar.xz"):
        (tmp_path / name).write_bytes(os.urandom(3000))
    assert [item.kind for item in list_items((tmp_path,), None)] == ["tar"] * 3


def test_links_in_circles_end(tmp_path: Path):
    (tmp_path / "a.cif").write_text("x")
    (tmp_path / "around").symlink_to(tmp_path)
    (tmp_path / "nowhere.cif").symlink_to(tmp_path / "missing")
    items = list_items((tmp_path,), None)
    assert [(Path(i.place).name, i.kind) for i in items] == [
        ("a.cif", ""),
        ("nowhere.cif", "unreadable"),
    ]


def test_pipes_are_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.cif")
    assert list_items((tmp_path,), None)[0].fault == "not a regular file"


def test_a_source_that_is_missing_stops_everything(tmp_path: Path):
    with pytest.raises(UserError, match="nothing: No such file"):
        list_items((tmp_path / "nothing",), None)


def test_lists_need_structures(tmp_path: Path):
    assert split_lists((Path("a"), Path("b.txt"))) == ((Path("a"),), (Path("b.txt"),))
    with pytest.raises(UserError, match=r"b\.TXT: a list of ids; name the files"):
        split_lists((Path("b.TXT"),))


def test_files_of_other_entries_are_not_read(tmp_path: Path):
    (tmp_path / "ids.txt").write_text("\ufeff1UBQ_A, pdb_00002abc # both\n\nAF-P12345-F1\n")
    selection = Selection((tmp_path / "ids.txt",))
    names = ("1ubq.cif", "pdb2abc.ent.gz", "1abc_A.cif", "1xyz.cif.gz", "AF-Q1-F1.pdb", "9abcd.pdb")
    for name in names:
        (tmp_path / name).write_text("x")
    kinds = {Path(i.place).name: i.kind for i in list_items((tmp_path,), selection)}
    assert kinds == {
        "1ubq.cif": "",
        "pdb2abc.ent.gz": "",
        "1abc_A.cif": "not listed",
        "1xyz.cif.gz": "not listed",
        "AF-Q1-F1.pdb": "",  # only its content tells its id
        "9abcd.pdb": "",
        "ids.txt": "name",
    }


def test_a_list_asks_for_entries_and_chains(tmp_path: Path):
    (tmp_path / "ids.txt").write_text("1UBQ_a\n2abc\nmy_protein_B\npdb_00001ubq_C\n")
    found = Selection((tmp_path / "ids.txt",))
    assert found.match("1ubq_a") == "1ubq_a"
    assert found.match("1ubq_A") is None  # the case of chains matters
    assert found.match("2abc_X") == "2abc"
    assert found.match("2abd_X") is None
    assert found.match("my_protein_B") == "my_protein_B"
    assert found.match("1ubq_C") == "1ubq_C"  # the short form of the same id
    assert found.match("pdb_00001ubq_C") == "1ubq_C"


def test_a_list_without_ids_is_no_list(tmp_path: Path):
    (tmp_path / "ids.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"ids\.txt: the list names no id"):
        Selection((tmp_path / "ids.txt",))
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match=r"ids\.txt: not a list of ids"):
        Selection((tmp_path / "ids.txt",))

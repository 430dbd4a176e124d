"""The list of a store's chains."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.datasets.manifest import (
    ManifestEntry,
    manifest_path,
    manifest_text,
    read_manifest,
)
from esmfold_peft.errors import UserError

ENTRY = ManifestEntry(
    id="1ubq_A",
    source='with, comma and "quotes".cif',
    entity="1",
    length=76,
    resolved=76,
    resolution=1.8,
    method="X-RAY DIFFRACTION",
    release_date="1987-04-16",
    cluster="1ubq_A",
    cluster_size=2,
    sequence_hash="0" * 16,
    hash="f" * 32,
)
NMR = replace(ENTRY, id="1hf9_A", resolution=None, release_date=None, entity=None, length=41)
HEADER = manifest_text([]).strip()


def write(folder: Path, text: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_columns_are_what_was_written(tmp_path: Path):
    found = read_manifest(write(tmp_path, manifest_text([ENTRY, NMR])))
    assert found.ids == ["1ubq_A", "1hf9_A"]
    assert found.length.tolist() == [76, 41]
    assert found.resolution[0] == 1.8
    assert np.isnan(found.resolution[1])
    assert str(found.release_date[0]) == "1987-04-16"
    assert np.isnat(found.release_date[1])
    assert found.cluster == ["1ubq_A", "1ubq_A"]
    assert found.cluster_size.tolist() == [2, 2]
    assert found.sequence_hash == ["0" * 16, "0" * 16]
    assert len(found) == 2


LINE = manifest_text([ENTRY]).splitlines()[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,file\n1,2\n", ":1: not a manifest"),
        (f"{HEADER}\n", "lists no chain"),
        ("", ":1: not a manifest"),
        (f"{HEADER}\n{LINE.replace('76', 'many', 1)}\n", ":2: .*length 'many'"),
        (f"{HEADER}\n{LINE.replace(',2,', ',0,')}\n", ":2: .*cluster_size '0'"),
        (f"{HEADER}\n{LINE.replace('1.8', 'good')}\n", ":2: .*good"),
        (f"{HEADER}\n{LINE.replace('1987-04-16', 'today?')}\n", ":2: .*today"),
        (f"{HEADER}\n{LINE.replace('1987-04-16', 'today')}\n", ":2: .*today"),
        (f"{HEADER}\n{LINE.replace('1987-04-16', '1987')}\n", ":2: .*1987"),
        (f"{HEADER}\n{LINE.replace('1987-04-16', '19870416')}\n", ":2: .*19870416"),
        (f"{HEADER}\n{LINE.replace('76', '9' * 5000, 1)}\n", ":2: .*length '9"),
        (f"{HEADER}\n{LINE}\n\n{LINE},more\n", ":4: .*13 values instead of 12"),
        (f"{HEADER}\n{LINE.replace('1ubq_A', '', 1)}\n", ":2: .*id is empty"),
        (f"{HEADER}\n{LINE},more\n", ":2: .*13 values instead of 12"),
        (f"{HEADER}\n{LINE}\n{LINE}\n", r"manifest\.csv: 1ubq_A is listed twice"),
    ],
)
def test_a_broken_manifest_names_the_line(text: str, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        read_manifest(write(tmp_path, text))


@pytest.mark.parametrize(
    "name", ["a,b", 'a"b', "a\nb", "a\r\nb", "a\rb", "a\tb", " a ", "日本", "=1+1", "'"]
)
def test_any_name_comes_back(name: str, tmp_path: Path):
    odd = replace(ENTRY, id=name, source=name, cluster=name)
    found = read_manifest(write(tmp_path, manifest_text([odd, NMR])))
    assert found.ids == [name, "1hf9_A"]
    assert found.cluster == [name, "1ubq_A"]
    assert np.isnan(found.resolution[1])


def test_a_file_name_that_is_no_text_is_written_in_ascii(tmp_path: Path):
    text = manifest_text([replace(ENTRY, source=os.fsdecode(b"\xff/1ubq.cif"))])
    assert "\\udcff/1ubq.cif" in text
    assert read_manifest(write(tmp_path, text)).ids == ["1ubq_A"]


def test_empty_lines_are_no_chains(tmp_path: Path):
    lines = manifest_text([ENTRY, NMR]).replace("\n", "\n\n")
    assert read_manifest(write(tmp_path, lines + "\n")).ids == ["1ubq_A", "1hf9_A"]


def test_binary_is_no_manifest(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(gzip.compress(b"id", mtime=0))
    with pytest.raises(UserError, match=r"manifest\.csv"):
        read_manifest(path)


def test_a_folder_that_is_no_whole_store_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"no such store, or not a whole one.*esmfold-peft prepare"):
        manifest_path(tmp_path)

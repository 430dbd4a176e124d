"""FASTA as people write it, and as they break it."""

import gzip
import re
from pathlib import Path

import pytest
from Bio import SeqIO

from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import FastaRecord, read_fasta


def write(folder: Path, content: str | bytes, name: str = "x.fasta") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_records_keep_name_header_and_line(tmp_path: Path) -> None:
    text = "\n>one first protein\nMKV\nLA\n\n>two\nGG\n"
    assert read_fasta(write(tmp_path, text)) == [
        FastaRecord("one", "one first protein", "MKVLA", 2, 0),
        FastaRecord("two", "two", "GG", 6, 0),
    ]


def test_the_example_is_what_biopython_reads(example: Path) -> None:
    path = example / "sequences.fasta"
    expected = [(r.id, r.description, str(r.seq)) for r in SeqIO.parse(path, "fasta")]
    assert [(r.id, r.header, r.sequence) for r in read_fasta(path)] == expected
    assert len(expected) == 6


@pytest.mark.parametrize(
    ("lines", "sequence", "replaced"),
    [
        ("mkv", "MKV", 0),
        ("M K\tV \n G", "MKVG", 0),
        ("MKV*", "MKV", 0),
        ("MKV\n*\n\n", "MKV", 0),
        ("MKV\r\nGG\r", "MKVGG", 0),
        ("MBJOUZKX", "MXXXXXKX", 5),
        ("ux", "XX", 1),
    ],
)
def test_what_becomes_of_letters(tmp_path: Path, lines: str, sequence: str, replaced: int) -> None:
    (record,) = read_fasta(write(tmp_path, f">a\n{lines}\n"))
    assert (record.sequence, record.replaced) == (sequence, replaced)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_gzip_and_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    path = write(tmp_path, gzip.compress(mark + b">a\nMKV\n", mtime=0), "x.fasta.gz")
    assert read_fasta(path)[0].sequence == "MKV"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ": the file is empty"),
        ("\n \n", ": the file is empty"),
        ("MKV\n>a\nMKV\n", ':1: not FASTA (a record starts with ">")'),
        ("\n; comment\n>a\nMKV\n", ':2: not FASTA (a record starts with ">")'),
        ("data_1UBQ\n", ':1: not FASTA (a record starts with ">")'),
        (">a\nMK\n>b\n\n>c\nMK\n", ':3: record "b" has no residues'),
        (">a\nMK\n>b\n*\n", ':3: record "b" has no residues'),
        (">a\nMK\n>b", ':3: record "b" has no residues'),
        (">\nMK\n", ":1: record without a name"),
        (">a\nMK\nM1K\n", ":3: record \"a\" has '1', which is no residue"),
        (">a\nMK\n\nM-K\n", ":4: record \"a\" has '-', which is no residue"),
        (">a\nM.K\n", ":2: record \"a\" has '.', which is no residue"),
        (">a\nM*K*\n", ":2: record \"a\" has '*', which is no residue"),
        (">a\nMK**\n", ":2: record \"a\" has '*', which is no residue"),
        (">a\nMéK\n", ":2: record \"a\" has 'é', which is no residue"),
        (">a\nMK\n>b\nM\n>a x\nMK\n", ':5: record "a" appears twice (line 1)'),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", ": not FASTA (not a text file)"),
        (gzip.compress(b">a\nMKV\n", mtime=0)[:-6], ": damaged gzip file"),
    ],
)
def test_broken_content(tmp_path: Path, content: str | bytes, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path) + reason)}[^\n]*$"):
        read_fasta(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.fasta: No such file"):
        read_fasta(tmp_path / "absent.fasta")

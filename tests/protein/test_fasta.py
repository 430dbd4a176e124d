"""FASTA as people write it, and as they break it."""

import bz2
import gzip
import io
import lzma
import re
import sys
import tracemalloc
from pathlib import Path

import pytest
from Bio import SeqIO
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import FastaRecord, read_fasta

PROTEIN = "MKVLAGSTPIYHQNEDRCWF"


def write(folder: Path, content: str | bytes, name: str = "x.fasta") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes, **options: int) -> list[FastaRecord]:
    return read_fasta([write(folder, content)], **options)


class Pipe(io.RawIOBase):
    """Bytes of which the first comes alone, and which cannot be sought."""

    def __init__(self, content: bytes):
        self._parts = [content[:1], content[1:]] if content else []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._parts:
            return 0
        part = self._parts.pop(0)
        count = min(len(part), len(buffer))
        buffer[:count] = part[:count]
        if count < len(part):
            self._parts.insert(0, part[count:])
        return count


def on_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(content))))


def test_records_keep_name_header_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "\n>one first protein\nMKV\nLA\n\n>two\nGG:A\n")
    assert read_fasta([path]) == [
        FastaRecord("one", "one first protein", ("MKVLA",), str(path), 2),
        FastaRecord("two", "two", ("GG", "A"), str(path), 6),
    ]
    assert [r.length for r in read_fasta([path])] == [5, 3]
    assert [r.sequence for r in read_fasta([path])] == ["MKVLA", "GG:A"]


def test_the_example_is_what_biopython_reads(example: Path) -> None:
    path = example / "sequences.fasta"
    expected = [(r.id, r.description, str(r.seq)) for r in SeqIO.parse(path, "fasta")]
    records = read_fasta([path])
    assert [(r.id, r.header, r.sequence) for r in records] == expected
    assert len(expected) == 6
    assert not any(r.problem or r.warnings for r in records)


@pytest.mark.parametrize(
    ("lines", "sequence", "replaced"),
    [
        ("mkv", "MKV", 0),
        ("M K\tV \u00a0\n G", "MKVG", 0),
        ("MKV*", "MKV", 0),
        ("MKV\n * \n\n", "MKV", 0),
        ("MKV\r\nGG\r", "MKVGG", 0),
        ("MKV\rGG\r\rA", "MKVGGA", 0),
        ("MBJOUZKX", "MXXXXXKX", 5),
        ("ux:aB", "XX:AX", 2),
        ("MK* :\n GG*\n", "MK:GG", 0),
        ("MK\n:\nGG\n:A", "MK:GG:A", 0),
        ("XX", "XX", 0),
    ],
)
def test_what_becomes_of_letters(tmp_path: Path, lines: str, sequence: str, replaced: int) -> None:
    (record,) = read(tmp_path, f">a\n{lines}\n")
    assert (record.sequence, record.replaced, record.problem) == (sequence, replaced, "")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_gzip_and_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    # Files with marks, put together: the second header still begins its line.
    text = (mark + b">a\nMKV\n") * 2
    member = gzip.compress(text[: len(text) // 2], mtime=0)
    for content in (text, gzip.compress(text, mtime=0), member * 2):
        records = read(tmp_path, content)
        assert [(r.id, r.sequence, r.line) for r in records] == [("a", "MKV", 1), ("a", "MKV", 3)]


def test_standard_input_is_one_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, ">b\nGG\n")
    for content in (b">a\nM-K\n>b\nA\n", gzip.compress(b">a\nM-K\n>b\nA\n", mtime=0)):
        on_stdin(monkeypatch, content)
        records = read_fasta([path, Path("-")])
        assert [(r.id, r.file, r.line) for r in records] == [
            *(("b", str(path), 1), ("a", "stdin", 1), ("b", "stdin", 3))
        ]
        assert records[1].problem.startswith('stdin:2: record "a" has')
        assert records[2].warnings == (f'stdin:3: record "b" is also the id of {path}:1',)
    with pytest.raises(UserError, match=r"^stdin: named twice$"):
        read_fasta([Path("-"), Path("-")])


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (">a\n\n>c\nMK\n", 1, "has no residues"),
        (">a\n*\n", 1, "has no residues"),
        (">a", 1, "has no residues"),
        (">a\nMK\nM1K\n", 3, "has '1' (a number), which is no residue"),
        (">a\nMK\n\nM-K\n", 4, "has '-' (a gap of an alignment?), which is no residue"),
        (">a\nM.K\n", 2, "has '.' (a gap of an alignment?), which is no residue"),
        (">a\nM*K*\n", 2, "has '*' (a stop inside the chain), which is no residue"),
        (">a\nM*K\n", 2, "has '*' (a stop inside the chain), which is no residue"),
        (">a\nMK**\n", 2, "has '*' (a stop inside the chain), which is no residue"),
        (">a\nMK*\nG\n", 2, "has '*' (a stop inside the chain), which is no residue"),
        (">a\nMéK\n", 2, "has 'é' (U+00E9), which is no residue"),
        (">a\nМK\n", 2, "has 'М' (U+041C), which is no residue"),  # of Cyrillic
        (b">a\nM\xe9K\n", 2, "has the byte 0xe9, which is no residue"),
        (">a\nMK>b\nM\n", 2, "has '>' (a header that does not begin its line?), which is no"),
        (">a\nMK\n; b\n", 3, "has ';' (a comment?), which is no residue"),
        (">a\nMK\n//\n", 3, "has '/', which is no residue"),
        (">a\nMK::G\n", 2, "has an empty chain"),
        (">a\n\n:MK\n", 3, "has an empty chain"),
        (">a\nMK\n:\n\n>b\nM\n", 3, "has an empty chain"),
        (">a\nMK:*\n", 2, "has an empty chain"),
        (">a\n:\n", 2, "has an empty chain"),
        (">a\nMKV\nGGG:A\n", 1, "has 7 residues, more than --max_length 6"),
        (">a " + "x" * (1 << 20) + "\nM\n", 1, "has a header of 1048578 characters"),
    ],
)
def test_what_is_wrong_with_one_record(
    tmp_path: Path, content: str | bytes, line: int, problem: str
) -> None:
    end = "\n>last\nMK\n"
    text = content + (end.encode() if isinstance(content, bytes) else end)
    first, *_, last = read(tmp_path, text, max_length=6)
    assert first.problem.startswith(f'{tmp_path}/x.fasta:{line}: record "a" {problem}')
    assert (first.id, first.chains, first.length, first.replaced) == ("a", (), 0, 0)
    assert (last.id, last.sequence, last.problem) == ("last", "MK", "")


@pytest.mark.parametrize(
    ("content", "warnings"),
    [
        (">\nMK\n", ['1: record "" has no name']),
        ("> a\nMK\n>\nMK\n>\nMK\n", ['3: record "" has no name', '5: record "" has no name']),
        (">a\nMK\n>b\nM\n>a x\nMK\n", ['5: record "a" is also the id of {}:1']),
        (">a\nMBJO\nUZX\n", ['1: record "a" has letters B, J, O, U or Z, read as X: 5']),
        (">a\nXx\n", ['1: record "a" has no residue but X']),
        (">a\n" + "ACGTN" * 4, ['1: record "a" has a chain of A, C, G, T, U and N only: ']),
        (">a\n" + "acg\n" * 7 + f":{PROTEIN}", ['1: record "a" has a chain of A, C, G, T, U']),
        # Too short to be sure, or with other letters.
        (f">a\n{'ACGT' * 4}ACG:{'ACGT' * 8}E\n", []),
        (">a \x01 b\x1b\nMK\n", []),
    ],
)
def test_what_may_not_be_meant(tmp_path: Path, content: str, warnings: list[str]) -> None:
    records = read(tmp_path, content)
    assert not any(record.problem for record in records)
    found = [warning for record in records for warning in record.warnings]
    path = f"{tmp_path}/x.fasta"
    assert len(found) == len(warnings)
    for one, expected in zip(found, warnings, strict=True):
        assert one.startswith(f"{path}:{expected.format(path)}")


def test_a_chromosome_is_too_long_and_looks_like_dna(tmp_path: Path) -> None:
    (record,) = read(tmp_path, ">chr1\n" + "acgtn" * 10, max_length=40)
    assert record.problem.endswith("has 50 residues, more than --max_length 40")
    assert "DNA or RNA" in record.warnings[0]


def test_headers_of_any_bytes_survive(tmp_path: Path) -> None:
    header = b"\xe9\xff|\t\xc3\xa9 x=/../" + b"y" * 300
    (record,) = read(tmp_path, b">" + header + b" \r\nM-\n")
    assert record.header.encode(errors="surrogateescape") == header
    assert '"\\udce9\\udcff|"' in record.problem
    (record,) = read(tmp_path, ">" + "é" * 300 + "\n")
    assert f'"{"é" * 80}…" has no residues' in record.problem


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ": the file is empty"),
        ("\n \n", ": the file is empty"),
        (gzip.compress(b"", mtime=0), ": the file is empty"),
        ("MKV\n>a\nMKV\n", ":1: not FASTA (a record starts with \">\"; this looks like a sequence"),
        ("\n; comment\n>a\nMKV\n", ':2: not FASTA (a record starts with ">"; this looks like a co'),
        (" >a\nMK\n", ':1: not FASTA (a record starts with ">")'),
        ("data_1UBQ\n", ':1: not FASTA (a record starts with ">"; this looks like mmCIF)'),
        ("HEADER    X\n", ':1: not FASTA (a record starts with ">"; this looks like PDB)'),
        ("@r1\nACGT\n+\n", ':1: not FASTA (a record starts with ">"; this looks like FASTQ'),
        ("LOCUS       X\n", ':1: not FASTA (a record starts with ">"; this looks like GenBank)'),
        ('{"a": 1}', ':1: not FASTA (a record starts with ">"; this looks like JSON)'),
        ("id,sequence\na,MK\n", ':1: not FASTA (a record starts with ">"; this looks like a ta'),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", ": not FASTA (an image)"),
        (">a\nMK\n".encode("utf-16"), ": not FASTA (UTF-16 text, save it as UTF-8)"),
        (lzma.compress(b">a\nMKV\n"), ": not FASTA (xz file; decompress it, or use gzip)"),
        (bz2.compress(b">a\nMKV\n"), ": not FASTA (bzip2 file; decompress it, or use gzip)"),
        (b"\x28\xb5\x2f\xfd\x00", ": not FASTA (zstd file; decompress it, or use gzip)"),
        (
            gzip.compress(gzip.compress(b">a\nM\n", mtime=0), mtime=0),
            ": gzip-compressed twice; decompress it once",
        ),
        (">a\nMK\n\x00", ":3: not FASTA (not a text file: byte 0x00)"),
        (gzip.compress(b">a\nMKV\n", mtime=0)[:-6], ": damaged gzip file"),
        (gzip.compress(b">a\nMKV\n", mtime=0)[:-8] + bytes(8), ": damaged gzip file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_whole_file(tmp_path: Path, content: str | bytes, reason: str) -> None:
    sound = write(tmp_path, ">a\nMK\n", "sound.fasta")
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path) + reason)}[^\n]*$"):
        read_fasta([sound, path])


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.fasta: No such file"):
        read_fasta([tmp_path / "absent.fasta"])
    with pytest.raises(UserError, match=r": Is a directory$"):
        read_fasta([tmp_path])


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match=r"^stdin: closed$"):
        read_fasta([Path("-")])


@pytest.mark.parametrize("options", [{"max_length": 1000}, {"max_length": 10**9}])
@pytest.mark.parametrize(
    ("part", "times", "problem"),
    [
        (PROTEIN, 400_000, "has 8000000 residues, more than"),
        ("M:", 30_000, "has 30000 residues, more than"),
        ("-", 2_000_000, "has '-' (a gap"),
        (" ", 2_000_000, "has no residues"),
        (":", 200_000, "has an empty chain"),
    ],
    ids=["residues", "chains", "gaps", "spaces", "colons"],
)
def test_a_long_line_is_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    times: int,
    problem: str,
    options: dict[str, int],
) -> None:
    monkeypatch.setattr("esmfold_peft.protein.fasta._LONGEST", 1000)
    monkeypatch.setattr("esmfold_peft.protein.fasta_lines._PIECE", 8000)
    path = write(tmp_path, f">big\n{part * times}\n>small\nMK\n")
    tracemalloc.start()
    big, small = read_fasta([path], **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert (small.id, small.sequence, small.line) == ("small", "MK", 3)
    limit = "--max_length 1000" if options["max_length"] == 1000 else "1000"
    more = limit if problem.endswith("than") else ""
    assert big.problem.startswith(f"{path}:")
    assert f'record "big" {problem} {more}'.rstrip() in big.problem
    assert (big.chains, big.warnings) == ((), ())


# Bytes that make records, lines and problems much more often than any bytes would.
PIECES = st.sampled_from(
    [
        *(b">", b"\n", b"\r", b"\r\n", b"MKV", b"acgt" * 6, b":", b"*", b"-", b" ", b"X", b"BU"),
        *(b"\xef\xbb\xbf", b"\xe9", b"\x01", b"\x00", b"id", b"\t", b"7"),
    ]
)
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.lists(PIECES, max_size=40).map(b"".join),
    st.lists(PIECES, max_size=40).map(lambda parts: b">" + b"".join(parts)),
)


def plainly(lines: list[bytes]) -> tuple[str, ...]:
    """The chains in whole lines, for what has no problem."""
    text = b"".join(line.removeprefix(b"\xef\xbb\xbf") for line in lines).decode()
    chains = "".join(text.split()).upper().split(":")
    return tuple(re.sub("[BJOUZ]", "X", chain.removesuffix("*")) for chain in chains)


@settings(max_examples=1000, deadline=None)
@given(CONTENTS, st.sampled_from([2, 3, 7, 1 << 16]))
def test_any_bytes_are_records_or_one_error(content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_stdin(patch, content)
        patch.setattr("esmfold_peft.protein.fasta_lines._PIECE", piece)
        try:
            records = read_fasta([Path("-")], max_length=30)
        except UserError as error:
            records, message = None, str(error)
    if records is None:
        assert re.fullmatch(r"stdin(:\d+)?: [^\n]+", message)
        return
    lines = re.split(rb"\r\n|\r|\n", content)
    starts = [
        n for n, line in enumerate(lines, 1) if line.removeprefix(b"\xef\xbb\xbf")[:1] == b">"
    ]
    assert [record.line for record in records] == starts
    for record in records:
        header = lines[record.line - 1].removeprefix(b"\xef\xbb\xbf")[1:]
        assert record.header == header.decode(errors="surrogateescape").rstrip()
        assert record.id == (record.header.split() or [""])[0]
        assert bool(record.chains) != bool(record.problem)
        assert 0 <= record.length <= 30
        if not record.problem:
            following = next((n for n in starts if n > record.line), len(lines) + 1)
            assert record.chains == plainly(lines[record.line : following - 1])
        assert all(chain and set(chain) <= set("ARNDCQEGHILKMFPSTWYVX") for chain in record.chains)
        for message in (*record.warnings, *filter(None, [record.problem])):
            assert re.match(r"^stdin:\d+: record \"", message)
            assert message.isprintable()

"""The lines of a FASTA file as a stream: decompressed, decoded, in pieces of bounded size."""

import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

from esmfold_peft.errors import UserError

STDIN = "-"
"""The path that means standard input."""

_PIECE = 1 << 16
"""Most characters of a piece: a line may be longer than memory."""

_GZIP = b"\x1f\x8b"
_COMPRESSED = {
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}
_BINARY = {
    b"\xff\xfe": "UTF-16 text, save it as UTF-8",
    b"\xfe\xff": "UTF-16 text, save it as UTF-8",
    b"%PDF": "PDF",
    b"\x89PNG": "an image",
}
_LONGEST_MAGIC = 6
_FORMATS = (
    (r"@", "looks like FASTQ, which holds reads of DNA"),
    (r"LOCUS\s", "looks like GenBank"),
    (r"ID   ", "looks like a flat file of UniProt or EMBL"),
    (r"(HEADER|TITLE|REMARK|CRYST1|MODEL|ATOM|HETATM)\b", "looks like PDB"),
    (r"(?i)data_|loop_$", "looks like mmCIF"),
    (r";", 'looks like a comment; only lines that begin with ">" may stand before a sequence'),
    (r"#\s*STOCKHOLM", "looks like a Stockholm alignment"),
    (r"CLUSTAL|MUSCLE", "looks like a Clustal alignment"),
    (r"[{\[]", "looks like JSON"),
    (r"<", "looks like XML or HTML"),
    (r"(?i)(id|name),", "looks like a table"),
    (r"(?i)[a-z*]+\s*$", "looks like a sequence without its header"),
)
_BYTE_ORDER_MARK = "\ufeff"


class Piece(NamedTuple):
    """A line of text, or a part of a long one.

    Attributes:
        text: without the end of the line.
        line: 1-based.
        begins: whether it is the beginning of its line.
        header: whether its line begins with ">".
    """

    text: str
    line: int
    begins: bool
    header: bool


def file_name(path: Path) -> str:
    """The name of a file in messages: its path, or "stdin"."""
    return "stdin" if str(path) == STDIN else str(path)


def line_pieces(path: Path) -> Iterator[Piece]:
    """Yields a FASTA file, plain or gzip, from its first header on, in pieces of 65,536 characters.

    Lines end with a line feed, a carriage return, or both; a byte order mark before a line is
    dropped. Bytes that are not UTF-8 are kept as lone surrogates (PEP 383). The file, or standard
    input ("-"), is read once from its beginning, so a pipe will do.

    Raises:
        UserError: the file is missing, unreadable, empty, binary, compressed in another way, a
            damaged gzip file, or its first line that is not blank is no header.
    """
    place = file_name(path)
    if path == Path(STDIN) and sys.stdin is None:
        raise UserError("stdin: closed")
    try:
        with nullcontext(sys.stdin.buffer) if path == Path(STDIN) else path.open("rb") as source:
            stream = _decoded(cast(io.BufferedIOBase, source), place)
            yield from _from_first_header(_pieces(stream, place), place)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{place}: damaged gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}") from error


class _Rejoined(io.RawIOBase):
    """A stream and its beginning, which was read before; a pipe cannot be sought."""

    def __init__(self, beginning: bytes, rest: io.BufferedIOBase):
        self._beginning, self._rest = beginning, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._beginning or self._rest.read(len(view))
        part, self._beginning = data[: len(view)], data[len(view) :]
        view[: len(part)] = part
        return len(part)


def _decoded(source: io.BufferedIOBase, place: str) -> io.TextIOWrapper:
    beginning = source.read(_LONGEST_MAGIC)
    _check_magic(beginning, place)
    whole = io.BufferedReader(_Rejoined(beginning, source), _PIECE)
    if beginning.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=whole)
        beginning = content.peek(_LONGEST_MAGIC)
        _check_magic(beginning, place)
        if beginning.startswith(_GZIP):
            raise UserError(f"{place}: gzip-compressed twice; decompress it once")
        whole = io.BufferedReader(content, _PIECE)
    return io.TextIOWrapper(whole, encoding="utf-8", errors="surrogateescape", newline=None)


def _check_magic(beginning: bytes, place: str) -> None:
    for magic, name in (_COMPRESSED | _BINARY).items():
        if beginning.startswith(magic):
            advice = " file; decompress it, or use gzip" if magic in _COMPRESSED else ""
            raise UserError(f"{place}: not FASTA ({name}{advice})")


def _pieces(stream: io.TextIOWrapper, place: str) -> Iterator[Piece]:
    line, begins, header = 1, True, False
    while text := stream.readline(_PIECE):
        # No text has this byte; a header may have others, as NCBI's nr has ^A.
        if "\0" in text:
            raise UserError(f"{place}:{line}: not FASTA (not a text file: byte 0x00)")
        ended = text.endswith("\n")
        if begins:
            text = text.removeprefix(_BYTE_ORDER_MARK)
            header = text.startswith(">")
        yield Piece(text.removesuffix("\n"), line, begins, header)
        line, begins = line + ended, ended


def _from_first_header(pieces: Iterator[Piece], place: str) -> Iterator[Piece]:
    first = next((piece for piece in pieces if piece.text and not piece.text.isspace()), None)
    if first is None:
        raise UserError(f"{place}: the file is empty")
    if not first.header:
        hint = next((hint for form, hint in _FORMATS if re.match(form, first.text)), "")
        reason = f'a record starts with ">"{hint and f"; this {hint}"}'
        raise UserError(f"{place}:{first.line}: not FASTA ({reason})")
    yield first
    yield from pieces

"""Reading protein sequences from FASTA files."""

import io
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from Bio.SeqIO.FastaIO import SimpleFastaParser

from esmfold_peft.errors import UserError
from esmfold_peft.protein.files import read_bytes

_TO_X = str.maketrans(dict.fromkeys("BJOUZ", "X"))
_STOP = "*"


@dataclass(frozen=True)
class FastaRecord:
    """One sequence of a FASTA file.

    Attributes:
        id: first word of the header.
        header: the whole header line without ">".
        sequence: one-letter codes of the twenty amino acids, and X.
        line: 1-based line of the header.
        replaced: how many letters of `sequence` are X in place of B, J, O, U or Z.
    """

    id: str
    header: str
    sequence: str
    line: int
    replaced: int


def read_fasta(path: Path) -> list[FastaRecord]:
    """Reads a FASTA file of proteins, plain or gzip-compressed.

    Lower case becomes upper case; white space inside a sequence and one "*" (stop) at its end are
    dropped; B, J, O, U and Z, which the model does not know, become X and are counted.

    Args:
        path: the file.

    Returns:
        The records in the order of the file; at least one.

    Raises:
        UserError: the file is missing, empty, damaged, or not FASTA; a record has no name, no
            residues, the name of an earlier one, or a character that is not a letter.
    """
    text = _decode(path)
    lines = [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    _check_starts_with_header(path, lines)
    starts = [number for number, line in enumerate(lines, start=1) if line.startswith(">")]
    records: dict[str, FastaRecord] = {}
    for start, (title, sequence) in zip(
        starts, SimpleFastaParser(io.StringIO(text, newline=None)), strict=True
    ):
        record = _record(path, start, title, sequence, lines)
        if record.id in records:
            first = records[record.id].line
            raise UserError(f'{path}:{start}: record "{record.id}" appears twice (line {first})')
        records[record.id] = record
    return list(records.values())


def _decode(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not FASTA (not a text file)") from error


def _check_starts_with_header(path: Path, lines: list[str]) -> None:
    number, line = next((n, line) for n, line in enumerate(lines, start=1) if line.strip())
    if not line.startswith(">"):
        raise UserError(f'{path}:{number}: not FASTA (a record starts with ">")')


def _record(path: Path, start: int, title: str, sequence: str, lines: list[str]) -> FastaRecord:
    name = next(iter(title.split()), None)
    if name is None:
        raise UserError(f"{path}:{start}: record without a name")
    letters = "".join(sequence.split()).removesuffix(_STOP)
    if not letters:
        raise UserError(f'{path}:{start}: record "{name}" has no residues')
    if not set(letters) <= set(string.ascii_letters):
        number, character = next(_strangers(start, letters, lines))
        raise UserError(f'{path}:{number}: record "{name}" has {character!r}, which is no residue')
    upper = letters.upper()
    known = upper.translate(_TO_X)
    replaced = known.count("X") - upper.count("X")
    return FastaRecord(name, title, known, start, replaced)


def _strangers(start: int, letters: str, lines: list[str]) -> Iterator[tuple[int, str]]:
    """The line and the character of everything in a record that is not a letter."""
    position = 0
    for number, line in enumerate(lines[start:], start=start + 1):
        for character in "".join(line.split()):
            if position < len(letters) and character not in string.ascii_letters:
                yield number, character
            position += 1

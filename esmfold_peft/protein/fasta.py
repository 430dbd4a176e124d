"""Reading protein sequences from FASTA files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta_chains import ChainReader
from esmfold_peft.protein.fasta_lines import STDIN, Piece, file_name, line_pieces

_LONGEST = 1_000_000
"""Residues of a record that are kept where no limit is given; titin has 35,000."""

_LONGEST_HEADER = 1 << 20
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class FastaRecord:
    """One record of a FASTA file: a protein of one or several chains.

    Attributes:
        id: first word of the header; "" if the header is empty.
        header: the whole header line without ">"; cut where it has more than 1,048,576 characters,
            which is a problem.
        chains: sequences of its chains, one-letter codes of the twenty amino acids and X; () where
            there is a problem.
        file: path of the file, "stdin" for standard input.
        line: 1-based line of the header.
        replaced: how many letters of `chains` are X in place of B, J, O, U or Z.
        problem: why it cannot be folded, with file and line; "" if it can.
        warnings: what may not be meant, each with file and line.
    """

    id: str
    header: str
    chains: tuple[str, ...]
    file: str
    line: int
    replaced: int = 0
    problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Residues of all chains; 0 where there is a problem."""
        return sum(map(len, self.chains))

    @property
    def sequence(self) -> str:
        """The chains, joined by ":"."""
        return ":".join(self.chains)


def read_fasta(paths: Sequence[Path], *, max_length: int | None = None) -> list[FastaRecord]:
    """Reads FASTA files of proteins, plain or gzip-compressed.

    ":" stands between the chains of one protein. Lower case becomes upper case; white space inside
    a sequence and one "*" (stop) at the end of a chain are dropped; B, J, O, U and Z, which the
    model does not know, become X and are counted. What is wrong with one record is its `problem`:
    no residues, an empty chain, another character, too many residues. A record without a name, with
    the id of an earlier one, with letters read as X, without a known residue, or with a chain of at
    least 20 letters that are all of DNA or RNA has a warning.

    Files are streams: of a record at most `max_length` residues (a million without it) lie in
    memory, the others are only counted.

    Args:
        paths: the files; "-" is standard input.
        max_length: most residues of a record, all chains together.

    Returns:
        One record for each line that begins with ">", in the order of the files.

    Raises:
        UserError: a file is missing, empty, damaged, binary, or does not begin with a header; or
            standard input is named twice.
    """
    if [str(path) for path in paths].count(STDIN) > 1:
        raise UserError("stdin: named twice")
    records = chain.from_iterable(_records(path, max_length) for path in paths)
    return list(_warned_of_duplicates(records))


def _warned_of_duplicates(records: Iterator[FastaRecord]) -> Iterator[FastaRecord]:
    first: dict[str, str] = {}
    for record in records:
        place = f"{record.file}:{record.line}"
        if record.id in first:
            warning = f"{_named(record.id, place)} is also the id of {first[record.id]}"
            record = replace(record, warnings=(warning, *record.warnings))
        elif record.id:
            first[record.id] = place
        yield record


def _records(path: Path, max_length: int | None) -> Iterator[FastaRecord]:
    reading = None
    for piece in line_pieces(path):
        if piece.header and piece.begins:
            if reading is not None:
                yield reading.record()
            reading = _Reading(file_name(path), piece.line, max_length)
        assert reading is not None  # the first piece begins a header
        reading.add(piece)
    if reading is not None:
        yield reading.record()


class _Reading:
    """A record of which not all has been read."""

    def __init__(self, file: str, line: int, max_length: int | None):
        self._file, self._line, self._max_length = file, line, max_length
        self._header: list[str] = []
        self._header_length = 0  # with its ">"
        limit = _LONGEST if max_length is None else min(max_length, _LONGEST)
        self._chains = ChainReader(limit)

    def add(self, piece: Piece) -> None:
        if not piece.header:
            self._chains.add(piece.text, piece.line)
            return
        self._header_length += len(piece.text)
        if self._header_length - 1 <= _LONGEST_HEADER:
            self._header.append(piece.text)

    def record(self) -> FastaRecord:
        """What was read."""
        header = "".join(self._header)[1:].rstrip()
        name = next(iter(header.split()), "")
        chains = self._chains.finish()
        line, reason = self._problem()
        place = f"{self._file}:{self._line}"
        return FastaRecord(
            id=name,
            header=header,
            chains=() if reason else chains,
            file=self._file,
            line=self._line,
            replaced=0 if reason else self._chains.replaced,
            problem=f"{_named(name, f'{self._file}:{line}')} {reason}" if reason else "",
            warnings=tuple(f"{_named(name, place)} {text}" for text in self._doubts(name, reason)),
        )

    def _problem(self) -> tuple[int, str]:
        """Line and reason; "" if there is none."""
        count = self._chains.count
        if self._header_length - 1 > _LONGEST_HEADER:
            return self._line, f"has a header of {self._header_length - 1} characters"
        if self._chains.problem is not None:
            return self._chains.problem
        if self._max_length is not None and count > self._max_length:
            return self._line, f"has {count} residues, more than --max_length {self._max_length}"
        if count > _LONGEST:
            return self._line, f"has {count} residues, more than {_LONGEST}"
        return self._line, "" if count else "has no residues"

    def _doubts(self, name: str, problem: str) -> Iterator[str]:
        if not name:
            yield "has no name"
        if self._chains.nucleic:
            yield "has a chain of A, C, G, T, U and N only: DNA or RNA, not a protein?"
        if problem:
            return
        if self._chains.replaced:
            yield f"has letters B, J, O, U or Z, read as X: {self._chains.replaced}"
        if not self._chains.known:
            yield "has no residue but X"


def _named(name: str, place: str) -> str:
    """The beginning of a message: no name breaks its line or fills the terminal."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name[:_LONGEST_SHOWN])
    return f'{place}: record "{shown}{"…" if len(name) > _LONGEST_SHOWN else ""}"'

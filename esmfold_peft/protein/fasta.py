"""Reading protein sequences from FASTA files."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta_lines import STDIN, file_name, line_pieces

_LONGEST = 1_000_000
"""Residues of a record that are kept where no limit is given; titin has 35,000."""

_LONGEST_HEADER = 1 << 20
_LONGEST_SHOWN = 80

_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase, _SPACES)
_STRANGERS = str.maketrans("", "", string.ascii_uppercase)
_TO_X = str.maketrans(dict.fromkeys("BJOUZ", "X"))
_NO_NUCLEOTIDES = str.maketrans("", "", "ACGTUN")
_FEWEST_NUCLEOTIDES = 20
_STOP = "*"
_MEANINGS = {
    **dict.fromkeys("-.~", "a gap of an alignment?"),
    **dict.fromkeys(string.digits, "a number"),
    _STOP: "a stop inside the chain",
    ">": "a header that does not begin its line?",
    ";": "a comment?",
}


@dataclass(frozen=True)
class FastaRecord:
    """One record of a FASTA file: a protein of one or several chains.

    Attributes:
        id: first word of the header; "" if the header is empty.
        header: the whole header line without ">"; a header of more than 1,048,576 characters is cut
            and is a problem.
        chains: sequences of its chains, one-letter codes of the twenty amino acids and X; () where
            there is a problem.
        file: path of the file, "stdin" for standard input.
        line: 1-based line of the header.
        replaced: how many letters of `chains` are X in place of B, J, O, U or Z.
        problem: why it cannot be folded, with file and line; "" if it can.
        warnings: what the user may not have meant, each with file and line.
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
    """Reads FASTA files of proteins, plain or gzip-compressed; "-" is standard input.

    ":" stands between the chains of one protein. Lower case becomes upper case; white space inside
    a sequence and one "*" (stop) at the end of a chain are dropped; B, J, O, U and Z, which the
    model does not know, become X and are counted. A bad record keeps its place and states its
    `problem`: no residues, an empty chain, another character, too many residues. A record without a
    name, with the id of an earlier one, with letters read as X, without a known residue, or with a
    chain of at least 20 letters that are all of DNA or RNA has a warning.

    Files are streams: memory holds at most `max_length` residues of a record (all its chains
    together; a million without it), the others are only counted.

    Raises:
        UserError: a file is missing, empty, damaged, binary, or does not begin with a header; or
            standard input is named twice.
    """
    if [str(path) for path in paths].count(STDIN) > 1:
        raise UserError("stdin: named twice")
    first: dict[str, str] = {}
    records = []
    for record in chain.from_iterable(_records(path, max_length) for path in paths):
        place = f"{record.file}:{record.line}"
        if record.id in first:
            warning = f"{_named(record.id, place)} is also the id of {first[record.id]}"
            record = replace(record, warnings=(warning, *record.warnings))
        elif record.id:
            first[record.id] = place
        records.append(record)
    return records


def _records(path: Path, max_length: int | None) -> Iterator[FastaRecord]:
    reading = None
    for piece in line_pieces(path):
        if piece.header and piece.begins:
            if reading is not None:
                yield reading.record()
            reading = _Reading(file_name(path), piece.line, max_length)
        assert reading is not None  # the first piece begins a header
        if piece.header:
            reading.add_header(piece.text)
        else:
            reading.chains.add(piece.text, piece.line)
    if reading is not None:
        yield reading.record()


class _Reading:
    """A record that is being read."""

    def __init__(self, file: str, line: int, max_length: int | None):
        self._file, self._line, self._max_length = file, line, max_length
        self._header: list[str] = []
        self._header_length = -1  # without its ">"
        self.chains = ChainReader(_LONGEST if max_length is None else min(max_length, _LONGEST))

    def add_header(self, text: str) -> None:
        self._header_length += len(text)
        if self._header_length <= _LONGEST_HEADER:
            self._header.append(text)

    def record(self) -> FastaRecord:
        header = "".join(self._header)[1:].rstrip()
        name = next(iter(header.split()), "")
        chains = self.chains.finish()
        line, reason = self._problem()
        place = f"{self._file}:{self._line}"
        return FastaRecord(
            id=name,
            header=header,
            chains=() if reason else chains,
            file=self._file,
            line=self._line,
            replaced=0 if reason else self.chains.replaced,
            problem=f"{_named(name, f'{self._file}:{line}')} {reason}" if reason else "",
            warnings=tuple(f"{_named(name, place)} {text}" for text in self._doubts(name, reason)),
        )

    def _problem(self) -> tuple[int, str]:
        """Line and reason; "" if there is none."""
        count = self.chains.count
        if self._header_length > _LONGEST_HEADER:
            return self._line, f"has a header of {self._header_length} characters"
        if self.chains.problem is not None:
            return self.chains.problem
        if self._max_length is not None and count > self._max_length:
            return self._line, f"has {count} residues, more than --max_length {self._max_length}"
        if count > _LONGEST:
            return self._line, f"has {count} residues, more than {_LONGEST}"
        return self._line, "" if count else "has no residues"

    def _doubts(self, name: str, problem: str) -> Iterator[str]:
        if not name:
            yield "has no name"
        if self.chains.nucleic:
            yield "has a chain of A, C, G, T, U and N only: DNA or RNA, not a protein?"
        if self.chains.replaced and not problem:
            yield f"has letters B, J, O, U or Z, read as X: {self.chains.replaced}"
        if not self.chains.known and not problem:
            yield "has no residue but X"


def _named(name: str, place: str) -> str:
    """The beginning of a message: no name breaks its line or fills the terminal."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name[:_LONGEST_SHOWN])
    return f'{place}: record "{shown}{"…" if len(name) > _LONGEST_SHOWN else ""}"'


class ChainReader:
    """Reads and checks the chains of one record piece by piece.

    Above `limit` residues (of all chains) it only counts; after a problem it reads nothing.

    Attributes:
        count: residues so far, if there is no problem.
        replaced: letters among them read as X.
        known: whether one of them is not X.
        nucleic: whether one of the closed chains is long and has letters of DNA or RNA only.
        problem: line and reason of the first thing that is wrong, or None.
    """

    def __init__(self, limit: int):
        self.count = 0
        self.replaced = 0
        self.known = False
        self.nucleic = False
        self.problem: tuple[int, str] | None = None
        self._limit = limit
        self._chains: list[str] = []
        self._colon = 0  # line of the last ":"
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._parts: list[str] = []
        self._before = self.count
        self._stop = 0  # line of a "*"
        self._maybe_nucleic = True

    def add(self, text: str, line: int) -> None:
        """Takes a part, of any length, of a line with a 1-based number."""
        if self.problem is None and self.count > self._limit:
            letters = text.translate(_UPPER)
            self.count += len(letters) - len(letters.translate(_STRANGERS))
            self._check_nucleic(letters)
            return
        for number, segment in enumerate(text.split(":")):
            if self.problem is None and number > 0:
                self._colon = line
                self._end_chain()
            if self.problem is None:
                self._extend(segment.translate(_UPPER), line)

    def finish(self) -> tuple[str, ...]:
        """The chains of the record, which has ended; () if it has a problem or is too long."""
        if self.problem is None and (self.count or self._colon):
            self._end_chain()
        return () if self.problem or self.count > self._limit else tuple(self._chains)

    def _end_chain(self) -> None:
        length = self.count - self._before
        if length == 0:
            self.problem = (self._colon, "has an empty chain")
        self.nucleic |= self._maybe_nucleic and length >= _FEWEST_NUCLEOTIDES
        if self.count <= self._limit:
            self._chains.append("".join(self._parts))
        self._begin_chain()

    def _extend(self, letters: str, line: int) -> None:
        strangers = letters.translate(_STRANGERS)
        if letters and self._stop:
            self._refuse(_STOP, self._stop)
        elif strangers == _STOP and letters.endswith(_STOP):
            self._stop = line
            self._keep(letters.removesuffix(_STOP))
        elif strangers:
            self._refuse(strangers[0], line)
        else:
            self._keep(letters)

    def _keep(self, letters: str) -> None:
        self.count += len(letters)
        self._check_nucleic(letters)
        if self.count <= self._limit:
            known = letters.translate(_TO_X)
            unknown = known.count("X")
            self.known |= unknown < len(known)
            self.replaced += unknown - letters.count("X")
            self._parts.append(known)

    def _check_nucleic(self, letters: str) -> None:
        self._maybe_nucleic = self._maybe_nucleic and not letters.translate(_NO_NUCLEOTIDES)

    def _refuse(self, character: str, line: int) -> None:
        """States a character and what it probably is; other alphabets have letters like ours."""
        code = ord(character)
        meaning = _MEANINGS.get(character, "" if character.isascii() else f"U+{code:04X}")
        shown = f"{character!r} ({meaning})" if meaning else repr(character)
        if 0xDC80 <= code <= 0xDCFF:  # how a byte that is not UTF-8 is kept
            shown = f"the byte 0x{code - 0xDC00:02x}"
        self.problem = (line, f"has {shown}, which is no residue")

"""The chains of one FASTA record, read piece by piece, and what is wrong with them."""

import string

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


class ChainReader:
    """Reads the chains of one record.

    Once there are too many residues it only counts them; after a problem it reads nothing.

    Args:
        limit: most residues that are kept, all chains together.

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
        self._colon = 0
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._parts: list[str] = []
        self._before = self.count
        self._stop = 0
        self._maybe_nucleic = True

    def add(self, text: str, line: int) -> None:
        """Takes a part of a line.

        Args:
            text: of any length.
            line: 1-based.
        """
        if self.problem is not None:
            return
        if self.count > self._limit:
            letters = text.translate(_UPPER)
            self.count += len(letters) - len(letters.translate(_STRANGERS))
            self._check_nucleic(letters)
            return
        for number, segment in enumerate(text.split(":")):
            if number > 0:
                self._colon = line
                self._end_chain()
            if self.problem is None:
                self._extend(segment, line)
            if self.problem is not None:
                return

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

    def _extend(self, segment: str, line: int) -> None:
        letters = segment.translate(_UPPER)
        if letters and self._stop:
            self._refuse(_STOP, self._stop)
        elif letters.translate(_STRANGERS) == _STOP and letters.endswith(_STOP):
            self._stop = line
            self._keep(letters.removesuffix(_STOP))
        elif strangers := letters.translate(_STRANGERS):
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
        self.problem = (line, f"has {_described(character)}, which is no residue")


def _described(character: str) -> str:
    """A character and what it probably is; letters of other alphabets may look like ours."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how a byte that is not UTF-8 is kept
        return f"the byte 0x{code - 0xDC00:02x}"
    meaning = _MEANINGS.get(character, "" if character.isascii() else f"U+{code:04X}")
    return f"{character!r} ({meaning})" if meaning else repr(character)

"""Two aligned sequences, for residues without common numbers and for messages."""

from functools import cache

import numpy as np
from Bio.Align import PairwiseAligner, substitution_matrices
from jaxtyping import Int64

_COLUMNS = 60
_BLOCKS = 3
"""Lines of an alignment that are shown, from that of the first difference."""


def align(reference: str, predicted: str) -> Int64[np.ndarray, "n"]:
    """Aligns two sequences over their whole lengths, gaps at the ends free.

    BLOSUM62, gaps 11 and 1 (the defaults of BLASTP); the letters are the twenty and X. Returns for
    each residue of the reference its place in the prediction, -1 for a gap.
    """
    places = np.full(len(reference), -1, dtype=np.int64)
    alignment = _aligner(end_gap=0).align(reference, predicted)[0]
    for (start, stop), (other, _) in zip(*alignment.aligned, strict=True):
        places[start:stop] = np.arange(other, other + stop - start)
    return places


def shown_alignment(reference: str, predicted: str) -> str:
    """The part of the alignment where the sequences begin to differ, in lines of 60 columns.

    Each line of the reference and of the prediction begins and ends with the places, 1-based, of
    its first and last letters; "|" marks equal letters.
    """
    # With free ends, sequences that have nothing in common would not overlap.
    alignment = _aligner(end_gap=-1).align(reference, predicted)[0]
    upper, lower = str(alignment[0]), str(alignment[1])
    marks = "".join("|" if a == b else " " for a, b in zip(upper, lower, strict=True))
    first = marks.index(" ") if " " in marks else 0
    begin = first // _COLUMNS * _COLUMNS
    end = min(len(marks), begin + _BLOCKS * _COLUMNS)
    lines = []
    for start in range(begin, end, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        lines += [
            _line("reference", upper, part),
            " " * 18 + marks[part],
            _line("prediction", lower, part),
        ]
    if end < len(marks):
        lines.append(f"... {len(marks) - end} more columns")
    return "\n".join(line.rstrip() for line in lines)


def _line(name: str, text: str, part: slice) -> str:
    before = sum(letter != "-" for letter in text[: part.start])
    letters = sum(letter != "-" for letter in text[part])
    return f"{name:<10} {before + 1:>6} {text[part]} {before + letters}"


@cache
def _aligner(end_gap: int) -> PairwiseAligner:
    aligner = PairwiseAligner(mode="global")
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    aligner.end_gap_score = end_gap
    return aligner

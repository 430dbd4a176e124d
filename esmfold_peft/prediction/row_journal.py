"""What `predict` has done: predictions.csv and, until that is complete, journals of its rows.

After the files of a sequence are written, a process appends the row to its own journal, so a kill
loses only the sequences in progress. Before a process replaces files of an earlier row, it journals
that row as unfinished: the newest row of a sequence says what its files hold. At the end all rows
go into predictions.csv and the journals are removed.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from esmfold_peft.disk.csv_text import csv_text, read_table
from esmfold_peft.disk.files import is_half_written, make_folder, write_atomically
from esmfold_peft.disk.journal import Journal, whole_lines
from esmfold_peft.errors import BusyError, UserError

TABLE = "predictions.csv"
OK = "ok"
UNFINISHED = "not finished"
"""Status in a journal before the files of an earlier row are replaced."""

_JOURNAL = ".predictions.{rank}.jsonl"
_FILES = ("pdb", "mmcif", "pae_npz", "pae_json", "html")


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One line of predictions.csv.

    Attributes:
        name: of the files, unique in the folder.
        id: first word of the FASTA header.
        header: the whole header.
        fasta: the file that the record is in.
        line: of its header, from 1.
        chains: how many there are.
        length: residues of all chains.
        replaced: letters B, J, O, U and Z that were folded as X.
        adapter: the adapter that the record names; empty for the model's own.
        seed: 0 is the prediction; other seeds mask residues in the language model.
        plddt: mean predicted lDDT-Cα, 0 to 100. Empty if the record failed, like all columns from
            here on but status, warnings and hash.
        ptm: predicted TM-score, 0 to 1; empty without --pae.
        seconds: time of folding, a share of its batch's.
        status: "ok", or why there is no structure.
        warnings: what may be wrong with the sequence.
        pdb: file name; empty if the structure does not fit into the PDB format.
        mmcif: file name.
        pae_npz: file name; empty without --pae.
        pae_json: file name; empty without --pae.
        html: file name; empty without --html.
        hash: SHA-256 of the sequence, the model and the settings that decide the files.
    """

    name: str
    id: str
    header: str
    fasta: str
    line: int
    chains: int
    length: int
    replaced: int
    adapter: str
    seed: int
    plddt: float | None = None
    ptm: float | None = None
    seconds: float | None = None
    status: str
    warnings: str
    pdb: str = ""
    mmcif: str = ""
    pae_npz: str = ""
    pae_json: str = ""
    html: str = ""
    hash: str

    @property
    def files(self) -> list[str]:
        """Names of its files."""
        return [name for kind in _FILES if (name := getattr(self, kind))]

    def is_there(self, output: Path) -> bool:
        """Whether the prediction succeeded and all its files are in the folder."""
        paths = [output / name for name in self.files]
        return self.status == OK and all(p.is_file() and p.stat().st_size > 0 for p in paths)


class RowJournal:
    """The rows that one process has written; makes the folder if it is missing.

    Raises:
        UserError: the file cannot be written, or another process has it.
    """

    def __init__(self, output: Path, rank: int) -> None:
        make_folder(output)
        try:
            self._journal = Journal(output / _JOURNAL.format(rank=rank), lock=True)
        except BusyError as error:
            raise BusyError(
                f"output: another process predicts into {output}; wait for it"
            ) from error

    def add(self, row: PredictionRow) -> None:
        """Keeps a row, whose files are written or, if it is unfinished, about to be replaced."""
        self._journal.add({"time": time.time(), **asdict(row)})

    def close(self) -> None:
        """Lets another process have the file."""
        self._journal.close()


def require_new(output: Path) -> None:
    """Refuses a folder that has predictions; it may be missing.

    Raises:
        UserError: there are predictions, or the folder cannot be read.
    """
    try:
        found = (output / TABLE).exists() or any(_journals(output))
    except OSError as error:
        raise UserError(f"output: {output}: {error.strerror}") from error
    if found:
        raise UserError(
            f"output: {output} has predictions already; resume with --resume or choose another"
            " folder"
        )


def read_rows(output: Path) -> dict[str, PredictionRow]:
    """The newest row of each name; skips lines of journals that cannot be read.

    Raises:
        UserError: predictions.csv is no table of `predict`.
    """
    # The journals first: a process writes the table before it removes them.
    journals = [line for path in _journals(output) for line in _journal_rows(path)]
    newest = sorted(journals, key=lambda line: line[0])
    table = output / TABLE
    rows = read_table(table, PredictionRow, "predictions") if table.exists() else []
    return {row.name: row for row in (*rows, *(row for _, row in newest))}


def finish(output: Path, rows: Sequence[PredictionRow], started: float) -> None:
    """Writes predictions.csv; removes the journals, and half-written files that a kill left.

    Half-written files newer than `started`, the time when this process began, are another's.
    """
    write_atomically(output / TABLE, csv_text(PredictionRow, rows))
    half = (path for path in output.glob(".*") if is_half_written(path))
    leftovers = (path for path in half if path.stat().st_mtime < started)
    for path in (*_journals(output), *leftovers):
        path.unlink(missing_ok=True)


def _journals(output: Path) -> Iterable[Path]:
    return output.glob(_JOURNAL.format(rank="*"))


def _journal_rows(path: Path) -> Iterable[tuple[float, PredictionRow]]:
    """Time and row of each line."""
    for line in whole_lines(path):  # none if another process has just put it into the table
        try:
            values = json.loads(line)
            yield float(values.pop("time")), PredictionRow(**values)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue  # of a disk that lost power, or of another version

"""What a `predict` has done: predictions.csv, and before that is whole, a journal.

Each process appends a line of JSON to a journal of its own when the files of a sequence are
written, so that a kill loses nothing but the sequences at hand. Before files are written that
replace those of an earlier row, the journal says so: of every sequence the newest line tells what
its files hold. At the end all rows go into predictions.csv and the journals away.
"""

import csv
import io
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.disk.journal import Journal, whole_lines
from esmfold_peft.errors import BusyError, UserError

TABLE = "predictions.csv"
OK = "ok"
UNFINISHED = "not finished"
"""Status in a journal before the files of an earlier row are replaced."""

_JOURNAL = ".predictions.{rank}.jsonl"
_FILES = ("pdb", "mmcif", "pae_npz", "pae_json", "html")
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Half a file, as `protein.files` names it."""

# A header is a cell, and may have a million characters.
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
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
        seed: 0 is the prediction, others have residues hidden from the language model.
        plddt: mean predicted lDDT-Cα, 0 to 100; empty if the record failed, as all that follows but
            status and warnings.
        ptm: predicted TM-score, 0 to 1; empty without --pae.
        seconds: time of folding, a share of its batch's.
        status: "ok", or why there is no structure.
        warnings: what may be wrong with the sequence.
        pdb: file name; empty where the structure does not fit into the PDB format.
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
    plddt: float | None
    ptm: float | None
    seconds: float | None
    status: str
    warnings: str
    pdb: str
    mmcif: str
    pae_npz: str
    pae_json: str
    html: str
    hash: str

    @property
    def files(self) -> list[str]:
        """Names of the files that there are."""
        return [name for kind in _FILES if (name := getattr(self, kind))]


class RowJournal:
    """The rows that one process has written.

    Args:
        output: folder; it is made where it is missing.
        rank: of the process.

    Raises:
        UserError: the file cannot be written, or another process has it.
    """

    def __init__(self, output: Path, rank: int) -> None:
        make_folder(output)
        try:
            self._journal = Journal(output / _JOURNAL.format(rank=rank), lock=True)
        except BusyError as error:
            raise BusyError(f"output: another process predicts into {output}") from error

    def add(self, row: PredictionRow) -> None:
        """Keeps a row, whose files are written or, if it is not finished, about to be.

        Raises:
            UserError: the disk is full, or gone.
        """
        self._journal.add({"time": time.time(), **asdict(row)})


def require_new(output: Path) -> None:
    """Refuses a folder that has predictions.

    Args:
        output: folder that may be missing.

    Raises:
        UserError: there are predictions, or nobody may look.
    """
    try:
        found = (output / TABLE).exists() or any(_journals(output))
    except OSError as error:
        raise UserError(f"output: {output}: {error.strerror}") from error
    if found:
        raise UserError(
            f"output: {output} has predictions already; --resume goes on with them, or choose"
            " another folder"
        )


def read_rows(output: Path) -> dict[str, PredictionRow]:
    """The newest row of each name; lines of journals that cannot be read are left out.

    Args:
        output: folder that may be missing.

    Raises:
        UserError: the table is not one of ours.
    """
    # The journals first: who removes them has written the table before.
    journals = [line for path in _journals(output) for line in _journal_rows(path)]
    newest = sorted(journals, key=lambda line: line[0])
    rows = [*_table_rows(output / TABLE), *(row for _, row in newest)]
    return {row.name: row for row in rows}


def is_there(row: PredictionRow, output: Path) -> bool:
    """Whether a prediction succeeded and has all its files."""
    paths = [output / name for name in row.files]
    return row.status == OK and all(p.is_file() and p.stat().st_size > 0 for p in paths)


def remove_others(earlier: PredictionRow, row: PredictionRow, output: Path) -> None:
    """Removes the files of an earlier prediction that have not been replaced.

    Args:
        earlier: its row.
        row: of the prediction in its place.
        output: the folder.
    """
    for name in set(earlier.files) - set(row.files):
        (output / name).unlink(missing_ok=True)


def finish(output: Path, rows: Sequence[PredictionRow], started: float) -> None:
    """Writes predictions.csv and removes what it replaces.

    Args:
        output: the folder.
        rows: all of the table.
        started: time since the epoch when this process began: unfinished files that are older are
            what a kill has left.
    """
    write_atomically(output / TABLE, csv_text(PredictionRow, rows))
    half = (path for path in output.glob(".*.tmp") if _LEFTOVER.fullmatch(path.name))
    leftovers = (path for path in half if path.stat().st_mtime < started)
    for path in (*_journals(output), *leftovers):
        path.unlink(missing_ok=True)


def _journals(output: Path) -> Iterable[Path]:
    return output.glob(_JOURNAL.format(rank="*"))


def _journal_rows(path: Path) -> Iterable[tuple[float, PredictionRow]]:
    """Time and row of each line."""
    for line in whole_lines(path):  # none where another process has just put it into the table
        try:
            values = json.loads(line)
            yield float(values.pop("time")), PredictionRow(**values)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue  # of a disk that lost power, or of another version


def _table_rows(path: Path) -> list[PredictionRow]:
    """The rows of a table.

    Raises:
        UserError: it is not one of ours.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(), newline=""))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    try:
        return [PredictionRow(**_typed(row)) for row in reader]
    except (csv.Error, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not the table of an earlier prediction ({error})") from error


def _typed(cells: dict[str, str]) -> dict[str, Any]:
    kinds = {field.name: field.type for field in fields(PredictionRow)}
    values: dict[str, Any] = {}
    for name, text in cells.items():
        kind = kinds[name]
        if kind is str:
            values[name] = text
        elif kind is int:
            values[name] = int(text)
        else:
            values[name] = float(text) if text else None
    return values

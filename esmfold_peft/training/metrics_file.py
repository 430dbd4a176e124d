"""metrics.csv of a run: one line for each logged step.

Lightning's own logger deletes the file of a run that is resumed, and writes all of it anew for
every line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError

METRICS = "metrics.csv"

RELATIVE_UPDATE = "update/relative"
"""The column of the adapter's relative update."""

_STEP = "step"
_IGNORED = "epoch"  # Lightning adds it; our samples are drawn, and have no epochs
_DELIMITERS = set(',"\r\n')


class MetricsFile(Logger):
    """Appends losses and scores to a CSV file, each line visible at once.

    The columns are `step` and the metrics in the order in which they first appear. Only the first
    process writes. A file that is there already is gone on with. Who reads the file in the moment
    in which a line is added to (not appended) may find the end of that line as one of its own.

    Args:
        path: the file, in a folder that exists when the first metrics come.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = []  # none: the file has not been looked at
        self._row: dict[str, str] = {}  # cells of the last line
        self._offset = 0  # of the last line

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """None: a run has one such file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self._path.parent)

    def log_hyperparams(self, *arguments: object, **named: object) -> None:
        """Does nothing: settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Writes the line of a step, or adds to it where it is the last one.

        Args:
            metrics: numbers by name.
            step: optimizer steps done; never less than before.

        Raises:
            UserError: the file is damaged or cannot be written.
            ValueError: the step is missing or before the last one, or a name cannot be a header.
        """
        cells = {name: _cell(value) for name, value in metrics.items() if name != _IGNORED}
        if not cells:
            return
        if step is None or any(_DELIMITERS & set(name) for name in cells):
            raise ValueError(f"cannot log {metrics} at step {step}")
        try:
            self._log(step, cells)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror or error}") from error

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops what was logged after a step, for a run that goes on from there.

        Args:
            step: optimizer steps that the resumed run has done.

        Raises:
            UserError: the file is damaged or cannot be written. A last line that was cut off is
                not damage, and is dropped.
        """
        self._columns = []
        try:
            if self._path.exists():
                _rewind(self._path, step)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror or error}") from error

    def _log(self, step: int, cells: dict[str, str]) -> None:
        if not self._columns:
            self._look()
        last = int(self._row.get(_STEP, -1))
        if step < last:
            raise ValueError(f"{self._path}: step {step} is logged after step {last}")
        if step > last:
            self._offset += len(_line(self._row, self._columns)) if self._row else 0
            self._row = {_STEP: str(step)}
        self._row |= cells
        new = [name for name in cells if name not in self._columns]
        self._columns += new
        line = _line(self._row, self._columns)
        if new:
            self._widen(line, len(new))
        else:
            self._put(line)

    def _look(self) -> None:
        """Reads what the next line has to know of the file; there may be none."""
        header, *rows = _rewind(self._path) if self._path.exists() else [_STEP]
        self._columns = header.split(",")
        self._row = dict(zip(self._columns, rows[-1].split(","), strict=True)) if rows else {}
        self._offset = len(_text([header, *rows[:-1]]))

    def _put(self, line: bytes) -> None:
        """Writes the last line over what is there of it."""
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            file.write(line)
            # Cut afterwards: lines grow, so that the file never lacks the one that it had.
            file.truncate()

    def _widen(self, line: bytes, more: int) -> None:
        """Gives the earlier lines empty cells for new columns, and writes the last line."""
        content = self._path.read_bytes()[: self._offset] if self._path.exists() else b""
        rows = content.decode().splitlines()[1:]
        earlier = _text([",".join(self._columns), *(row + "," * more for row in rows)])
        write_atomically(self._path, earlier + line)
        self._offset = len(earlier)


def _cell(value: float | int) -> str:
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _line(row: dict[str, str], columns: list[str]) -> bytes:
    return _text([",".join(row.get(name, "") for name in columns)])


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _rewind(path: Path, step: int | None = None) -> list[str]:
    """Drops lines after a step, and a last line that was cut off; those that are left."""
    content = path.read_bytes()
    header, *rows = _whole_lines(path, content)
    if step is not None:
        rows = [row for row in rows if int(row.split(",")[0]) <= step]
    if content != (kept := _text([header, *rows])):
        write_atomically(path, kept)
    return [header, *rows]


def _whole_lines(path: Path, content: bytes) -> list[str]:
    """The header and the lines of a file, without a last one that was cut off.

    Raises:
        UserError: names the first damaged line.
    """
    # What follows the last line break is nothing, or a line that was cut off.
    lines = content.decode(errors="replace").split("\n")[:-1] or [_STEP]
    columns = lines[0].split(",")
    if columns[0] != _STEP or len({*columns}) < len(columns) or not all(columns):
        raise UserError(f"{path}:1: {lines[0]!r} is not the header of {METRICS}")
    last = -1
    for number, line in enumerate(lines[1:], 2):
        if fault := _fault(line, len(columns), last):
            if number == len(lines):  # cut off while another was written over it
                return lines[:-1]
            raise UserError(f"{path}:{number}: {fault}")
        last = int(line.split(",")[0])
    return lines


def _fault(line: str, width: int, last: int) -> str | None:
    """What is wrong with a line, if anything."""
    first, *cells = line.split(",")
    if len(cells) + 1 != width:
        return f"{len(cells) + 1} cells, the header has {width}"
    if not (first.isascii() and first.isdecimal()):
        return f"{first!r} is not a step"
    if int(first) <= last:
        return f"step {first} is after step {last}"
    wrong = next((cell for cell in cells if cell and not _is_number(cell)), None)
    return None if wrong is None else f"{wrong!r} is not a number"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

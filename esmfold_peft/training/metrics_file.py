"""metrics.csv of a run: one line for each logged step.

Lightning's own logger deletes the file of a run that is resumed, and rewrites all of it for every
line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError

METRICS = "metrics.csv"

RELATIVE_UPDATE = "update/relative"
"""The column of the adapter's relative update."""

_STEP = "step"


class MetricsFile:
    """Appends losses and scores to a CSV file, each line visible at once.

    The columns are `step` and the metrics in the order in which they first appear. A concurrent
    reader may see a partial last line.

    Only one process may write it. Its folder must exist when the first metrics come.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []  # none: the file has not been read
        self._row: dict[str, str] = {}  # cells of the last line
        self._offset = 0  # of the last line

    def rewind(self, step: int | None = None) -> None:
        """Drops the lines after the step that a run resumes from, and a last one that was cut off.

        Raises:
            UserError: the file is damaged elsewhere, or cannot be read or written.
        """
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror or error}") from error
        header, *rows = _whole_lines(self._path, content)
        if step is not None:
            rows = [row for row in rows if int(row.split(",")[0]) <= step]
        if content and content != (kept := _text([header, *rows])):
            write_atomically(self._path, kept)
        self._columns = header.split(",")
        self._row = dict(zip(self._columns, rows[-1].split(","), strict=True)) if rows else {}
        self._offset = len(_text([header, *rows[:-1]]))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes the line of a step, or adds to it if it is the last one.

        Raises:
            UserError: the file is damaged or cannot be written.
            ValueError: the step is before the last one.
        """
        if not self._columns:
            self.rewind()
        last = int(self._row.get(_STEP, -1))
        if step < last:
            raise ValueError(f"{self._path}: step {step} is logged after step {last}")
        if step > last:
            self._offset += len(self._line()) if self._row else 0
            self._row = {_STEP: str(step)}
        self._row |= {name: str(value) for name, value in metrics.items()}
        new = [name for name in metrics if name not in self._columns]
        self._columns += new
        try:
            if new:
                self._widen(len(new))
            else:
                self._put()
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror or error}") from error

    def _line(self) -> bytes:
        return _text([",".join(self._row.get(name, "") for name in self._columns)])

    def _put(self) -> None:
        """Overwrites the last line."""
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            file.write(self._line())
            # Cut only now, and lines only grow: the file never lacks the line that it had.
            file.truncate()

    def _widen(self, more: int) -> None:
        """Gives the earlier lines empty cells for new columns, and writes the last line."""
        content = self._path.read_bytes()[: self._offset] if self._path.exists() else b""
        rows = content.decode().splitlines()[1:]
        earlier = _text([",".join(self._columns), *(row + "," * more for row in rows)])
        write_atomically(self._path, earlier + self._line())
        self._offset = len(earlier)


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


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
    for cell in filter(None, cells):
        try:
            float(cell)
        except ValueError:
            return f"{cell!r} is not a number"
    return None

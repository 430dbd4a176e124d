"""Tables of results as CSV: one dataclass a row, its fields the columns."""

import csv
import io
from collections.abc import Iterable
from dataclasses import fields
from typing import Literal


def csv_text(kind: type, rows: Iterable[object]) -> str:
    """A header and one line for each row; None becomes an empty cell.

    Bytes of file names that are no text are written as escapes.

    Args:
        kind: dataclass of the rows.
        rows: instances of it.
    """
    names = [field.name for field in fields(kind)]
    return table_text(names, [[getattr(row, name) for name in names] for row in rows])


def table_text(columns: list[str], rows: list[list[object]]) -> str:
    """A header and one line for each row, as `csv_text` writes them.

    Args:
        columns: their names.
        rows: as many values each.
    """
    text = _written(columns, rows, csv.QUOTE_MINIMAL)
    # Python's csv leaves a carriage return without quotes, and reads it as the end of a line.
    return _written(columns, rows, csv.QUOTE_ALL) if "\r" in text else text


def _written(columns: list[str], rows: list[list[object]], quoting: Literal[0, 1]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n", quoting=quoting)
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode(errors="backslashreplace").decode()

"""Tables of results as CSV: one dataclass a row, its fields the columns."""

import csv
import io
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Literal, TypeVar, get_type_hints

from esmfold_peft.errors import UserError

Row = TypeVar("Row")

# A FASTA header is a cell, and may have a million characters.
csv.field_size_limit(1 << 24)


def csv_text(kind: type, rows: Iterable[object]) -> str:
    """A header and one line for each row, an instance of the dataclass; None is an empty cell.

    Bytes of file names that are no text are written as escapes.
    """
    names = [field.name for field in fields(kind)]
    return table_text(names, [[getattr(row, name) for name in names] for row in rows])


def table_text(columns: list[str], rows: list[list[object]]) -> str:
    """A header and one line for each row, as `csv_text` writes them."""
    text = _written(columns, rows, csv.QUOTE_MINIMAL)
    # Python's csv leaves a carriage return without quotes, and reads it as the end of a line.
    return _written(columns, rows, csv.QUOTE_ALL) if "\r" in text else text


def _written(columns: list[str], rows: list[list[object]], quoting: Literal[0, 1]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n", quoting=quoting)
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode(errors="backslashreplace").decode()


def column_types(kind: type) -> dict[str, type]:
    """The fields of a dataclass and their types: str, int or float, without "| None"."""
    kinds, hints = (str, int, float), get_type_hints(kind)
    return {name: next(t for t in kinds if hint in (t, t | None)) for name, hint in hints.items()}


def read_table(path: Path, kind: type[Row], what: str) -> list[Row]:
    """The rows of a table that `csv_text` wrote; an empty cell is None where the field allows it.

    Raises:
        UserError: the file cannot be read, or is no such table of `what`.
    """
    hints, types = get_type_hints(kind), column_types(kind)
    rows, number = [], 1
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != list(types):
                raise UserError(f"{path}:1: not a table of {what}: it has other columns")
            for cells in reader:
                number = reader.line_num
                named = zip(types, cells, strict=True)
                values = {
                    name: None if not text and hints[name] != types[name] else types[name](text)
                    for name, text in named
                }
                rows.append(kind(**values))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path}:{number}: cannot be read as {what} ({error})") from error
    return rows

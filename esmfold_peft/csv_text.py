"""Tables of results as CSV: one dataclass a row, its fields the columns."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields


def csv_text(kind: type, rows: Iterable[object]) -> str:
    """A header and one line for each row; None becomes an empty cell.

    Args:
        kind: dataclass of the rows.
        rows: instances of it.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)  # pyright: ignore[reportArgumentType]
    return stream.getvalue()

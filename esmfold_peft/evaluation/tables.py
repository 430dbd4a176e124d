"""Tables as CSV and as Parquet, with the same columns and values."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.scoring import Score, Scored

SCORES = "scores"
RESIDUES = "residues"

Columns = dict[str, list[Any]]
"""A table: its columns by name, each with a value or None for every row."""


def score_columns(rows: Sequence[Score]) -> Columns:
    """The table of the chains; numbers that are not finite are None."""
    return {
        field.name: [_finite(getattr(row, field.name)) for row in rows] for field in fields(Score)
    }


def write_table(path: Path, columns: Columns, types: dict[str, type]) -> None:
    """Writes a table as .csv and .parquet; None is an empty cell, and null.

    Args:
        path: without ending.
        columns: the table.
        types: of the columns: str, int, float or bool.

    Raises:
        UserError: the folder cannot be written to.
    """
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    write_atomically(path.with_suffix(".csv"), table_text(list(columns), rows))
    write_atomically(path.with_suffix(".parquet"), _parquet(columns, types))


def score_types() -> dict[str, type]:
    """The types of the columns of the chains' table."""
    kinds, hints = (int, float, str), get_type_hints(Score)
    return {name: next(t for t in kinds if hint in (t, t | None)) for name, hint in hints.items()}


def read_scores(path: Path) -> list[Score]:
    """The rows of a scores.csv.

    Raises:
        UserError: it is missing, or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_scores(path, csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path.parent}: no output of evaluate ({error})") from error


def write_residues(path: Path, results: Sequence[Scored]) -> None:
    """Writes residues.csv and .parquet: a line for every residue of the references with scores.

    Args:
        path: without ending.
        results: in the order of the table.

    Raises:
        UserError: the folder cannot be written to.
    """
    columns: Columns = {name: [] for name in _RESIDUE_TYPES}
    for result in results:
        found = result.residues
        if found is None:
            continue
        n = len(found.name)
        values = {
            "id": [result.row.id] * n,
            "split": [result.row.split] * n,
            "position": list(range(1, n + 1)),
            "residue": list(found.name),
            "number": list(found.number),
            **{name: _list(getattr(found, name)) for name in _RESIDUE_ARRAYS},
        }
        for name, column in columns.items():
            column += values[name]
    write_table(path, columns, _RESIDUE_TYPES)


_RESIDUE_ARRAYS = ("lddt_ca", "lddt_all_atom", "plddt", "resolved", "found")
_RESIDUE_TYPES: dict[str, type] = {
    **{"id": str, "split": str, "position": int, "residue": str, "number": str},
    **{"lddt_ca": float, "lddt_all_atom": float, "plddt": float, "resolved": bool, "found": bool},
}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _list(array: np.ndarray) -> list[Any]:
    return [_finite(value) for value in array.tolist()]


def _parquet(columns: Columns, types: dict[str, type]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, kinds[types[name]]) for name in columns])
    texts = {
        name: [_utf8(v) for v in values] if types[name] is str else values
        for name, values in columns.items()
    }
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(texts, schema=schema), stream)
    return stream.getvalue()


def _utf8(text: str) -> str:
    """Text as the CSV has it: bytes of file names that are no text are escapes."""
    return text.encode(errors="backslashreplace").decode()


def _scores(path: Path, lines: Iterator[list[str]]) -> Iterator[Score]:
    types = score_types()
    if next(lines, None) != list(types):
        raise UserError(f"{path}: no output of evaluate (its columns are other ones)")
    for number, cells in enumerate(lines, 2):
        try:
            named = zip(types.items(), cells, strict=True)
            yield Score(**{name: _parsed(text, kind) for (name, kind), text in named})  # pyright: ignore
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a line of scores ({error})") from error


def _parsed(text: str, kind: type) -> Any:
    return text if kind is str else kind(text) if text else None

"""Tables of an evaluation as CSV and as Parquet, with the same columns and values."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmfold_peft.disk.csv_text import column_types, table_text
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.evaluation.scoring import Score, Scored, number

SCORES = "scores"
RESIDUES = "residues"
SUMMARY = "summary.json"

Columns = dict[str, list[Any]]
"""A table: its columns by name, each with a value or None for every row."""

_RESIDUE_ARRAYS: dict[str, type] = {
    **dict.fromkeys(("lddt_ca", "lddt_all_atom", "plddt"), float),
    **dict.fromkeys(("resolved", "found"), bool),
}
_RESIDUE_TYPES: dict[str, type] = {
    **{"id": str, "split": str, "position": int, "residue": str, "number": str},
    **_RESIDUE_ARRAYS,
}


def write_scores_table(path: Path, rows: Sequence[Score]) -> None:
    """Writes scores.csv and .parquet; `path` is without ending."""
    types = column_types(Score)
    write_table(path, {name: [getattr(row, name) for row in rows] for name in types}, types)


def write_residues(path: Path, results: Sequence[Scored]) -> None:
    """Writes residues.csv and .parquet: a line for every residue of the references with scores."""
    columns: Columns = {name: [] for name in _RESIDUE_TYPES}
    for result in results:
        found = result.residues
        if found is None:
            continue
        n = len(found.name)
        columns["id"] += [result.row.id] * n
        columns["split"] += [result.row.split] * n
        columns["position"] += range(1, n + 1)
        columns["residue"] += found.name
        columns["number"] += found.number
        for name, kind in _RESIDUE_ARRAYS.items():
            values = getattr(found, name).tolist()
            columns[name] += map(number, values) if kind is float else values
    write_table(path, columns, _RESIDUE_TYPES)


def write_table(path: Path, columns: Columns, types: dict[str, type]) -> None:
    """Writes a table as .csv and .parquet; None is an empty cell, and null.

    `path` is without ending; `types` are str, int, float or bool. UserError if the disk is full.
    """
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    write_atomically(path.with_suffix(".csv"), table_text(list(columns), rows))
    write_atomically(path.with_suffix(".parquet"), _parquet(columns, types))


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
    # Text as the CSV has it: bytes of file names that are no text become escapes.
    texts = {
        name: [v.encode(errors="backslashreplace").decode() for v in values]
        if types[name] is str
        else values
        for name, values in columns.items()
    }
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(texts, schema=schema), stream)
    return stream.getvalue()

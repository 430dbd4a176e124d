"""Which prediction is scored against which reference: by name, or by a table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64

from esmfold_peft.datasets.features import Features
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.sides import Entry, InFile, InStore, Side, stem
from esmfold_peft.preparation.sources import Item, list_items, shown

_COLUMNS = ("prediction", "reference", "prediction_chain", "reference_chain", "id")


@dataclass(frozen=True, eq=False)
class FoldedChain:
    """A model's prediction of a reference's sequence: Å, finite atoms, pLDDT 0 to 100."""

    positions: Float32[np.ndarray, "n 14 3"]
    atom_mask: Bool[np.ndarray, "n 14"]
    plddt: Float64[np.ndarray, "n"]


Source = InFile | InStore | Features | FoldedChain


@dataclass(frozen=True, eq=False)
class Pair:
    """A prediction and its reference, and the row's words for where they are.

    Attributes:
        id: of its row; unique within a split.
        split: of a run, or the path of a store; "" for files.
        prediction: None if there is none.
        fault: why it cannot be scored; "" if it can.
    """

    id: str
    split: str
    prediction: Source | None
    reference: Source | None
    prediction_place: str
    reference_place: str
    fault: str = ""


Pairs = tuple[list[Pair], list[str]]
"""All pairs sorted by id, those with a fault included; and the places of predictions without a
reference, with their faults."""


def loaded(pairs: list[Pair]) -> Iterator[Pair]:
    """The pairs, with the chains of stores in memory; other processes then need no store."""
    for pair in pairs:
        sides = {"prediction": pair.prediction, "reference": pair.reference}
        read = {name: s.store[s.index] for name, s in sides.items() if isinstance(s, InStore)}
        yield replace(pair, **read) if read else pair


def pairs_by_name(predictions: Side, references: Side) -> Pairs:
    """A pair for every reference.

    Raises:
        UserError: a name stands for two chains, or no reference has a prediction.
    """
    pairs, used = [], set()
    for reference in references.entries:
        references.find(reference.name)  # raises if this id of a row is not unique
        found = predictions.find(reference.name, reference.id)
        if found is not None:
            used.add(id(found))
        missing = "" if found else predictions.why_missing(reference.name)
        pairs.append(_pair(reference.name, found, reference, missing))
    if not used:
        one, other = (
            _and_fault(s.entries[0].name, s.entries[0]) for s in (predictions, references)
        )
        examples = f"predictions such as {one}; references such as {other}"
        raise UserError(f"no prediction has the name of a reference ({examples}); use --pairs")
    unused = [_and_fault(e.source.place, e) for e in predictions.entries if id(e) not in used]
    return sorted(pairs, key=lambda pair: pair.id), unused


def pairs_by_table(path: Path, predictions: Side | None, references: Side | None) -> Pairs:
    """The pairs that a CSV file names; without a side its names are paths, relative to the file.

    Columns: prediction, reference, and optionally prediction_chain, reference_chain and id.

    Raises:
        UserError: the file is no such table, or two rows would have the same id.
    """
    pairs, lines, used = [], {}, set()
    for number, row in _rows(path):
        found = _entry(row["prediction"], row["prediction_chain"], predictions, path, "prediction")
        reference = _entry(row["reference"], row["reference_chain"], references, path, "reference")
        name = shown(row["id"] or reference.name)
        if name in lines:
            raise UserError(
                f"{path}:{number}: {name} is the id of line {lines[name]} too; give the column id"
            )
        lines[name] = number
        used.add(found.source.place)
        pairs.append(_pair(name, found, reference, ""))
    entries = predictions.entries if predictions else []
    unused = [_and_fault(e.source.place, e) for e in entries if e.source.place not in used]
    return sorted(pairs, key=lambda pair: pair.id), unused


def _and_fault(name: str, entry: Entry) -> str:
    return f"{name}: {entry.fault}" if entry.fault else name


def _pair(name: str, prediction: Entry | None, reference: Entry, missing: str) -> Pair:
    fault = missing
    if reference.fault:
        fault = f"reference: {reference.fault}"
    elif prediction and prediction.fault:
        fault = f"prediction: {prediction.fault}"
    return Pair(
        id=name,
        split="",
        prediction=prediction.source if prediction else None,
        reference=reference.source,
        prediction_place=prediction.source.place if prediction else "",
        reference_place=reference.source.place,
        fault=fault,
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of the table with their numbers; missing columns are empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of pairs ({error})") from error
    for name in columns:
        if name not in _COLUMNS:
            raise UserError(f"{path}:1: the column {name!r} is none of {', '.join(_COLUMNS)}")
    for name in _COLUMNS[:2]:
        if name not in columns:
            raise UserError(f"{path}:1: the column {name} is missing")
    if not rows:
        raise UserError(f"{path}: the table names no pair")
    for number, row in rows:
        cells = {name: (row.get(name) or "").strip() for name in _COLUMNS}
        if None in row or not (cells["prediction"] and cells["reference"]):
            raise UserError(f"{path}:{number}: not a line with a prediction and a reference")
        yield number, cells


def _entry(text: str, chain: str, side: Side | None, table: Path, what: str) -> Entry:
    """The chain that a cell names: of the sources, or of a file."""
    if side is None:
        return _file_entry(table.parent / text, chain)
    names = [f"{stem(text)}_{chain}"] if chain else [text, stem(text)]
    found = side.find(*names)
    if found is None and chain:  # the file has but one chain, which must then be of this name
        found = side.find(text, stem(text))
        if found is not None and isinstance(found.source, InFile):
            found = replace(found, source=InFile(found.source.item, chain))
    why = side.why_missing(names[0]).removeprefix(f"{what}: ")
    return found or _missing(stem(text), Path(text), why)


def _file_entry(path: Path, chain: str) -> Entry:
    name = stem(str(path))
    try:
        items = [] if path.is_dir() else list_items((path,), None)
    except UserError as error:
        return _missing(name, path, str(error).removeprefix(f"{path}: "))
    if len(items) != 1 or items[0].place != shown(str(path)):
        fault = "not a structure file; name its members with --predictions and --references"
        return _missing(name, path, fault)
    source = InFile(items[0], chain or None)
    return Entry(f"{name}_{chain}" if chain else name, "", "", source, items[0].fault)


def _missing(name: str, path: Path, fault: str) -> Entry:
    return Entry(name, "", "", InFile(Item(shown(str(path)), path)), fault)

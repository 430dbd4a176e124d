"""`esmfold-peft adapters count`: how many numbers each method trains."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.count import count
from esmfold_peft.adapters.insert import ADAPTERS
from esmfold_peft.adapters.sizes import SIZES, size_of
from esmfold_peft.adapters.table1 import Table1Row, table1
from esmfold_peft.config import AdapterConfig, AdapterKind, CountConfig
from esmfold_peft.config.adapter import WITHOUT_RANK, unused_settings
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.errors import UserError

_PIPED_WIDTH = 120
"""Columns where there is no terminal; in rich's 80 the reasons become columns of single words."""


@dataclass(frozen=True)
class CountRow:
    """One adapter's numbers.

    Attributes:
        model: name of the language model.
        kind: the method.
        rank: its rank; None for a method without one.
        trainable: numbers that train; None where the method cannot adapt the targets.
        frozen: numbers that are kept with the adapter and do not train.
        note: why there is no count.
    """

    model: str
    kind: str
    rank: int | None
    trainable: int | None
    frozen: int | None
    note: str


def run(config: CountConfig) -> int:
    """Prints the counts on stdout.

    Raises:
        UserError: a model is unknown.
    """
    if config.reference is not None:
        title = "Table 1 of the LoRTA paper: Llama2-7B, query and value"
        _print(table1(), Table1Row, config.format, title)
        return 0
    names = list(SIZES) if "all" in config.models else config.models
    shapes = {name: size_of(name) for name in names}
    rows = [row for name, shape in shapes.items() for row in count_rows(name, shape, config)]
    _print(rows, CountRow, config.format, f"adapters of {', '.join(config.targets)}")
    return 0


def count_rows(name: str, shape: AttentionShape, config: CountConfig) -> Iterator[CountRow]:
    """Counts every method and rank on one language model.

    Args:
        name: of the language model.
        shape: its sizes.
        config: methods, ranks, targets and the methods' own settings.
    """
    for kind in config.kinds or cast(tuple[AdapterKind, ...], tuple(ADAPTERS)):
        ranks = (None,) if kind in WITHOUT_RANK else config.ranks
        rows = [_count_row(name, shape, kind, rank, config) for rank in ranks]
        # What a method cannot adapt does not depend on the rank.
        yield from [replace(rows[0], rank=None)] if rows[0].note else rows


def _count_row(
    name: str, shape: AttentionShape, kind: AdapterKind, rank: int | None, config: CountConfig
) -> CountRow:
    names = {"tt_rank", "bases", "norms"} - unused_settings(kind)
    own = {name: getattr(config, name) for name in names}
    adapter = AdapterConfig(kind=kind, rank=rank or 1, targets=config.targets, **own)
    try:
        numbers = count(shape, adapter)
    except UserError as error:
        reason = str(error).partition(": ")[2]
        return CountRow(name, kind, rank, None, None, reason)
    return CountRow(name, kind, rank, numbers.trainable, numbers.frozen, "")


def _print(rows: Sequence[object], kind: type, form: str, title: str) -> None:
    if form == "csv":
        sys.stdout.write(csv_text(kind, rows))
    elif form == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))  # pyright: ignore
    else:
        console = Console()
        if not console.is_terminal:
            console.width = _PIPED_WIDTH
        console.print(_table(rows, kind, title))


def _table(rows: Sequence[object], kind: type, title: str) -> Table:
    """A row for each dataclass, a line where the first column changes."""
    table = Table(title=title)
    for field in fields(kind):
        numeric = int in (field.type, *get_args(field.type))
        table.add_column(field.name, justify="right" if numeric else "left", no_wrap=numeric)
    cells = [[_cell(getattr(row, field.name)) for field in fields(kind)] for row in rows]
    for row, following in pairwise([*cells, [""]]):
        table.add_row(*row, end_section=row[0] != following[0])
    return table


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

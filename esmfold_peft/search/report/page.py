"""index.html of a report: all of it on one page that loads nothing."""

import base64
from collections.abc import Iterable, Sequence

from esmfold_peft.config.parsing import config_text
from esmfold_peft.prediction.html_text import document, escaped
from esmfold_peft.search.records import SearchRecord
from esmfold_peft.search.report.pairs import PAIR_COLUMNS, ArmPairs, pair_cells
from esmfold_peft.search.report.table import (
    COLUMNS,
    TRIAL_COLUMNS,
    WINNER_COLUMNS,
    below_frozen,
    cells_of,
    ended_by,
    rows_of,
    trial_cells,
    winner_cells,
)
from esmfold_peft.search.report.words import about, hours, pair_words


def page(record: SearchRecord, pairs: ArmPairs, figure5: bytes, curves: bytes) -> str:
    """The page.

    Args:
        record: of the search.
        pairs: of its adapters.
        figure5: SVG.
        curves: SVG.
    """
    title = f"Search {record.output.resolve().name}"
    settings = f"<pre>{_lines(config_text(record.config))}</pre>"
    body = "\n".join(
        (
            f"<header><h1>{escaped(title)}</h1></header>",
            _section("Table 10", _table(COLUMNS, map(cells_of, rows_of(record))), about(record)),
            _section(
                "Pairs", _table(PAIR_COLUMNS, map(pair_cells, pairs.pairs)), pair_words(pairs)
            ),
            _section("Winners", _table(WINNER_COLUMNS, map(winner_cells, record.winners))),
            _section("Figure 5", _image(figure5, "lDDT-Cα against trainable parameters")),
            _section("Learning curves", _image(curves, "Learning curves"), [_CURVES]),
            _section("Diverged trials", _list(ended_by(record))),
            _section("Trials below frozen", _list(below_frozen(record))),
            _section(
                "Trials", _table(TRIAL_COLUMNS, map(trial_cells, record.trials)), [hours(record)]
            ),
            f"<section><details><summary>Settings (search.yaml)</summary>{settings}</details>"
            "</section>",
        )
    )
    return document(title, body, ())


_CURVES = (
    "Dotted: the weights as they are. Dashed: diverged; the cross is where the guard ended it, and"
    " a loss that has grown beyond the others' leaves the picture."
)


def _section(title: str, inner: str, said: Iterable[str] = ()) -> str:
    words = "".join(f"<p>{escaped(text)}</p>" for text in said)
    return f"<section><h2>{escaped(title)}</h2>{words}{inner}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(i)}</li>" for i in items) + "</ul>" if items else "None."


def _image(svg: bytes, text: str) -> str:
    data = base64.b64encode(svg).decode()
    return f'<img width="100%" alt="{escaped(text)}" src="data:image/svg+xml;base64,{data}">'


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.splitlines()))

"""The page of all predictions of a run: a table that a click sorts, with a link to each page."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from esmfold_peft.prediction.html_text import asset, closed, document, escaped

INDEX_FILE = "index.html"


@dataclass(frozen=True)
class IndexRow:
    """A record of the table.

    Attributes:
        name: of the prediction and its files.
        header: the whole FASTA header, as it came.
        chains: how many.
        length: residues of all chains.
        plddt: mean, 0 to 100; None if the record failed.
        ptm: 0 to 1; None if it failed or was not computed.
        page: file name of its page; "" for none.
        problem: why there is no structure; "" if there is one.
    """

    name: str
    header: str
    chains: int
    length: int
    plddt: float | None = None
    ptm: float | None = None
    page: str = ""
    problem: str = ""


_COLUMNS = ("name", "mean pLDDT", "pTM", "residues", "chains", "header", "status")


def index_page(rows: Sequence[IndexRow], title: str = "Predicted structures") -> str:
    """The page as HTML, to be written as UTF-8.

    Args:
        rows: all records, in the order of the FASTA.
        title: heading of the page.
    """
    failed = sum(bool(row.problem) for row in rows)
    heads = "".join(
        f'<th scope="col"><button type="button">{name}</button></th>' for name in _COLUMNS
    )
    lines = "\n".join(map(_row, rows))
    body = f"""<header><h1>{escaped(title)}</h1>
<p>{len(rows) - failed} predicted, {failed} failed. A click on a heading sorts.</p></header>
<div class="wide"><table><thead><tr>{heads}</tr></thead>
<tbody>
{lines}
</tbody></table></div>"""
    return document(title, body, (closed(asset("index.js")),))


def _row(row: IndexRow) -> str:
    name = f"<bdi>{escaped(row.name)}</bdi>"
    if row.page:
        name = f'<a href="./{quote(row.page, safe="")}">{name}</a>'
    numbers = (
        "" if row.plddt is None else f"{row.plddt:.1f}",
        "" if row.ptm is None else f"{row.ptm:.2f}",
        str(row.length),
        str(row.chains),
    )
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    words = (f"<bdi>{escaped(text)}</bdi>" for text in (row.header, row.problem or "ok"))
    long = "".join(f'<td class="long">{text}</td>' for text in words)
    start = '<tr class="failed">' if row.problem else "<tr>"
    return f'{start}<td class="long">{name}</td>{cells}{long}</tr>'

"""The web pages of `predict --html`: one for each prediction, and a table of all.

A page holds everything that it shows, 3Dmol.js (540 kB) too: one file can be sent to a colleague
and opens without a network. Pages link to the files next to them.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.prediction.html_text import asset, closed, data_block, document, escaped, link
from esmfold_peft.prediction.result import BANDS, Prediction
from esmfold_peft.prediction.row_journal import OK, PredictionRow

INDEX_FILE = "index.html"

_COLUMNS = ("name", "mean pLDDT", "pTM", "residues", "chains", "header", "status")

_CHAIN_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
    *("#56b4e9", "#d55e00", "#999933", "#882255"),
)


def write_page(
    folder: Path, prediction: Prediction, files: Iterable[str], facts: Mapping[str, str]
) -> str:
    """Writes the page of a prediction and returns its file name; see `page_html`."""
    name = f"{prediction.name}.html"
    write_atomically(folder / name, page_html(prediction, files, facts, INDEX_FILE))
    return name


def write_index(folder: Path, rows: Sequence[PredictionRow]) -> None:
    """Writes the table of all predictions: a click sorts it, and each name links to its page."""
    write_atomically(folder / INDEX_FILE, index_html(rows))


def index_html(rows: Sequence[PredictionRow]) -> str:
    """The HTML of `write_index`."""
    failed = sum(row.status != OK for row in rows)
    heads = "".join(
        f'<th scope="col"><button type="button">{name}</button></th>' for name in _COLUMNS
    )
    lines = "\n".join(map(_index_row, rows))
    body = f"""<header><h1>Predicted structures</h1>
<p>{len(rows) - failed} predicted, {failed} failed. Click a heading to sort.</p></header>
<div class="wide"><table><thead><tr>{heads}</tr></thead>
<tbody>
{lines}
</tbody></table></div>"""
    return document("Predicted structures", body, (closed(asset("index.js")),))


def _index_row(row: PredictionRow) -> str:
    name = f"<bdi>{escaped(row.name)}</bdi>"
    if row.html:
        name = f'<a href="{link(row.html)}">{name}</a>'
    numbers = (
        "" if row.plddt is None else f"{row.plddt:.1f}",
        "" if row.ptm is None else f"{row.ptm:.2f}",
        str(row.length),
        str(row.chains),
    )
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    words = (f"<bdi>{escaped(text)}</bdi>" for text in (row.header, row.status))
    long = "".join(f'<td class="long">{text}</td>' for text in words)
    start = "<tr>" if row.status == OK else '<tr class="failed">'
    return f'{start}<td class="long">{name}</td>{cells}{long}</tr>'


def page_html(
    prediction: Prediction,
    files: Iterable[str] = (),
    facts: Mapping[str, str] | None = None,
    index: str = "",
) -> str:
    """The page as HTML: 3D view, confidence along the sequence, map of PAE, facts.

    Args:
        prediction: finite. Without PDB text there is no 3D view.
        files: names of files next to the page that it links to.
        facts: more lines of the table of facts: the model and settings of the prediction.
        index: file name of the page of all predictions, to link to.
    """
    chains = _chains(prediction)
    body = "\n".join(
        (
            _heading(prediction, index),
            '<div class="pair two">' if prediction.pae is not None else '<div class="pair">',
            _view(prediction, chains),
            "" if prediction.pae is None else _PAE_MAP,
            "</div>",
            _confidence(prediction),
            _facts(prediction, chains, facts or {}, files),
            _sequences(chains),
            f"<!--\n{asset('3Dmol-LICENSE.txt')}-->",
            data_block(_data(prediction, chains)),
        )
    )
    ours = closed(*(asset(name) for name in ("plots.js", "view.js", "record.js")))
    title = f"{prediction.name}: predicted structure"
    return document(title, body, (asset("3Dmol-min.js"), ours))


class _Chain(NamedTuple):
    name: str
    sequence: str
    colour: str


def _chains(prediction: Prediction) -> list[_Chain]:
    """The chains by their names in the PDB text; the ninth has the first one's colour again."""
    lines = prediction.pdb_text.splitlines()
    names = dict.fromkeys(line[21] for line in lines if line.startswith("ATOM"))
    numbers = (str(k + 1) for k in range(len(prediction.chains)))
    triples = zip(names or numbers, prediction.chains, cycle(_CHAIN_COLOURS), strict=False)
    return [_Chain(*triple) for triple in triples]


def _data(prediction: Prediction, chains: list[_Chain]) -> dict[str, Any]:
    return {
        "chains": [chain._asdict() for chain in chains],
        "plddt": [round(value, 2) for value in prediction.plddt.tolist()],
        "bands": [{"above": limit, "colour": colour} for limit, colour, _ in BANDS],
        "pae": _pae_data(prediction),
        "pdb": prediction.pdb_text,
    }


def _pae_data(prediction: Prediction) -> dict[str, Any] | None:
    """PAE in bytes: eighths of an Å with 64 bins, which end at 31.75 Å."""
    if prediction.pae is None:
        return None
    assert prediction.largest_pae is not None
    per_angstrom = int(255 / prediction.largest_pae)
    values = np.clip(np.rint(prediction.pae * per_angstrom), 0, 255).astype(np.uint8)
    text = base64.b64encode(values.tobytes()).decode()
    return {"base64": text, "perAngstrom": per_angstrom, "limit": prediction.largest_pae}


def _heading(prediction: Prediction, index: str) -> str:
    back = f'<nav><a href="{link(index)}">All predictions</a></nav>\n' if index else ""
    numbers = {"mean pLDDT": _mean(prediction), "residues": str(len(prediction.plddt))}
    if prediction.ptm is not None:
        numbers["pTM"] = f"{prediction.ptm:.2f}"
    if len(prediction.chains) > 1:
        numbers["chains"] = str(len(prediction.chains))
    items = "".join(f"<div><dt>{what}</dt><dd>{n}</dd></div>" for what, n in numbers.items())
    return (
        f"{back}<header>\n<h1><bdi>{escaped(prediction.name)}</bdi></h1>\n"
        f"<p><bdi>{escaped(prediction.header)}</bdi></p>\n"
        f'<dl class="numbers">{items}</dl>\n</header>'
    )


def _view(prediction: Prediction, chains: list[_Chain]) -> str:
    """The 3D view, with a sentence in its place until it starts."""
    several = len(chains) > 1
    choice = (
        "<fieldset><legend>Colour by</legend>"
        '<label><input type="radio" name="colour" value="plddt" checked> pLDDT</label>'
        '<label><input type="radio" name="colour" value="chain"> chain</label></fieldset>'
    )
    reason = (
        "The 3D view needs JavaScript."
        if prediction.pdb_text
        else "The structure is too large for the PDB format, which the 3D view reads."
    )
    named = ((chain.colour, f"chain {chain.name}") for chain in chains)
    return f"""<section aria-labelledby="h-view">
<div class="above"><h2 id="h-view">Structure</h2>
<div class="tools" id="view-tools" hidden>{choice if several else ""}
<button type="button" id="turn-back">Centre</button></div></div>
<div id="view"><p>{reason}</p></div>
<template id="no-view"><p>This browser could not start WebGL, which the 3D view needs. The plots
and the table work without it, and any molecular viewer opens the structure's file.</p></template>
{_key("key-plddt", _shares(prediction))}
{_key("key-chain", named, hidden=True) if several else ""}
</section>"""


def _key(name: str, entries: Iterable[tuple[str, str]], *, hidden: bool = False) -> str:
    items = "".join(
        '<li><svg viewBox="0 0 1 1" aria-hidden="true">'
        f'<rect width="1" height="1" fill="{colour}"/></svg>{escaped(text)}</li>'
        for colour, text in entries
    )
    return f'<ul class="key" id="{name}"{" hidden" if hidden else ""}>{items}</ul>'


def _shares(prediction: Prediction) -> list[tuple[str, str]]:
    """Colour and text of every band, with its share of the residues."""
    plddt = prediction.plddt
    best = np.array([next(k for k, band in enumerate(BANDS) if p > band[0]) for p in plddt])
    return [
        (colour, f"{name}: {np.mean(best == k) * 100:.0f} %")
        for k, (_, colour, name) in enumerate(BANDS)
    ]


_PAE_MAP = """<section aria-labelledby="h-pae">
<div class="above"><h2 id="h-pae">Predicted aligned error</h2></div>
<canvas id="pae" role="img"
aria-label="Map of the predicted aligned error of every pair of residues"></canvas>
<output class="readout" id="chosen-pair"></output>
<p>Expected error in Å of a residue's position when the prediction
is superposed on the true structure at another residue.</p>
</section>"""


def _confidence(prediction: Prediction) -> str:
    length = len(prediction.plddt)
    return f"""<section aria-labelledby="h-plddt">
<div class="above"><h2 id="h-plddt">Confidence along the sequence</h2></div>
<canvas id="plddt" tabindex="0" role="slider" aria-valuemin="1" aria-valuemax="{length}"
aria-valuenow="1" aria-label="pLDDT of each residue, {_mean(prediction)} on average;
arrow keys choose a residue"></canvas>
<output class="readout" id="chosen"></output>
</section>"""


def _facts(
    prediction: Prediction, chains: list[_Chain], more: Mapping[str, str], files: Iterable[str]
) -> str:
    lengths = [f"{chain.name}: {len(chain.sequence)}" for chain in chains]
    residues = ", ".join(lengths) if len(chains) > 1 else str(len(chains[0].sequence))
    facts = {"header": prediction.header, "residues": residues}
    facts["mean pLDDT"] = _mean(prediction)
    if prediction.ptm is not None:
        facts["pTM"] = f"{prediction.ptm:.3f}"
    facts.update(more)
    rows = [(name, f"<bdi>{escaped(value)}</bdi>") for name, value in facts.items()]
    links = [f'<a href="{link(name)}">{escaped(name)}</a>' for name in files]
    if links:
        rows.append(("files next to this page", ", ".join(links)))
    lines = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{value}</td></tr>' for name, value in rows
    )
    return (
        '<section aria-labelledby="h-facts"><h2 id="h-facts">Facts</h2>\n'
        f"<table><tbody>{lines}</tbody></table></section>"
    )


def _sequences(chains: list[_Chain]) -> str:
    parts = (
        f"<p>chain {escaped(chain.name)}</p><pre>{escaped(chain.sequence)}</pre>"
        for chain in chains
    )
    return (
        '<section aria-labelledby="h-sequence"><h2 id="h-sequence">Sequence</h2>\n'
        f"{''.join(parts)}</section>"
    )


def _mean(prediction: Prediction) -> str:
    return f"{prediction.plddt.mean(dtype=np.float64):.1f}"

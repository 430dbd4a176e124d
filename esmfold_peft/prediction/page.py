"""The page of one prediction: 3D view, confidence along the sequence, map of PAE, facts.

A page holds everything that it shows, 3Dmol.js (540 kB) too, so that one file can be sent to a
colleague and opens without a network. Pages stand beside the files they name.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from esmfold_peft.prediction.html_text import asset, closed, data_block, document, escaped

BANDS = (
    (90.0, "#0053D6", "very high (> 90)"),
    (70.0, "#65CBF3", "high (70 to 90)"),
    (50.0, "#FFDB13", "low (50 to 70)"),
    (-1.0, "#FF7D45", "very low (< 50)"),
)
"""Lower limit of pLDDT, colour and name of the bands of the AlphaFold database, best first."""

_CHAIN_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
    *("#56b4e9", "#d55e00", "#999933", "#882255"),
)


@dataclass(frozen=True)
class PageRecord:
    """What the page of a prediction shows.

    Attributes:
        name: of the prediction and its files.
        header: the whole FASTA header, as it came.
        chains: their sequences.
        pdb_text: the chains in this order, residues numbered from 1, pLDDT as B-factors; "" where
            the structure does not fit into the format, and the page then has no 3D view.
        plddt: of the residues of all chains, 0 to 100, finite.
        pae: Å, of each residue (column) seen from each (row), finite; None if it was not computed.
        largest_pae: Å beyond which the model predicts no aligned error; None like `pae`.
        ptm: 0 to 1.
        facts: further lines of the table: what folded it and how.
        files: names of files beside the page that it links to.
    """

    name: str
    header: str
    chains: tuple[str, ...]
    pdb_text: str
    plddt: Float[np.ndarray, "n"]
    pae: Float[np.ndarray, "n n"] | None = None
    largest_pae: float | None = None
    ptm: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def record_page(record: PageRecord, index: str = "") -> str:
    """The page as HTML, to be written as UTF-8.

    Args:
        record: the prediction.
        index: file name of the page of all predictions, which this one then links to.

    Raises:
        ValueError: chains, PDB text and pLDDT disagree on how many chains or residues there are.
    """
    chains = _chains(record)
    body = "\n".join(
        (
            _heading(record, index),
            '<div class="pair two">' if record.pae is not None else '<div class="pair">',
            _view(record, chains),
            "" if record.pae is None else _pae_map(),
            "</div>",
            _confidence(record),
            _facts(record, chains),
            _sequences(chains),
            f"<!--\n{asset('3Dmol-LICENSE.txt')}-->",
            data_block(_data(record, chains)),
        )
    )
    ours = closed(*(asset(name) for name in ("plots.js", "view.js", "record.js")))
    return document(f"{record.name}: predicted structure", body, (asset("3Dmol-min.js"), ours))


@dataclass(frozen=True)
class _Chain:
    name: str
    sequence: str
    colour: str


def _chains(record: PageRecord) -> list[_Chain]:
    """The chains under their names in the PDB text; from the ninth on colours come again."""
    length = sum(map(len, record.chains))
    if len(record.plddt) != length:
        raise ValueError(f"{record.name}: {length} residues, pLDDT of {len(record.plddt)}")
    lines = record.pdb_text.splitlines()
    names = list(dict.fromkeys(line[21] for line in lines if line.startswith("ATOM")))
    if not lines:
        names = [str(k + 1) for k in range(len(record.chains))]
    if len(names) != len(record.chains):
        raise ValueError(f"{record.name}: {len(record.chains)} sequences, chains {names}")
    return [
        _Chain(name, sequence, colour)
        for name, sequence, colour in zip(names, record.chains, cycle(_CHAIN_COLOURS), strict=False)
    ]


def _data(record: PageRecord, chains: list[_Chain]) -> dict[str, Any]:
    return {
        "chains": [asdict(chain) for chain in chains],
        "plddt": [round(value, 2) for value in record.plddt.tolist()],
        "bands": [{"above": limit, "colour": colour} for limit, colour, _ in BANDS],
        "pae": _pae_data(record),
        "pdb": record.pdb_text,
    }


def _pae_data(record: PageRecord) -> dict[str, Any] | None:
    """PAE in bytes: eighths of an Å with 64 bins, which end at 31.75 Å."""
    if record.pae is None:
        return None
    assert record.largest_pae is not None
    per_angstrom = int(255 / record.largest_pae)
    values = np.clip(np.rint(record.pae * per_angstrom), 0, 255).astype(np.uint8)
    text = base64.b64encode(values.tobytes()).decode()
    return {"base64": text, "perAngstrom": per_angstrom, "limit": record.largest_pae}


def _heading(record: PageRecord, index: str) -> str:
    back = f'<nav><a href="{_link(index)}">All predictions</a></nav>\n' if index else ""
    length = sum(map(len, record.chains))
    numbers = {"mean pLDDT": _mean(record), "residues": str(length)}
    if record.ptm is not None:
        numbers["pTM"] = f"{record.ptm:.2f}"
    if len(record.chains) > 1:
        numbers["chains"] = str(len(record.chains))
    items = "".join(f"<div><dt>{what}</dt><dd>{n}</dd></div>" for what, n in numbers.items())
    return (
        f"{back}<header>\n<h1><bdi>{escaped(record.name)}</bdi></h1>\n"
        f"<p><bdi>{escaped(record.header)}</bdi></p>\n"
        f'<dl class="numbers">{items}</dl>\n</header>'
    )


def _view(record: PageRecord, chains: list[_Chain]) -> str:
    """The 3D view, with a sentence in its place until and unless it starts."""
    several = len(chains) > 1
    choice = (
        "<fieldset><legend>Colour by</legend>"
        '<label><input type="radio" name="colour" value="plddt" checked> pLDDT</label>'
        '<label><input type="radio" name="colour" value="chain"> chain</label></fieldset>'
    )
    reason = (
        "The 3D view needs JavaScript."
        if record.pdb_text
        else "The structure is too large for the PDB format, which the 3D view reads."
    )
    named = ((chain.colour, f"chain {chain.name}") for chain in chains)
    return f"""<section aria-labelledby="h-view">
<div class="above"><h2 id="h-view">Structure</h2>
<div class="tools" id="view-tools" hidden>{choice if several else ""}
<button type="button" id="turn-back">Centre</button></div></div>
<div id="view"><p>{reason}</p></div>
<template id="no-view"><p>This browser could not start WebGL, which the 3D view needs. The plots
and the table do without it, and any molecular viewer opens the structure's file.</p></template>
{_key("key-plddt", _shares(record))}
{_key("key-chain", named, hidden=True) if several else ""}
</section>"""


def _key(name: str, entries: Iterable[tuple[str, str]], *, hidden: bool = False) -> str:
    items = "".join(
        '<li><svg viewBox="0 0 1 1" aria-hidden="true">'
        f'<rect width="1" height="1" fill="{colour}"/></svg>{escaped(text)}</li>'
        for colour, text in entries
    )
    return f'<ul class="key" id="{name}"{" hidden" if hidden else ""}>{items}</ul>'


def _shares(record: PageRecord) -> list[tuple[str, str]]:
    """Colour and text of every band, with the part of the residues that is in it."""
    best = np.array([next(k for k, band in enumerate(BANDS) if p > band[0]) for p in record.plddt])
    return [
        (colour, f"{name}: {np.mean(best == k) * 100:.0f} %")
        for k, (_, colour, name) in enumerate(BANDS)
    ]


def _pae_map() -> str:
    return """<section aria-labelledby="h-pae">
<div class="above"><h2 id="h-pae">Predicted aligned error</h2></div>
<canvas id="pae" role="img"
aria-label="Map of the predicted aligned error of every pair of residues"></canvas>
<output class="readout" id="chosen-pair"></output>
<p>The error in Å expected of a residue's place when prediction
and truth are superposed on another residue.</p>
</section>"""


def _confidence(record: PageRecord) -> str:
    length = sum(map(len, record.chains))
    return f"""<section aria-labelledby="h-plddt">
<div class="above"><h2 id="h-plddt">Confidence along the sequence</h2></div>
<canvas id="plddt" tabindex="0" role="slider" aria-valuemin="1" aria-valuemax="{length}"
aria-valuenow="1" aria-label="pLDDT of each residue, {_mean(record)} on average;
arrow keys choose a residue"></canvas>
<output class="readout" id="chosen"></output>
</section>"""


def _facts(record: PageRecord, chains: list[_Chain]) -> str:
    lengths = [f"{chain.name}: {len(chain.sequence)}" for chain in chains]
    residues = ", ".join(lengths) if len(chains) > 1 else str(len(chains[0].sequence))
    facts = {"header": record.header, "residues": residues}
    facts["mean pLDDT"] = _mean(record)
    if record.ptm is not None:
        facts["pTM"] = f"{record.ptm:.3f}"
    facts.update(record.facts)
    rows = [(name, f"<bdi>{escaped(value)}</bdi>") for name, value in facts.items()]
    if record.files:
        links = (f'<a href="{_link(name)}">{escaped(name)}</a>' for name in record.files)
        rows.append(("files beside this page", ", ".join(links)))
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


def _mean(record: PageRecord) -> str:
    return f"{record.plddt.mean(dtype=np.float64):.1f}"


def _link(name: str) -> str:
    """Address of a file beside the page; a name cannot become another scheme or folder."""
    return f"./{quote(name, safe='')}"

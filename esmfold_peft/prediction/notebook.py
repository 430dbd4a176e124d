"""A prediction in a notebook: its facts, and a 3D view where py3Dmol is installed."""

from collections.abc import Mapping
from importlib.util import find_spec

from esmfold_peft.prediction.html_text import escaped
from esmfold_peft.prediction.page import BANDS

_WIDTH, _HEIGHT = 640, 420
_HINT = "<p><code>pip install 'esmfold-peft[notebook]'</code> shows the structure here in 3D.</p>"


def notebook_html(pdb_text: str, facts: Mapping[str, str]) -> str:
    """HTML for a notebook's cell; with py3Dmol it loads 3Dmol.js from the network.

    Args:
        pdb_text: structure with pLDDT, 0 to 100, as B-factors; "" for none.
        facts: name and value of each line of the table.
    """
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
        for name, value in facts.items()
    )
    table = f"<table>{rows}</table>"
    if not pdb_text:
        return table
    return table + (_view(pdb_text) if find_spec("py3Dmol") else _HINT)


def _view(pdb_text: str) -> str:
    import py3Dmol  # optional

    view = py3Dmol.view(width=_WIDTH, height=_HEIGHT)
    view.addModel(pdb_text, "pdb")
    for (chain, colour), residues in residues_by_colour(pdb_text).items():
        view.setStyle({"chain": chain, "resi": residues}, {"cartoon": {"color": colour}})
    view.zoomTo()
    return view._make_html()


def residues_by_colour(pdb_text: str) -> dict[tuple[str, str], list[int]]:
    """Numbers of the residues of each chain and colour of pLDDT, by the B-factor of the Cα."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in pdb_text.splitlines():
        if line.startswith("ATOM") and line[12:16].strip() == "CA":
            plddt = float(line[60:66])
            colour = next(colour for limit, colour, _ in BANDS if plddt > limit)
            found.setdefault((line[21], colour), []).append(int(line[22:26]))
    return found

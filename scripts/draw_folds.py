"""Draws true structures and predictions of them side by side, as traces of the Cα atoms.

    python scripts/draw_folds.py docs/folds.svg --pair TRUE.cif.gz PREDICTED.cif --pair ...

Each pair is a column: the true structure above, the prediction below, superposed on it and seen
from the same side. Helices are red, strands are yellow, both as P-SEA finds them in the Cα atoms
(Labesse et al. 1997). The two files must have the same sequence; residues without a Cα atom in
either of them are left out.

Exit codes: 0 done, 2 wrong usage or files.
"""

import argparse
from pathlib import Path

import biotite.structure as struc
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline

from esmfold_peft.errors import UserError
from esmfold_peft.metrics.lddt import lddt
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.search.report.figures import rendered

_LOOKS = {"a": ("#c0392b", 4.0), "b": ("#e0a800", 4.0), "c": ("#7f8c8d", 1.8), "": ("#7f8c8d", 1.8)}
_CA = ATOM37_INDEX["CA"]
_POINTS = 5  # drawn for each residue


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="SVG file to write")
    parser.add_argument(
        "--pair", nargs=2, type=Path, action="append", required=True,
        metavar=("TRUE", "PREDICTED"), help="mmCIF or PDB files of one chain",
    )  # fmt: skip
    args = parser.parse_args()
    try:
        pairs = [_read(*pair) for pair in args.pair]
    except UserError as error:
        parser.error(str(error))
    figure = Figure((3 * len(pairs), 6.2), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False)
    for (true, predicted, score, name), (above, below) in zip(pairs, grid.T, strict=True):
        above.set_title(f"{name}, true")
        below.set_title(f"predicted, lDDT-Cα {score:.2f}")
        _, axes = np.linalg.eigh(np.cov(true.T))
        for panel, trace in ((above, true), (below, predicted)):
            _draw(panel, (trace - true.mean(0)) @ axes[:, ::-1])
    args.output.write_bytes(rendered(figure)["svg"])


def _read(true: Path, predicted: Path) -> tuple[np.ndarray, np.ndarray, float, str]:
    """Cα traces of a pair, the second superposed on the first, their lDDT and their name."""
    structures = read_structure(true), read_structure(predicted)
    reference, prediction = structures
    if reference.sequence != prediction.sequence:
        raise UserError(f"{predicted}: has another sequence than {true}")
    known = reference.atom_mask[:, _CA] & prediction.atom_mask[:, _CA]
    fixed, mobile = (structure.positions[known, _CA] for structure in structures)
    score = lddt(
        *torch.from_numpy(np.stack([mobile, fixed]))[:, None], torch.ones(1, len(fixed)) > 0
    )
    fitted, _ = struc.superimpose(fixed, mobile)
    return fixed, fitted, float(score.per_chain), reference.id


def _draw(panel: Axes, trace: np.ndarray) -> None:
    """Draws a trace (n 3), seen along its third axis, what is near over what is far."""
    row = np.arange(len(trace))
    points = CubicSpline(row, trace)(np.linspace(0, row[-1], _POINTS * row[-1] + 1))
    looks = [_LOOKS[letter] for letter in _secondary_structure(trace)]
    pieces = np.stack([points[:-1], points[1:]], 1)
    order = pieces[:, :, 2].mean(1).argsort()
    colours, widths = zip(*(looks[round(k / _POINTS)] for k in order), strict=True)
    panel.add_collection(
        LineCollection(pieces[order, :, :2], colors=colours, linewidths=widths, capstyle="round")
    )
    panel.set_aspect("equal")
    panel.autoscale_view()
    panel.set_axis_off()


def _secondary_structure(trace: np.ndarray) -> np.ndarray:
    """A letter for each residue: a in a helix, b in a strand, c elsewhere."""
    atoms = struc.AtomArray(len(trace))
    atoms.coord = trace
    atoms.res_id = np.arange(len(trace)) + 1
    atoms.atom_name[:], atoms.res_name[:], atoms.element[:] = "CA", "ALA", "C"
    return struc.annotate_sse(atoms)


if __name__ == "__main__":
    main()

"""Makes oracles.json: scores by Debian's OpenStructure and TMscore, for tests without them.

    python -m tests.metrics.oracles COMPOUNDS     (from the root of the project)

needs the Debian packages openstructure and tm-align (2.3.1-9 and 20190822 made the file) and a
compound library made of the components of the first, which its `lddt` asks for (`chemdict_tool
create components.cif COMPOUNDS`). The predictions are those of `tests.perturbing`: number k of
PAIRS with the seed k. Of lDDT the two counts are kept that the program prints, over all four
thresholds; of TMscore what it prints.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_pdb
from tests.perturbing import CA, KINDS, perturbed

EXAMPLE = Path(__file__).parents[2] / "data" / "example"
ORACLES = Path(__file__).with_name("oracles.json")
STEREOCHEMISTRY = "/usr/share/openstructure/stereo_chemical_props.txt"

_FILES = sorted(EXAMPLE.glob("*/*.cif.gz"))
_FULL_ATOM = ("1hf9_A", "1kd8_A", "1lcd_A", "1psm_A", "1ubq_A", "3u8v_A", "4i6p_A", "4zey_A")
_SIDE_CHAINS = ("side chains turned", "names exchanged", "jitter 2.5")

PAIRS: list[tuple[str, str]] = [
    *((file.name.split(".")[0], list(KINDS)[k % len(KINDS)]) for k, file in enumerate(_FILES)),
    *((chain, _SIDE_CHAINS[k % 3]) for k, chain in enumerate(_FULL_ATOM + _FULL_ATOM[:2])),
]
"""Chain of data/example and kind of its prediction; the place in the list is the seed."""


def pair(number: int) -> tuple[ProteinStructure, ProteinStructure]:
    """Prediction and reference of one of PAIRS."""
    chain, kind = PAIRS[number]
    (path,) = EXAMPLE.glob(f"*/{chain}.cif.gz")
    reference = read_structure(path)
    return perturbed(reference, kind, seed=number), reference


def ca_alone(structure: ProteinStructure) -> ProteinStructure:
    """The Cα of a chain."""
    return replace(structure, atom_mask=structure.atom_mask & (np.arange(37) == CA))


def _lddt(files: list[Path], compounds: str, *options: str) -> tuple[int, int]:
    command = ["lddt", *options, "-x", "-p", STEREOCHEMISTRY, "-l", compounds, *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"\((\d+) conserved distances out of (\d+) checked", done.stdout)
    assert found, done.stdout
    return int(found[1]), int(found[2])


def tm_score(files: list[Path]) -> dict[str, float]:
    """What the TMscore program prints for the Cα in the files of a prediction and its reference."""
    done = subprocess.run(["TMscore", *files], check=True, capture_output=True, text=True)
    labels = {
        "rmsd": r"RMSD of  the common residues= *",
        "tm_score": "TM-score *= *",
        "gdt_ts": "GDT-TS-score= *",
        "gdt_ha": "GDT-HA-score= *",
    }
    found = {name: re.search(label + r"([\d.]+)", done.stdout) for name, label in labels.items()}
    return {name: float(value[1]) for name, value in found.items() if value}


def write_pair(
    folder: Path, prediction: ProteinStructure, reference: ProteinStructure
) -> list[Path]:
    """PDB files of both, the prediction's first."""
    files = [folder / "model.pdb", folder / "reference.pdb"]
    for file, structure in zip(files, (prediction, reference), strict=True):
        file.write_text(to_pdb(structure))
    return files


def main() -> None:
    """Writes the file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (chain, kind) in enumerate(PAIRS):
            prediction, reference = pair(number)
            files = write_pair(Path(folder), prediction, reference)
            row: dict[str, object] = {"chain": chain, "kind": kind}
            row["ca"] = _lddt(files, sys.argv[1], "-c")
            row["all_atom"] = _lddt(files, sys.argv[1])
            files = write_pair(Path(folder), ca_alone(prediction), ca_alone(reference))
            rows.append(row | tm_score(files))
    text = ",\n".join(json.dumps(row) for row in rows)
    ORACLES.write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()

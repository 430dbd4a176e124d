"""The files of one prediction."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.prediction.names import file_names

if TYPE_CHECKING:
    from esmfold_peft.prediction.result import Prediction


def write_files(folder: Path, prediction: "Prediction") -> dict[str, str]:
    """Writes structure and aligned errors, each file whole or not at all.

    Args:
        folder: is made where it is missing.
        prediction: what to write; finite.

    Returns:
        Names of the files by kind: mmcif, pdb (unless the structure does not fit into the format),
        pae_npz and pae_json (if PAE was predicted).
    """
    make_folder(folder)
    (name,) = file_names([prediction.name])
    written = {"mmcif": f"{name}.cif"}
    write_atomically(folder / written["mmcif"], prediction.to_mmcif())
    try:
        pdb = prediction.to_pdb()
    except UserError:  # it says so in the table by an empty cell; the mmCIF file has everything
        pdb = None
    if pdb is not None:
        written["pdb"] = f"{name}.pdb"
        write_atomically(folder / written["pdb"], pdb)
    if prediction.pae is not None:
        written |= {"pae_npz": f"{name}.pae.npz", "pae_json": f"{name}.pae.json"}
        write_atomically(folder / written["pae_npz"], pae_npz(prediction))
        write_atomically(folder / written["pae_json"], pae_json(prediction))
    return written


def pae_npz(prediction: "Prediction") -> bytes:
    """NumPy's arrays pae (n, n) in Å, plddt (n) 0 to 100, ptm (), chain_lengths, compressed."""
    assert prediction.pae is not None
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        pae=prediction.pae,
        plddt=prediction.plddt,
        ptm=np.float32(prediction.ptm),
        chain_lengths=np.array([len(chain) for chain in prediction.chains]),
    )
    return stream.getvalue()


def pae_json(prediction: "Prediction") -> str:
    """Aligned errors as the AlphaFold database gives them (version 4): whole Å, one matrix."""
    assert prediction.pae is not None
    assert prediction.largest_pae is not None
    whole = int(prediction.largest_pae)  # no number is above the maximum that the file states
    # Row by row: ten thousand residues are a hundred million numbers.
    rows = (
        json.dumps(np.rint(row).astype(int).clip(max=whole).tolist(), separators=(",", ":"))
        for row in prediction.pae
    )
    matrix = f'"predicted_aligned_error":[{",".join(rows)}]'
    return f'[{{{matrix},"max_predicted_aligned_error":{prediction.largest_pae:g}}}]\n'

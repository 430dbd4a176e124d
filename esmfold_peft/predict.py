"""`esmfold-peft predict`: sequences to structures."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esmfold_peft.config import PredictConfig
from esmfold_peft.console import report, watched
from esmfold_peft.csv_text import csv_text
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Folded, fold, sequence_features, to_structure
from esmfold_peft.protein.fasta import FastaRecord, read_fasta
from esmfold_peft.protein.files import make_folder, write_atomically
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb
from esmfold_peft.training.run_directory import load_model

_LONGEST_NAME = 100


@dataclass(frozen=True)
class PredictionRow:
    """One line of predictions.csv.

    Attributes:
        id: first word of the FASTA header.
        header: the whole header.
        length: residues.
        replaced: letters B, J, O, U and Z that were folded as X.
        plddt: mean predicted lDDT-Cα, 0 to 100.
        pdb: file name; empty where the structure does not fit into the PDB format.
        mmcif: file name; empty if the record failed.
        status: "ok", or why there is no structure.
    """

    id: str
    header: str
    length: int
    replaced: int
    plddt: float
    pdb: str
    mmcif: str
    status: str


def run(config: PredictConfig) -> int:
    """Folds every record of a FASTA file.

    Raises:
        UserError: the FASTA or the run cannot be read; nothing has been written then.
    """
    records = read_fasta(config.fasta)
    model, trained = load_model(config.run)
    model.to(choose_device(config.accelerator))
    make_folder(config.output)
    names = file_names([record.id for record in records])
    chains = [sequence_features(r.id, r.sequence) for r in records]
    recycles = trained.model.max_recycles if config.recycles is None else config.recycles
    folded = fold(model, chains, recycles=recycles, max_tokens=config.max_tokens)
    rows: dict[int, PredictionRow] = {}
    for item in watched(folded, "folding", len(records)):
        rows[item.index] = write_record(config.output, names[item.index], records[item.index], item)
    table = csv_text(PredictionRow, (rows[index] for index in range(len(records))))
    write_atomically(config.output / "predictions.csv", table)
    failed = sum(row.status != "ok" for row in rows.values())
    report(
        f"{len(rows) - failed} structures in {config.output}, {failed} failed (predictions.csv)",
    )
    return 1 if failed else 0


def file_names(ids: list[str]) -> list[str]:
    """File names for record ids: safe on every file system, and unique even where case is ignored.

    Letters, digits, ".", "_" and "-" stay; anything else becomes "_". Names that would be equal get
    a number.
    """
    taken: set[str] = set()
    names = []
    for name in ids:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:_LONGEST_NAME] or "_"
        unique, count = safe, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{safe}-{count}"
        taken.add(unique.lower())
        names.append(unique)
    return names


def _write_pdb(path: Path, structure: ProteinStructure) -> str:
    """Writes the PDB file and returns its name; "" if the structure is too large for the format."""
    try:
        text = to_pdb(structure)
    except UserError:
        return ""
    write_atomically(path, text)
    return path.name


def write_record(output: Path, name: str, record: FastaRecord, folded: Folded) -> PredictionRow:
    """Writes the files of one prediction; one that is not finite gets none and says so.

    Args:
        output: folder that exists.
        name: file name without ending.
        record: what was folded.
        folded: the prediction.
    """
    structure = to_structure(name, record.sequence, folded)
    pdb, mmcif, status = "", "", "ok"
    if np.isfinite(structure.positions).all() and folded.plddt.isfinite().all():
        mmcif = f"{name}.cif"
        write_atomically(output / mmcif, to_mmcif(structure))
        pdb = _write_pdb(output / f"{name}.pdb", structure)
    else:
        status = "the prediction is not finite"
    plddt = round(100 * float(folded.plddt.mean()), 2)
    length = len(record.sequence)
    return PredictionRow(
        record.id, record.header, length, record.replaced, plddt, pdb, mmcif, status
    )

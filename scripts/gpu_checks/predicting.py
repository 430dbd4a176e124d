"""Predictions by the command: whole, finite, and on the device as on the CPU."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np
from training_step import EXAMPLE

from esmfold_peft.protein.fasta import read_fasta
from gpu_checks.commands import command
from gpu_checks.report import Row, at_least, at_most
from gpu_checks.running import Context
from gpu_checks.training import learned, straight

SEQUENCES = 3

SAME_POSITIONS = 0.02
"""Å between the same atoms of two files, which round to 0.001 Å."""


def predicting(context: Context) -> Iterator[Row]:
    """Folds sequences of the example with the runs just trained."""
    fasta = first_records(context.scratch / "sequences.fasta")
    accelerator = "cpu" if context.device.type == "cpu" else "gpu"
    folder = predict(context, fasta, learned(context), accelerator, "predicted")
    rows, places = read(folder)
    yield at_least("predict, bf16: structures", len(places), SEQUENCES)
    plddt = [float(row["plddt"]) for row in rows]
    finite = all(np.isfinite(atoms).all() for atoms in places)
    inside = sum(
        finite and row["status"] == "ok" and 0 <= p <= 100
        for row, p in zip(rows, plddt, strict=True)
    )
    detail = f"mean pLDDT {min(plddt):.1f} to {max(plddt):.1f}"
    yield at_least("predict, bf16: finite, pLDDT within 0 to 100", inside, SEQUENCES, detail=detail)
    run = straight(context)
    _, here = read(predict(context, fasta, run, accelerator, "here", "--num_recycles", 0))
    # One at a time: on a CPU that is another path than a padded batch.
    alone = ("--num_recycles", 0, "--max_tokens_per_batch", 1)
    _, there = read(predict(context, fasta, run, "cpu", "on_cpu", *alone))
    pairs = zip(here, there, strict=True)
    off = max(float(np.linalg.norm(a - b, axis=1).max()) for a, b in pairs)
    yield at_most("predict, float32: as on the CPU", off, SAME_POSITIONS, unit="Å")


def first_records(path: Path) -> Path:
    """A FASTA file of the example's first sequences.

    Args:
        path: of the file.
    """
    records = itertools.islice(read_fasta([EXAMPLE / "sequences.fasta"]), SEQUENCES)
    path.write_text("".join(f">{record.header}\n{record.sequence}\n" for record in records))
    return path


def predict(
    context: Context, fasta: Path, run: Path, accelerator: str, name: str, *flags: object
) -> Path:
    """Folds a FASTA file and returns the folder of the structures.

    Args:
        context: see there.
        fasta: file.
        run: folder of the model.
        accelerator: cpu or gpu.
        name: of the folder.
        flags: more of them.
    """
    output = context.scratch / name
    words = ("--run", run, "--output", output, "--device", accelerator)
    command("predict", fasta, *words, *flags)
    return output


def read(folder: Path) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """The lines of predictions.csv, and the atoms of each mmCIF file (atoms, 3) in Å.

    Args:
        folder: of predictions.
    """
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = []
    for row in rows:
        structure = gemmi.read_structure(str(folder / row["mmcif"]))
        atoms = [atom.pos.tolist() for residue in structure[0][0] for atom in residue]
        places.append(np.array(atoms))
    return rows, places

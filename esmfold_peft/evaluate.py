"""`esmfold-peft evaluate`: predicted structures against true ones by lDDT-Cα."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from esmfold_peft.config import EvaluateConfig
from esmfold_peft.console import watched
from esmfold_peft.csv_text import csv_text
from esmfold_peft.datasets.features import Features, features
from esmfold_peft.datasets.store import Store
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.metrics.lddt import lddt_ca
from esmfold_peft.model.inference import Failed, Folded, Query, fold
from esmfold_peft.model.kernels import CHECKED_LENGTH, check_kernels
from esmfold_peft.protein.files import make_folder, write_atomically
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.training.run_directory import load_model

_SUFFIXES = (".cif", ".pdb", ".cif.gz", ".pdb.gz")


@dataclass(frozen=True)
class Score:
    """One chain's scores.

    Attributes:
        id: name of the chain.
        length: residues, resolved or not.
        resolved: residues with a Cα in the reference.
        pairs: Cα pairs that count.
        lddt_ca: mean over pairs, 0 to 1, the headline; NaN without pairs.
        lddt_ca_residue_mean: mean of the residues' scores, 0 to 1; NaN without pairs.
        plddt: mean predicted lDDT-Cα over all residues, 0 to 100; of files, the mean B-factor of
            their Cα.
    """

    id: str
    length: int
    resolved: int
    pairs: int
    lddt_ca: float
    lddt_ca_residue_mean: float
    plddt: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """Coordinates to score: atom14 positions in Å, which atoms there are, mean pLDDT 0 to 100."""

    positions: torch.Tensor
    atom_mask: torch.Tensor
    plddt: float


def run(config: EvaluateConfig) -> int:
    """Writes scores.csv and summary.json and prints a table.

    Raises:
        UserError: a file is missing or does not fit.
    """
    chains = list(Store(config.references))
    predictions = _fold_all(config, chains) if config.run else _read_all(config, chains)
    make_folder(config.output)
    progress = watched(predictions, "scoring", len(chains))
    scores = [score(chains[index], prediction) for index, prediction in progress]
    scores.sort(key=lambda s: s.id)
    _write(config.output, scores)
    Console().print(_table(summarize(scores), config))
    return 0


def score(reference: Features, prediction: Prediction) -> Score:
    """Scores one chain; residues of the prediction are those of the reference, in order."""
    true = torch.from_numpy(reference.positions)[None]
    mask = torch.from_numpy(reference.atom_mask)[None]
    found = prediction.atom_mask[None]
    result = lddt_ca(prediction.positions[None], true, mask, predicted_atom_mask=found)
    return Score(
        id=reference.id,
        length=len(reference),
        resolved=int(mask[..., 1].sum()),
        pairs=int(result.pairs),
        lddt_ca=float(result.per_chain),
        lddt_ca_residue_mean=float(result.mean_per_residue),
        plddt=prediction.plddt,
    )


def summarize(scores: list[Score]) -> dict[str, float | int | None]:
    """Mean and median over the chains that have a score; None where none has."""
    values = [s.lddt_ca for s in scores if math.isfinite(s.lddt_ca)]
    residue_means = [s.lddt_ca_residue_mean for s in scores if math.isfinite(s.lddt_ca)]
    plddt = [s.plddt for s in scores if math.isfinite(s.plddt)]
    return {
        "chains": len(values),
        "skipped": len(scores) - len(values),
        "lddt_ca": statistics.fmean(values) if values else None,
        "lddt_ca_median": statistics.median(values) if values else None,
        "lddt_ca_residue_mean": statistics.fmean(residue_means) if values else None,
        "plddt": statistics.fmean(plddt) if plddt else None,
    }


def _fold_all(config: EvaluateConfig, chains: list[Features]) -> Iterator[tuple[int, Prediction]]:
    assert config.run is not None
    model, trained = load_model(
        config.run,
        checkpoint=config.checkpoint,
        raw=config.raw_weights,
        chunk=config.chunk,
        kernels=config.kernels,
    )
    device = choose_device(config.accelerator)
    check_kernels(trained.model, device, length=CHECKED_LENGTH, bf16=model.bf16)
    model.to(device)
    folded = fold(
        model,
        [Query(chain) for chain in chains],
        recycles=trained.model.max_recycles,
        max_tokens=config.max_tokens,
    )
    return ((item.index, _prediction(item)) for item in folded)


def _prediction(folded: Folded | Failed) -> Prediction:
    if isinstance(folded, Failed):
        raise UserError(folded.reason)
    everything = torch.ones(folded.positions.shape[:2], dtype=torch.bool)
    return Prediction(folded.positions, everything, 100 * float(folded.plddt.mean()))


def _read_all(config: EvaluateConfig, chains: list[Features]) -> Iterator[tuple[int, Prediction]]:
    assert config.predictions is not None
    files = [_find(config.predictions, chain.id) for chain in chains]
    return ((i, _read(file, chains[i])) for i, file in enumerate(files))


def _read(file: Path, chain: Features) -> Prediction:
    structure = read_structure(file)
    found = features(structure)
    if len(found) != len(chain) or (found.aatype != chain.aatype).any():
        difference = _difference(found, chain)
        raise UserError(f"{file}: its sequence is not that of {chain.id} ({difference})")
    positions, mask = torch.from_numpy(found.positions), torch.from_numpy(found.atom_mask)
    return Prediction(positions, mask, _mean_b_factor(structure))


def _mean_b_factor(structure: ProteinStructure) -> float:
    ca = ATOM37_INDEX["CA"]
    values = structure.b_factors[structure.atom_mask[:, ca], ca]
    return float(values.mean()) if len(values) else math.nan


def _find(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise UserError(f"{folder}: no prediction of {name} ({name}.cif or {name}.pdb, plain or .gz)")


def _difference(found: Features, chain: Features) -> str:
    if len(found) != len(chain):
        return f"{len(found)} residues instead of {len(chain)}"
    return f"they differ first at residue {int((found.aatype != chain.aatype).argmax()) + 1}"


def _write(output: Path, scores: list[Score]) -> None:
    write_atomically(output / "scores.csv", csv_text(Score, scores))
    write_atomically(output / "summary.json", json.dumps(summarize(scores), indent=2) + "\n")


def _table(summary: dict[str, float | int | None], config: EvaluateConfig) -> Table:
    table = Table(title=f"{config.run or config.predictions} on {config.references}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        shown = (
            "none" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        )
        table.add_row(name, shown)
    return table

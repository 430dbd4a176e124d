"""Evidence of steps whose loss or gradient was not finite, kept so that they can be replayed.

nonfinite/step_00000012/
  weights.safetensors   the tensors that the step began with
  rank_0.safetensors    the crops that process 0 saw; ids and faults in the file's header
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytorch_lightning as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from esmfold_peft.console import report
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.disk.files import make_folder
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import kept_tensors
from esmfold_peft.training.engines.engine_state import read_parameters
from esmfold_peft.training.step import FoldingModule
from esmfold_peft.training.validation import of_all_processes

NONFINITE = "nonfinite"
WEIGHTS = "weights.safetensors"

_MOST = 10  # steps of a run whose evidence is kept: a run that diverges has thousands
_TENSORS = [field.name for field in fields(Batch) if field.name not in ("ids", "lengths")]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one process saw in a step: its chains, and which of their terms were not finite.

    `step` is the number of optimizer steps done before. There are no faults if only the gradient
    was not finite.
    """

    step: int
    rank: int
    batch: Batch
    faults: tuple[str, ...]


def keep_evidence(trainer: pl.Trainer, module: FoldingModule, step: int) -> None:
    """Writes what all processes saw in a skipped step (numbered from 1), and reports it.

    The module still has what the step saw, and the weights that it began with.
    """
    batch, terms = module.seen
    faults = terms.faults(batch.ids)
    folder = module.config.run / NONFINITE / f"step_{step:08d}"
    # One process decides: others may already see the folder of this step.
    known = len(list(folder.parent.glob("step_*"))) if trainer.is_global_zero else 0
    kept = trainer.strategy.broadcast(known) < _MOST
    if kept:
        weights = read_parameters(trainer, kept_tensors(module.model))
        rank = trainer.global_rank
        about = {"step": step - 1, "rank": rank, "ids": batch.ids, "faults": faults}
        tensors = {name: getattr(batch, name).cpu().contiguous() for name in _TENSORS}
        try:
            make_folder(folder)
            path = folder / f"rank_{rank}.safetensors"
            save_file(tensors, path, metadata={"evidence": json.dumps(about)})
            if trainer.is_global_zero:
                save_file(weights, folder / WEIGHTS)
        except (OSError, SafetensorError, UserError) as error:
            # The training does not depend on it.
            report(f"{folder}: could not be kept ({' '.join(str(error).split())})")
            kept = False
    everyones = [fault for share in of_all_processes(faults) for fault in share]
    if trainer.is_global_zero:
        what = f"loss is not finite ({'; '.join(everyones)})" if everyones else ""
        where = f"; kept in {folder}" if kept else ""
        report(f"step {step}: the {what or 'gradient is not finite'}; the step is skipped{where}")


def read_evidence(path: Path) -> Evidence:
    """Reads what one process saw; raises UserError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["evidence"])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        lengths = tuple(tensors["mask"].sum(-1).tolist())
        batch = Batch(tuple(about["ids"]), lengths, **tensors)
        return Evidence(about["step"], about["rank"], batch, tuple(about["faults"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not the evidence of a step ({error}); if an earlier version has written it,"
            " replay it with that version"
        ) from error

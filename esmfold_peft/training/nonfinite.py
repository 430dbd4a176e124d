"""Evidence of steps whose loss or gradient was not finite, kept so that they can be done again.

nonfinite/step_00000012/
  weights.safetensors   the tensors that the step began with
  rank_0.safetensors    the crops that process 0 saw; ids and faults in the file's header
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytorch_lightning as pl
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from esmfold_peft.console import report
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.disk.files import make_folder
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import kept_tensors
from esmfold_peft.training.engines.engine_state import read_parameters
from esmfold_peft.training.module import FoldingModule

NONFINITE = "nonfinite"
WEIGHTS = "weights.safetensors"

_MOST = 10  # steps of a run whose evidence is kept: a run that diverges has thousands
_TENSORS = [field.name for field in fields(Batch) if field.name not in ("ids", "lengths")]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one process saw in a step.

    Attributes:
        step: optimizer steps that were done before it.
        rank: the process.
        batch: its chains.
        faults: chains and terms that were not finite; none if only the gradient was not.
    """

    step: int
    rank: int
    batch: Batch
    faults: tuple[str, ...]


def keep_evidence(trainer: pl.Trainer, module: FoldingModule, step: int) -> None:
    """Writes what all processes saw in a step that was left out, and says so.

    Args:
        trainer: of the run.
        module: with what the step saw and the weights that it began with.
        step: the step's number, from 1.
    """
    batch, terms = module.seen
    faults = terms.faults(batch.ids)
    folder = module.config.run / NONFINITE / f"step_{step:08d}"
    # One process decides: others may already see the folder of this step.
    known = len(list(folder.parent.glob("step_*"))) if trainer.is_global_zero else 0
    kept = trainer.strategy.broadcast(known) < _MOST
    weights = read_parameters(trainer, kept_tensors(module.model)) if kept else {}
    if kept:
        evidence = Evidence(step - 1, trainer.global_rank, batch, tuple(faults))
        try:
            make_folder(folder)
            _write(folder / f"rank_{trainer.global_rank}.safetensors", evidence)
            if trainer.is_global_zero:
                save_file(weights, folder / WEIGHTS)
        except (OSError, SafetensorError, UserError) as error:
            # The training does not need it.
            report(f"{folder}: could not be kept ({' '.join(str(error).split())})")
            kept = False
    everyones = _gathered(faults)
    if trainer.is_global_zero:
        what = "the gradient is not finite"
        if everyones:
            what = f"the loss is not finite ({'; '.join(everyones)})"
        where = f"; kept in {folder}" if kept else ""
        report(f"step {step}: {what}, nothing is learnt from it{where}")


def read_evidence(path: Path) -> Evidence:
    """Reads what one process saw.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["evidence"])
            if "0/aatype" in file.keys():  # noqa: SIM118 - it is no dictionary
                raise UserError(
                    f"{path}: an earlier version has kept it, whose dropout was another; that"
                    " version can do the step again"
                )
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        lengths = tuple(tensors["mask"].sum(-1).tolist())
        batch = Batch(tuple(about["ids"]), lengths, **tensors)
        return Evidence(about["step"], about["rank"], batch, tuple(about["faults"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the evidence of a step ({error})") from error


def _write(path: Path, evidence: Evidence) -> None:
    about = {
        "step": evidence.step,
        "rank": evidence.rank,
        "ids": evidence.batch.ids,
        "faults": evidence.faults,
    }
    tensors = {name: getattr(evidence.batch, name).cpu().contiguous() for name in _TENSORS}
    save_file(tensors, path, metadata={"evidence": json.dumps(about)})


def _gathered(faults: list[str]) -> list[str]:
    if not (dist.is_available() and dist.is_initialized()):
        return faults
    shares: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, faults)
    return [fault for share in shares for fault in share]

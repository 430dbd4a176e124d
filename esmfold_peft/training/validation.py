"""Validation: whole chains, each scored once, by the moving average of the weights and as they are.

It is a loop of its own rather than Lightning's, because it scores two sets of weights, may be due
before the first step of a resumed run, and keeps a table of every chain.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.training.step import FoldingModule, ValidationBatch

VALIDATION = "validation"

Row = dict[str, int | float]
"""What is known of a chain, by column."""

_RAW = "lddt_ca_raw"
_SCORES = ("lddt_ca", _RAW)
_DESCRIPTION = ("length", "resolved", "pairs")

T = TypeVar("T")


@dataclass(frozen=True)
class Validated:
    """The scores of a validation; the same in every process.

    Attributes:
        chains: for each chain by name its length, resolved residues, pairs, lddt_ca, losses, and
            lddt_ca_raw if the weights as they are were scored too.
    """

    chains: dict[str, Row]

    @property
    def score(self) -> float:
        """Mean lDDT-Cα of the moving average over the chains that have one; NaN if none has."""
        return self.metrics()["validation/lddt_ca"]

    def metrics(self) -> dict[str, float]:
        """Means over the chains; one without a resolved pair has no score, and does not count."""
        columns = {n: [row[n] for row in self.chains.values()] for n in self._columns}
        scores = {n: [v for v in columns[n] if math.isfinite(v)] for n in columns if n in _SCORES}
        losses = {n: v for n, v in columns.items() if n not in (*_SCORES, *_DESCRIPTION)}
        means = {n: statistics.fmean(v) if v else math.nan for n, v in (scores | losses).items()}
        return {f"validation/{n}": mean for n, mean in means.items()}

    @property
    def _columns(self) -> list[str]:
        return list(next(iter(self.chains.values())))

    def write(self, run: Path, step: int) -> None:
        """Writes one line of CSV for each chain into the run's folder."""
        rows = [[name, *values.values()] for name, values in sorted(self.chains.items())]
        make_folder(run / VALIDATION)
        path = run / VALIDATION / f"step_{step:08d}.csv"
        write_atomically(path, table_text(["id", *self._columns], rows))


@torch.no_grad()
def validate(
    trainer: pl.Trainer, module: FoldingModule, loader: DataLoader, advanced: Callable[[int], None]
) -> Validated:
    """Scores all validation chains; every process takes its share and learns all results.

    Args:
        trainer: whose engine runs the model.
        module: afterwards in training mode again, with its weights as they were.
        loader: this process's batches, as many as any other's.
        advanced: called with the number of chains of each batch that is done.
    """

    def rows() -> Iterator[tuple[str, Row]]:
        for index, batch in enumerate(loader):
            batch = batch.to(trainer.strategy.root_device, non_blocking=True)
            found = trainer.strategy.validation_step(batch, index)
            assert isinstance(found, ValidationBatch)
            yield from _rows(found, module.config.data.crop)
            advanced(len(batch.ids))

    module.eval()
    try:
        with module.average.swapped(trainer):
            own = dict(rows())
        chains = _gathered(own)
        if module.config.engine.validate_raw:
            raw = _gathered({name: {_RAW: row["lddt_ca"]} for name, row in rows()})
            chains = {name: row | raw[name] for name, row in chains.items()}
    finally:
        module.train()
    return Validated(chains)


def of_all_processes(own: T) -> list[T]:
    """What each process has, in order of their ranks (collective)."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    shares = [own] * dist.get_world_size()
    dist.all_gather_object(shares, own)
    return shares


def _rows(found: ValidationBatch, crop: int) -> Iterator[tuple[str, Row]]:
    """What is known of each chain of a batch.

    The loss of a whole chain is scaled as if it were a crop, to stand beside the training loss.
    """
    batch, terms = found.batch, found.terms
    lengths = batch.mask.sum(-1)
    scale = (lengths.clamp(max=crop) / lengths).sqrt()
    columns = {
        "length": lengths,
        "resolved": batch.atom_mask[..., 1].sum(-1),
        "pairs": found.lddt.pairs,
        "lddt_ca": found.lddt.per_chain,
        "loss": terms.total * scale,
        **terms.terms,
    }
    values = {name: column.tolist() for name, column in columns.items()}
    for row, name in enumerate(batch.ids):
        yield name, {column: values[column][row] for column in values}


def _gathered(own: dict[str, Row]) -> dict[str, Row]:
    """The rows of all processes; a chain that several have scored is there once."""
    return {name: row for share in of_all_processes(own) for name, row in share.items()}

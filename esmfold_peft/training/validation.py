"""Validation: whole chains, each scored once, by the moving average of the weights and as they are.

It is a loop of its own rather than Lightning's, because it scores two sets of weights, may be due
before the first step of a resumed run, and keeps a table of every chain.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.module import FoldingModule, ValidationBatch

VALIDATION = "validation"

Row = dict[str, int | float]
"""What is known of a chain, by column."""

_RAW = "lddt_ca_raw"
_SCORES = ("lddt_ca", _RAW)
_DESCRIPTION = ("length", "resolved", "pairs")


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
        return {f"validation/{n}": _mean(v) for n, v in (scores | losses).items()}

    @property
    def _columns(self) -> list[str]:
        return list(next(iter(self.chains.values())))

    def table(self) -> str:
        """One line of CSV for each chain."""
        rows = [[name, *values.values()] for name, values in sorted(self.chains.items())]
        return table_text(["id", *self._columns], rows)

    def write(self, run: Path, step: int) -> None:
        """Writes the table of the chains into the run's folder."""
        make_folder(run / VALIDATION)
        write_atomically(run / VALIDATION / f"step_{step:08d}.csv", self.table())


def validate(
    trainer: pl.Trainer,
    module: FoldingModule,
    loader: DataLoader,
    average: ExponentialAverage,
    *,
    advanced: Callable[[int], None],
) -> Validated:
    """Scores all validation chains; every process takes its share and learns all results.

    Args:
        trainer: whose engine runs the model.
        module: the model; it is in training mode again afterwards, with its weights as they were.
        loader: this process's batches, as many as any other's.
        average: of the weights; the headline is its score.
        advanced: called with the number of chains of each batch that is done.
    """
    with _evaluating(module):
        with average.swapped(trainer):
            batches = _run(trainer, loader, advanced)
            own = {name: row for b in batches for name, row in _rows(b, module.config.data.crop)}
        chains = _gathered(own)
        if module.config.engine.validate_raw:
            batches = _run(trainer, loader, advanced)
            raw = _gathered({n: {_RAW: r["lddt_ca"]} for b in batches for n, r in _rows(b, 1)})
            chains = {name: row | raw[name] for name, row in chains.items()}
    return Validated(chains)


@contextmanager
def _evaluating(module: FoldingModule) -> Iterator[None]:
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train()


def _run(
    trainer: pl.Trainer, loader: DataLoader, advanced: Callable[[int], None]
) -> Iterator[ValidationBatch]:
    device = trainer.strategy.root_device
    for index, batch in enumerate(loader):
        found = trainer.strategy.validation_step(batch.to(device, non_blocking=True), index)
        assert isinstance(found, ValidationBatch)
        yield found
        advanced(len(batch.ids))


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
    shares: list[dict[str, Row]] = [own]
    if dist.is_available() and dist.is_initialized():
        shares = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, own)
    return {name: row for share in shares for name, row in share.items()}


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan

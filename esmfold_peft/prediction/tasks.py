"""The tasks of `predict`: every record of its files, once for each seed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from esmfold_peft.prediction.names import NAMELESS, file_names
from esmfold_peft.prediction.row_journal import PredictionRow
from esmfold_peft.protein.fasta import FastaRecord

_FORMAT = 1
"""Version of the files; with a higher number --resume writes them again."""


@dataclass(frozen=True)
class Task:
    """One prediction of one record.

    Attributes:
        record: to fold.
        seed: 0 is the prediction; other seeds mask residues in the language model.
        name: of the files, unique in the folder.
        adapter: the adapter that the record names; "" for the model's own.
        hash: SHA-256 of all that decides the files.
    """

    record: FastaRecord
    seed: int
    name: str
    adapter: str
    hash: str

    def row(self, status: str, **found: Any) -> PredictionRow:
        """Its line in the table: "ok" or why there is no structure, and other columns."""
        record = self.record
        return PredictionRow(
            name=self.name,
            chains=len(record.chains),
            length=record.length,
            adapter=self.adapter,
            seed=self.seed,
            status=status,
            hash=self.hash,
            **self._in_fasta(),
            **found,
        )

    def described(self, row: PredictionRow) -> PredictionRow:
        """An earlier line of the same sequence, with the FASTA's present header and place."""
        return replace(row, **self._in_fasta())

    def _in_fasta(self) -> dict[str, Any]:
        record = self.record
        return {
            "id": record.id,
            "header": record.header,
            "fasta": record.file,
            "line": record.line,
            "replaced": record.replaced,
            "warnings": "; ".join(record.warnings),
        }


def tasks_of(
    records: Sequence[FastaRecord],
    adapters: Sequence[str],
    seeds: int,
    decided_by: Sequence[object],
) -> list[Task]:
    """The tasks of records, in their order, so many seeds each.

    Args:
        records: of all files.
        adapters: name, space and fingerprint of the adapter that each record names; "" for none.
        seeds: predictions of each record.
        decided_by: what else decides the files (model, settings), as JSON can hold it.
    """
    todo = [(r, a, seed) for r, a in zip(records, adapters, strict=True) for seed in range(seeds)]
    ids = [(record.id or NAMELESS) + (f"_seed{seed}" if seed else "") for record, _, seed in todo]
    return [
        Task(
            record=record,
            seed=seed,
            name=name,
            adapter=adapter.partition(" ")[0],
            hash=_hash(_FORMAT, record.chains, record.problem, adapter, seed, *decided_by),
        )
        for name, (record, adapter, seed) in zip(file_names(ids), todo, strict=True)
    ]


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""What a `predict` has to do: every record of its files, once for each seed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from esmfold_peft.prediction.manifest import PredictionRow
from esmfold_peft.prediction.names import NAMELESS, file_names
from esmfold_peft.protein.fasta import FastaRecord

_FORMAT = 1
"""Of the files; a higher number makes --resume write them anew."""


@dataclass(frozen=True)
class Task:
    """One prediction of one record.

    Attributes:
        record: what is folded.
        seed: 0 is the prediction, others have residues hidden from the language model.
        name: of the files, unique in the folder.
        adapter: the adapter that the record names; "" for the model's own.
        hash: SHA-256 of all that decides the files.
    """

    record: FastaRecord
    seed: int
    name: str
    adapter: str
    hash: str

    def row(self, status: str, **found: object) -> PredictionRow:
        """Its line in the table.

        Args:
            status: ok, or why there is no structure.
            found: what there is besides, by column.
        """
        record = self.record
        empty = dict.fromkeys(("plddt", "ptm", "seconds"))
        files = dict.fromkeys(("pdb", "mmcif", "pae_npz", "pae_json", "html"), "")
        values = empty | files | found
        return PredictionRow(
            name=self.name,
            id=record.id,
            header=record.header,
            fasta=record.file,
            line=record.line,
            chains=len(record.chains),
            length=record.length,
            replaced=record.replaced,
            adapter=self.adapter,
            seed=self.seed,
            status=status,
            warnings="; ".join(record.warnings),
            hash=self.hash,
            **values,  # pyright: ignore[reportArgumentType]
        )

    def described(self, row: PredictionRow) -> PredictionRow:
        """An earlier line of the same sequence, with what the files say of it now."""
        record = self.record
        return replace(
            row,
            id=record.id,
            header=record.header,
            fasta=record.file,
            line=record.line,
            replaced=record.replaced,
            warnings="; ".join(record.warnings),
        )


def tasks_of(
    records: Sequence[FastaRecord],
    adapters: Sequence[str],
    seeds: int,
    decided_by: Sequence[object],
) -> list[Task]:
    """The tasks of records, in their order.

    Args:
        records: of all files.
        adapters: for each record the adapter that it names, as name and fingerprint joined by a
            space; "" for none.
        seeds: predictions of each record.
        decided_by: what else decides the files: model, settings; JSON can hold it.
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

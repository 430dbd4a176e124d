"""Settings of `evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esmfold_peft.config.checks import check_device, check_lowest, check_unchanged
from esmfold_peft.config.training import Precision
from esmfold_peft.errors import UserError

MatchMethod = Literal["auto", "sequence", "number", "alignment"]
Split = Literal["train", "validation"]

_FILES = ("predictions", "references", "pairs", "match")
_FOLDING = (
    *("store", "splits", "checkpoint", "raw_weights", "device", "precision"),
    *("num_recycles", "max_tokens_per_batch", "chunk_size"),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Score predicted structures against true ones.

    The predictions are structure files (--predictions, --references or --pairs), or a run's model
    predicts them (--run). --compare compares two earlier evaluations.

    Attributes:
        output: folder for scores.csv and .parquet, summary.json and plots/; replaces the files of
            an earlier evaluation in it.
        predictions: predicted structures: files, folders and tars of files, or stores. If a folder
            holds x.cif and x.pdb, x.cif is taken.
        references: true structures, in the same forms. A chain is named after its file without
            endings (x, or x_A where the file has several chains) or its entry (1ubq_A), and is
            scored against the prediction of that name.
        pairs: CSV with the columns prediction and reference, and optionally prediction_chain,
            reference_chain (the author's names) and id. A cell is a name in --predictions or
            --references if they are given, else a path relative to the CSV's folder.
        match: how residues are matched: by their place in the deposited sequence (label_seq_id,
            SEQRES), by the author's residue number, or by alignment; auto tries equal sequences,
            the author's numbers, places, and alignment, in this order.
        run: folder of a training run; its model predicts the whole sequences of stores.
        store: stores of true structures to score the run's model on.
        splits: the run's own stores instead: train or validation (default).
        compare: folders of two earlier evaluations; the second is compared with the first.
        per_residue: also write residues.csv and .parquet.
        plots: draw figures into plots/.
        workers: processes that read and score; 0 uses this process only. Default: one per core if
            there is enough to do.
        checkpoint: of the run: last, best (by validation) or a step; null takes the run's model,
            that of its last checkpoint.
        raw_weights: take the raw weights, not their moving average.
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one).
        precision: float32 or bf16; null takes the run's.
        num_recycles: recycling passes after the first pass; null takes the run's.
        max_tokens_per_batch: most residues in a batch, padding included; a longer chain is alone.
        chunk_size: rows of the pair track at a time (`model.chunk`): less memory for long chains.
    """

    output: Path
    predictions: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()
    pairs: Path | None = None
    match: MatchMethod = "auto"
    run: Path | None = None
    store: tuple[Path, ...] = ()
    splits: tuple[Split, ...] = ()
    compare: tuple[Path, ...] = ()
    per_residue: bool = False
    plots: bool = True
    workers: int | None = None
    checkpoint: str | None = None
    raw_weights: bool = False
    device: str = "auto"
    precision: Precision | None = None
    num_recycles: int | None = None
    max_tokens_per_batch: int = 1024
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_lowest(self, "", 1, "max_tokens_per_batch", "chunk_size")
        check_lowest(self, "", 0, "workers", "num_recycles")
        check_device(self.device)
        if self.compare:
            self._check_compare()
        elif self.run is not None:
            self._check_run()
        else:
            self._check_files()

    def _check_compare(self) -> None:
        if len(self.compare) != 2:
            raise UserError(f"compare: {len(self.compare)} folders; give two")
        names = ("run", *_FILES, *_FOLDING, "per_residue", "workers")
        check_unchanged(self, "", names, "not with --compare")

    def _check_run(self) -> None:
        files = ("predictions", "pairs", "match")
        check_unchanged(self, "", files, "not with --run, whose model makes the predictions")
        check_unchanged(self, "", ("references",), "not with --run; name the stores by --store")
        if self.store and self.splits:
            raise UserError("store, splits: give only one of them")
        for name in ("store", "splits"):
            values = getattr(self, name)
            if repeated := next((v for v in values if values.count(v) > 1), None):
                raise UserError(f"{name}: {repeated} is named twice")

    def _check_files(self) -> None:
        check_unchanged(self, "", _FOLDING, "only with --run")
        if self.pairs is None and not (self.predictions and self.references):
            raise UserError(
                "give --predictions and --references, or --pairs, or --run, or --compare"
            )

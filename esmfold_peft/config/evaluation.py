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
    """Scores predicted structures against true ones: files, or those that a run's model folds.

    Attributes:
        output: folder that receives scores.csv and .parquet, summary.json and plots/; files of an
            earlier evaluation in it are replaced.
        predictions: structure files, folders and tars of them, or stores. Of a folder that holds
            x.cif and x.pdb the first is taken.
        references: the same of the true structures. A chain is named after its file without
            endings (x, or x_A where the file has several chains), or as the entry is (1ubq_A); it
            is scored against the prediction of that name.
        pairs: CSV with the columns prediction and reference, and if needed prediction_chain,
            reference_chain (the author's names) and id. With predictions or references given the
            cells of that column are names in them, otherwise paths, relative to the CSV's folder.
        match: how residues find each other: by their place in the deposited sequence
            (label_seq_id, SEQRES), by the author's residue number, or by alignment; auto tries
            equal sequences, the author's numbers, places, and alignment, in this order.
        run: folder of a training run, whose model folds the sequences of stores, uncropped.
        store: stores of true structures that the run's model is scored on.
        splits: the run's own stores, train or validation, instead; validation by default.
        compare: two folders of earlier evaluations, of which the second is set against the first.
        per_residue: write residues.csv and .parquet too.
        plots: draw figures into plots/.
        workers: processes that read and score; 0 is this one alone. By default one for each core
            where there is enough to do.
        checkpoint: of the run: last, best (by validation) or a step; null takes the run's model,
            which is that of its last checkpoint.
        raw_weights: take the weights as they were, not their moving average.
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one).
        precision: float32 or bf16; null takes the run's.
        num_recycles: passes after the first; null takes the run's.
        max_tokens_per_batch: residues folded at a time, padding included; a longer chain is folded
            alone.
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
            raise UserError(f"compare: {len(self.compare)} folders instead of two")
        names = ("run", *_FILES, *_FOLDING, "per_residue", "workers")
        check_unchanged(self, "", names, "not with --compare")

    def _check_run(self) -> None:
        files = ("predictions", "pairs", "match")
        check_unchanged(self, "", files, "not with --run, which folds")
        check_unchanged(self, "", ("references",), "not with --run; name the stores by --store")
        if self.store and self.splits:
            raise UserError("store and splits: give one of them")
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

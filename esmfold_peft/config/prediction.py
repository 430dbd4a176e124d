"""Settings of `predict`."""

from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config.checks import check_device, check_lowest
from esmfold_peft.config.training import Precision
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class PredictConfig:
    """Predict structures from FASTA files.

    Attributes:
        fasta: FASTA files, plain or gzip; - is standard input. ":" in a sequence separates the
            chains of a complex.
        output: folder for a PDB and an mmCIF file of each sequence, and predictions.csv.
        run: folder of a training run, or a copy of its config.yaml, provenance.json and
            model.safetensors.
        esmfold: the released ESMFold instead of a run: pretrained (downloads it), the official
            file, or a Hugging Face folder.
        language_model: weights of ESM-2 for an official ESMFold file, which has none; null takes
            the official ones.
        checkpoint: of the run: last, best (by validation) or a step; null takes the run's model,
            that of its last checkpoint.
        raw_weights: take the raw weights, not their moving average.
        num_recycles: recycling passes after the first pass; null takes the model's setting.
        num_seeds: predictions of each sequence. Each one after the first masks a random 15 % of the
            residues for the language model; their spread shows how much depends on single residues.
        pae: also predict aligned errors (PAE) and the TM-score (pTM), and write <name>.pae.npz and
            <name>.pae.json (the layout of the AlphaFold database).
        html: also write a page for each sequence (3D view, PAE, confidence) and index.html; they
            need no network.
        resume: continue in an existing output folder; predictions of the same sequence, model and
            settings are kept.
        max_tokens_per_batch: most residues in a batch, padding included; a longer sequence is
            alone.
        chunk_size: rows of the pair track at a time (`model.chunk`): less memory for long
            sequences; null chooses, and takes fewer if memory is short.
        max_length: most residues of a sequence, all chains together; a longer one fails.
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one; under torchrun or srun each
            process takes the GPU of its local rank).
        precision: float32, or bf16 autocast in the language model and the trunk; null takes that of
            the training.
        adapter: adapters that a FASTA record may use instead of the model's own, each as
            name=folder (of an adapter or a run); the record's header selects one by the word
            adapter=name. All must have the same settings (kind, rank, alpha, targets and so on) and
            stay in memory together. The flag may be repeated.
    """

    fasta: tuple[Path, ...]
    output: Path
    run: Path | None = None
    esmfold: str | None = None
    language_model: str | None = None
    checkpoint: str | None = None
    raw_weights: bool = False
    num_recycles: int | None = None
    num_seeds: int = 1
    pae: bool = False
    html: bool = False
    resume: bool = False
    max_tokens_per_batch: int = 1024
    chunk_size: int | None = None
    max_length: int = 10_000
    device: str = "auto"
    precision: Precision | None = None
    adapter: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers = ("num_seeds", "max_tokens_per_batch", "chunk_size", "max_length")
        check_lowest(self, "", 1, *numbers)
        check_lowest(self, "", 0, "num_recycles")
        check_device(self.device)
        if (self.run is None) == (self.esmfold is None):
            raise UserError("give either --run or --esmfold")
        if self.run is None and (self.checkpoint is not None or self.raw_weights):
            raise UserError("checkpoint, raw_weights: only with --run")
        if self.esmfold is None and self.language_model is not None:
            raise UserError("language_model: only with --esmfold; a run names its own")
        for text in self.adapter:
            name, equals, folder = text.partition("=")
            if not (name and equals and folder) or name.split() != [name]:
                raise UserError(f"adapter: {text!r} is not name=folder")
        names = [text.partition("=")[0] for text in self.adapter]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"adapter: {name} is named twice")

    def adapter_folders(self) -> dict[str, Path]:
        """The folders of `adapter` by name."""
        pairs = (text.partition("=") for text in self.adapter)
        return {name: Path(folder) for name, _, folder in pairs}

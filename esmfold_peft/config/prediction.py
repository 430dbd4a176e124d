"""Settings of `predict`."""

from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config.checks import check_device, check_lowest
from esmfold_peft.config.training import Precision
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class PredictConfig:
    """Predicts the structures of sequences.

    Attributes:
        fasta: FASTA files, plain or gzip; - is standard input. ":" in a sequence parts the chains
            of a complex.
        output: folder that receives a PDB and an mmCIF file for each sequence, and predictions.csv.
        run: folder of a training run, or a copy of its config.yaml, provenance.json and
            model.safetensors.
        esmfold: the released ESMFold instead of a run: pretrained (downloads it), the official
            file, or a Hugging Face folder.
        language_model: weights of ESM-2 for an official file of ESMFold, which has none; null takes
            the official ones.
        checkpoint: of the run: last, best (by validation) or a step; null takes the run's model,
            which is that of its last checkpoint.
        raw_weights: take the weights as they were, not their moving average.
        num_recycles: passes after the first; null takes the model's setting.
        num_seeds: predictions of each sequence. The first is the prediction; each further one hides
            15 % of the residues from the language model, others every time, which shows how much
            hangs on single residues.
        pae: predict aligned errors (PAE) and the TM-score (pTM) too, and write <name>.pae.npz and,
            in the layout of the AlphaFold database, <name>.pae.json.
        html: write a page for each sequence too (3D view, PAE, confidence) and index.html, which
            need no network.
        resume: go on with an output folder: what is there of the same sequence, model and settings
            is kept.
        max_tokens_per_batch: residues folded at a time, padding included; a longer sequence is
            folded alone.
        chunk_size: rows of the pair track at a time (`model.chunk`): less memory for long
            sequences; null chooses, and fewer are tried where memory does not suffice.
        max_length: residues of a sequence at most, all chains together; a longer one fails.
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one; under torchrun or srun each
            process takes the one of its number).
        precision: float32, or bf16 autocast around language model and trunk; null takes that of
            the training.
        adapter: adapters that records may use instead of the model's own, each as name=folder (of
            an adapter or a run). A record names one in its header by the word adapter=name. All
            stay in memory together, and have the same settings (kind, rank, alpha, targets and so
            on). A second flag adds to the first.
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
            raise UserError("checkpoint and raw_weights: only with --run")
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

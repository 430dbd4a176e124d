"""Every setting of every command, declared once: frozen dataclasses that YAML files and flags fill.

This module imports no torch, so that help and configuration checks answer at once. Constants and
their sources are explained at the field that holds them; "AF2" is Jumper et al. 2021, "OpenFold"
Ahdritz et al. 2024, "ESMFold" Lin et al. 2023, "LoRTA" Hounie et al. 2024 (arXiv 2410.04060).
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from esmfold_peft.errors import UserError

Target = Literal["query", "key", "value", "output"]


def _check(config: object, prefix: str, lowest: int, *names: str) -> None:
    """Refuses numbers below a bound; None is left to whoever reads it.

    Raises:
        UserError: names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= lowest:
            raise UserError(f"{prefix}{name}: {value} is less than {lowest}")


def _check_shares(config: object, prefix: str, *names: str) -> None:
    """Refuses shares and probabilities outside 0 to 1.

    Raises:
        UserError: names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise UserError(f"{prefix}{name}: {value} is not between 0 and 1")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The ESM-2 protein language model.

    Attributes:
        name: official name, such as esm2_t12_35M_UR50D, or "custom" for the three sizes below.
        weights: "pretrained" (the official file, downloaded when it is not in torch.hub's folder),
            "random" (from the run's seed, for tests), or a path: an official .pt file or a Hugging
            Face folder of facebook/esm2_*.
        layers: number of layers, for "custom" only.
        width: hidden width, for "custom" only.
        heads: attention heads, for "custom" only.
        checkpoint: recompute each layer's activations in the backward pass to save memory.
    """

    name: str = "esm2_t12_35M_UR50D"
    weights: str = "pretrained"
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained inside the language model.

    Attributes:
        kind: none (frozen, as in ESMFold), full (all its weights train), lora, or lorta.
        rank: rank r of the factors.
        alpha: the update is scaled by alpha / rank.
        targets: adapted attention matrices. The paper's counts imply query, key, value.
        init: start of LoRTA's factors: unit (random signs; the same alpha / rank suits every rank)
            or paper (the authors' code).
    """

    kind: Literal["none", "full", "lora", "lorta"] = "lorta"
    rank: int = 1
    alpha: float = 1.0
    targets: tuple[Target, ...] = ("query", "key", "value")
    init: Literal["unit", "paper"] = "unit"


@dataclass(frozen=True)
class TrunkConfig:
    """The reduced Evoformer between the language model and the structure module.

    Attributes:
        blocks: Evoformer blocks (LoRTA: 12 instead of ESMFold's 48).
        c_m: channels of the one-row MSA track.
        c_z: channels of the pair track.
        c_s: channels of the single track handed to the structure module.
        heads_msa: attention heads of the MSA track.
        heads_pair: attention heads of the pair track.
        c_head_msa: channels of each MSA head.
        c_head_pair: channels of each pair head.
        c_opm: hidden channels of the outer product mean.
        c_mul: hidden channels of the triangle multiplications.
        transition: width factor of the transitions.
        dropout_msa: dropout of the MSA track, shared along rows.
        dropout_pair: dropout of the pair track, shared along rows or columns.
        checkpoint: recompute each block's activations in the backward pass to save memory.
    """

    blocks: int = 12
    c_m: int = 256
    c_z: int = 128
    c_s: int = 384
    heads_msa: int = 8
    heads_pair: int = 4
    c_head_msa: int = 32
    c_head_pair: int = 32
    c_opm: int = 32
    c_mul: int = 128
    transition: int = 4
    dropout_msa: float = 0.15
    dropout_pair: float = 0.25
    checkpoint: bool = True

    def __post_init__(self) -> None:
        sizes = (f.name for f in fields(self) if f.type is int)
        _check(self, "model.trunk.", 1, *sizes)
        _check_shares(self, "model.trunk.", "dropout_msa", "dropout_pair")


@dataclass(frozen=True)
class StructureConfig:
    """The structure module (AF2 Suppl. 1.8).

    Attributes:
        layers: layers, sharing their weights.
        c_ipa: channels of each head of the invariant point attention.
        heads: heads of the invariant point attention.
        query_points: query and key points of each head.
        value_points: value points of each head.
        c_angle: width of the torsion network.
        angle_blocks: residual blocks of the torsion network.
        dropout: dropout after attention and transition.
    """

    layers: int = 8
    c_ipa: int = 16
    heads: int = 12
    query_points: int = 4
    value_points: int = 8
    c_angle: int = 128
    angle_blocks: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = (f.name for f in fields(self) if f.type is int)
        _check(self, "model.structure.", 1, *sizes)
        _check_shares(self, "model.structure.", "dropout")


@dataclass(frozen=True)
class ModelConfig:
    """The folding model.

    Attributes:
        language_model: ESM-2.
        trunk: the Evoformer.
        structure: the structure module.
        max_recycles: passes through the trunk after the first: drawn from 0 to this in training,
            this many in evaluation and prediction (AF2: 3).
        relative_positions: sequence distances beyond this share one embedding (AF2: 32).
        distogram_bins: distance bins of virtual Cβ (AF2: 64).
        plddt_bins: bins of predicted lDDT-Cα (AF2: 50).
        c_plddt: width of the pLDDT head's hidden layers (AF2: 128).
    """

    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    max_recycles: int = 3
    relative_positions: int = 32
    distogram_bins: int = 64
    plddt_bins: int = 50
    c_plddt: int = 128

    def __post_init__(self) -> None:
        _check(self, "model.", 0, "max_recycles")
        _check(self, "model.", 1, "relative_positions", "c_plddt")
        _check(self, "model.", 2, "distogram_bins", "plddt_bins")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms in initial training (AF2 Suppl. 1.9).

    A term of weight 0 is not computed.

    Attributes:
        fape: half backbone, half side chain.
        chi: supervised torsions with the angle norm.
        distogram: cross entropy of virtual Cβ distances.
        plddt: cross entropy of predicted lDDT-Cα.
    """

    fape: float = 1.0
    chi: float = 1.0
    distogram: float = 0.3
    plddt: float = 0.01

    def __post_init__(self) -> None:
        _check(self, "loss.weights.", 0, *(f.name for f in fields(self)))


@dataclass(frozen=True)
class LossConfig:
    """The training loss.

    Attributes:
        weights: weight of each term.
        clamp_probability: share of chains whose backbone FAPE is clamped at 10 Å (AF2: 0.9).
        plddt_resolution: chains resolved to within these bounds (Å) train the pLDDT head; null
            trains it on all, those of unknown resolution too.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    clamp_probability: float = 0.9
    plddt_resolution: tuple[float, float] | None = (0.1, 3.0)

    def __post_init__(self) -> None:
        _check_shares(self, "loss.", "clamp_probability")
        bounds = self.plddt_resolution
        if bounds is not None and not 0 <= bounds[0] < bounds[1]:
            raise UserError(f"loss.plddt_resolution: {bounds} is not from low to high")


@dataclass(frozen=True)
class DataConfig:
    """Training and validation chains.

    Attributes:
        train: manifest of the training chains, or the folder that `prepare` wrote it to.
        validation: manifest of the validation chains; null trains without validation.
        crop: longest stretch of residues that a training step sees (AF2: 256, 384 in fine-tuning).
        workers: processes that read chains.
    """

    train: Path
    validation: Path | None = None
    crop: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        _check(self, "data.", 1, "crop")
        _check(self, "data.", 0, "workers")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its schedule and clipping (AF2 Suppl. 1.11).

    Epsilon and decay are those of OpenFold, whose training code LoRTA used.

    Attributes:
        lr: learning rate after the warm-up.
        betas: Adam's decay rates of the two moments.
        eps: added to Adam's denominator (OpenFold 1e-5, AF2 1e-6).
        warmup_steps: linear warm-up from 0.
        schedule: openfold (x 0.95 at every `decay_steps`), alphafold (once) or constant.
        decay_steps: steps until the learning rate falls.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        lr_adapter: factor on the learning rate of the language model's parameters.
        lr_trunk: factor on the learning rate of the trunk.
        lr_head: factor on the learning rate of the structure module and heads.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5
    warmup_steps: int = 1000
    schedule: Literal["openfold", "alphafold", "constant"] = "openfold"
    decay_steps: int = 50_000
    clip_norm: float = 0.1
    lr_adapter: float = 1.0
    lr_trunk: float = 1.0
    lr_head: float = 1.0

    def __post_init__(self) -> None:
        numbers = (f.name for f in fields(self) if f.type in (int, float))
        _check(self, "optimizer.", 0, *numbers)
        _check(self, "optimizer.", 1, "decay_steps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: {self.betas} are not between 0 and 1")


@dataclass(frozen=True)
class EngineConfig:
    """Where and how the training runs.

    Attributes:
        accelerator: cpu, gpu, or auto (a GPU if there is one).
        devices: processes on each node, one device each.
        nodes: machines.
        deepspeed: a DeepSpeed JSON file; null runs one device plainly and several by DDP.
        precision: float32, or bf16 autocast around language model and trunk (parameters stay
            float32).
        batch_size: chains in one optimizer step, over all devices.
        micro_batch: chains that one device holds at a time; the rest is accumulated.
        steps: optimizer steps.
        validate_every: optimizer steps between validations. The model is saved as often, also
            without validation chains, and at the end.
        log_every: optimizer steps between lines of metrics.csv.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    deepspeed: Path | None = None
    precision: Literal["float32", "bf16"] = "bf16"
    batch_size: int = 32
    micro_batch: int = 1
    steps: int = 850_000
    validate_every: int = 1000
    log_every: int = 10

    def __post_init__(self) -> None:
        _check(self, "engine.", 0, "steps")
        counts = ("devices", "nodes", "batch_size", "micro_batch", "validate_every", "log_every")
        _check(self, "engine.", 1, *counts)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        run: folder of the run, made by `train`; it must be absent or empty.
        data: chains.
        model: the folding model.
        adapter: what is trained inside the language model.
        loss: terms and their weights.
        optimizer: Adam, schedule, clipping.
        engine: devices, precision, batch, steps.
        seed: of initial weights, dropout, order, crops and recycling.
    """

    run: Path
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, "", 0, "seed")


@dataclass(frozen=True)
class PrepareConfig:
    """Lists the protein chains of structure files in a manifest.

    Attributes:
        sources: mmCIF or PDB files, plain or gzip, and folders of them.
        output: folder that receives manifest.csv and rejected.csv.
        min_resolved: chains with fewer resolved residues (Cα) are rejected.
    """

    sources: tuple[Path, ...]
    output: Path
    min_resolved: int = 10

    def __post_init__(self) -> None:
        _check(self, "", 1, "min_resolved")


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores predicted structures by lDDT-Cα: those of a run's model, or files.

    Attributes:
        references: manifest of the true structures, or its folder.
        output: folder that receives scores.csv and summary.json.
        run: folder of a training run, whose model folds the references' sequences.
        predictions: folder of predicted structures named <chain id>.pdb or .cif, instead of a run.
        accelerator: cpu, gpu, or auto (a GPU if there is one).
        max_tokens: residues folded at a time, padding included; a longer chain is folded alone.
    """

    references: Path
    output: Path
    run: Path | None = None
    predictions: Path | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _check(self, "", 1, "max_tokens")
        if (self.run is None) == (self.predictions is None):
            raise UserError("give either --run or --predictions")


@dataclass(frozen=True)
class PredictConfig:
    """Predicts the structures of sequences.

    Attributes:
        fasta: FASTA file, plain or gzip.
        run: folder of a training run.
        output: folder that receives a PDB and an mmCIF file for each sequence, and predictions.csv.
        recycles: passes after the first; null takes the run's setting.
        accelerator: cpu, gpu, or auto (a GPU if there is one).
        max_tokens: residues folded at a time, padding included; a longer sequence is folded alone.
    """

    fasta: Path
    run: Path
    output: Path
    recycles: int | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _check(self, "", 1, "max_tokens")
        _check(self, "", 0, "recycles")

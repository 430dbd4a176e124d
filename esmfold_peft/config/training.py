"""Loss, data, optimizer and engine of a training run."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from esmfold_peft.config.adapter import AdapterConfig
from esmfold_peft.config.checks import check_above_zero, check_lowest, check_shares
from esmfold_peft.config.guard import GuardConfig
from esmfold_peft.config.logging import LogConfig
from esmfold_peft.config.model import Auto, ModelConfig
from esmfold_peft.errors import UserError

Precision = Literal["float32", "bf16"]
ClusterWeight = Literal["inverse", "inverse_sqrt", "none"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms (AF2 Suppl. 1.9); by default those of initial training.

    A term of weight 0 is not computed, and its head is not trained.

    Attributes:
        fape: half backbone, half side chain.
        chi: supervised torsions with the angle norm.
        distogram: cross entropy of virtual Cβ distances.
        plddt: cross entropy of predicted lDDT.
        resolved: cross entropy of which atoms are resolved (fine-tuning: 0.01).
        violation: bond lengths and angles between residues, and clashes (fine-tuning: 1).
        pae: cross entropy of aligned errors, from which PAE and pTM come (fine-tuning: 0.1).
    """

    fape: float = 1.0
    chi: float = 1.0
    distogram: float = 0.3
    plddt: float = 0.01
    resolved: float = 0.0
    violation: float = 0.0
    pae: float = 0.0

    def __post_init__(self) -> None:
        check_lowest(self, "loss.weights.", 0, *(f.name for f in fields(self)))


@dataclass(frozen=True)
class LossConfig:
    """The training loss.

    Attributes:
        weights: weight of each term.
        clamp_probability: share of chains whose backbone FAPE is clamped at 10 Å (AF2: 0.9).
        resolution: chains resolved to within these bounds (Å) train the heads of confidence (plddt,
            resolved, pae); null trains them on all, those of unknown resolution too.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    clamp_probability: float = 0.9
    resolution: tuple[float, float] | None = (0.1, 3.0)

    def __post_init__(self) -> None:
        check_shares(self, "loss.", "clamp_probability")
        if not any(getattr(self.weights, f.name) for f in fields(self.weights)):
            raise UserError("loss.weights: all are 0, there is nothing to learn from")
        bounds = self.resolution
        if bounds is not None and not 0 <= bounds[0] < bounds[1]:
            raise UserError(f"loss.resolution: {bounds} is not from low to high")


@dataclass(frozen=True)
class DataConfig:
    """Training and validation chains.

    Attributes:
        train: store of the training chains, the folder that `prepare` makes.
        validation: store of the validation chains; null trains without validation.
        mix: further stores of training chains by path, each with the probability that a sample is
            one of its chains; `train` has the rest (OpenFold, ESMFold: 0.75 predicted structures).
        cluster_weight: acceptance of a chain by the size of its cluster: inverse (1/size,
            OpenFold), inverse_sqrt (1/sqrt(size)) or none (1).
        length_weight: acceptance of a chain by clip(length, 256, 512)/512 too (OpenFold).
        crop: longest stretch of residues that a training step sees (AF2: 256, 384 in fine-tuning).
        workers: processes that read chains.
    """

    train: Path
    validation: Path | None = None
    mix: dict[str, float] = field(default_factory=dict)
    cluster_weight: ClusterWeight = "inverse"
    length_weight: bool = True
    crop: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        total = sum(self.mix.values())
        if not (all(share > 0 for share in self.mix.values()) and total < 1):
            raise UserError(
                f"data.mix: {self.mix}: probabilities must be above 0 and leave some to data.train"
            )
        check_lowest(self, "data.", 1, "crop")
        check_lowest(self, "data.", 0, "workers")

    @property
    def shares(self) -> list[tuple[Path, float]]:
        """The training stores, each with the probability that a sample is one of its chains."""
        mixed = [(Path(path), share) for path, share in self.mix.items()]
        return [(self.train, 1.0 - sum(self.mix.values())), *mixed]


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its schedule and clipping (AF2 Suppl. 1.11).

    Epsilon and decay are those of OpenFold, whose training code LoRTA used.

    Attributes:
        lr: learning rate after the warm-up.
        betas: Adam's decay rates of the two moments.
        eps: added to Adam's denominator (OpenFold 1e-5, AF2 1e-6). It damps the steps of parameters
            whose gradients are not much larger.
        eps_adapter: the same for an adapter, whose gradients depend on its rank, scale and start;
            the default damps none of them. null takes `eps`, as adapter.kind full always does.
        warmup_steps: linear warm-up from 0.
        schedule: openfold (x 0.95 at every `decay_steps`), alphafold (once) or constant.
        decay_steps: steps until the learning rate falls.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        ema: decay of the moving average of the trained weights, which is validated and exported
            (AF2 0.999); 0 keeps no history.
        lr_adapter: factor on the learning rate of the language model's parameters.
        lr_trunk: factor on the learning rate of the trunk.
        lr_head: factor on the learning rate of the structure module and heads.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5
    eps_adapter: float | None = 1e-15
    warmup_steps: int = 1000
    schedule: Literal["openfold", "alphafold", "constant"] = "openfold"
    decay_steps: int = 50_000
    clip_norm: float = 0.1
    ema: float = 0.999
    lr_adapter: float = 1.0
    lr_trunk: float = 1.0
    lr_head: float = 1.0

    def __post_init__(self) -> None:
        numbers = (f.name for f in fields(self) if f.type in (int, float))
        check_lowest(self, "optimizer.", 0, *numbers)
        check_above_zero(self, "optimizer.", "eps", "eps_adapter")
        check_lowest(self, "optimizer.", 1, "decay_steps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: {self.betas} are not between 0 and 1")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema: {self.ema} is not from 0 to below 1")


@dataclass(frozen=True)
class EngineConfig:
    """Where and how the training runs.

    Attributes:
        accelerator: cpu, gpu, or auto (a GPU if there is one).
        devices: processes on each node, one device each; null takes what torchrun, srun or the
            deepspeed launcher has started, 1 without them.
        nodes: machines; null takes what the launcher has started.
        deepspeed: a DeepSpeed JSON file; null runs one device plainly and several by DDP.
        precision: float32, or bf16 autocast around language model and trunk (parameters stay
            float32).
        batch_size: chains in one optimizer step, over all devices.
        micro_batch: chains that one device computes at a time; the gradients of a step's chains are
            added up. auto: on a GPU a test of its memory at the start finds the most that fit, and
            how many fit in recycling passes; on a CPU and under ZeRO stage 3 it is 1.
        compile: compile the model and its losses with torch.compile for training. Crops are then
            padded to one length (data.crop), so that they are compiled once. auto: on a GPU.
        cuda_graphs: launch a recycling pass, and the last pass with its losses and gradients, as
            one CUDA graph each. It needs compile. auto: on a GPU, where compile is on.
        steps: optimizer steps.
        validate_every: optimizer steps between validations; the end of a run is one too.
        validation_tokens: residues that a validation batch may have, padding included. Chains of
            similar length share a batch; a longer chain is alone.
        validate_raw: score the weights as they are too, beside their moving average.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = None
    nodes: int | None = None
    deepspeed: Path | None = None
    precision: Precision = "bf16"
    batch_size: int = 32
    micro_batch: int | Auto = "auto"
    compile: bool | Auto = "auto"
    cuda_graphs: bool | Auto = "auto"
    steps: int = 850_000
    validate_every: int = 1000
    validation_tokens: int = 1024
    validate_raw: bool = True

    def __post_init__(self) -> None:
        check_lowest(self, "engine.", 0, "steps")
        counts = ("devices", "nodes", "batch_size", "micro_batch", "validate_every")
        check_lowest(self, "engine.", 1, *counts, "validation_tokens")


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run goes on from after any stop: folders checkpoints/step_<steps> of the run.

    Attributes:
        every: optimizer steps between checkpoints; the end of a run and a SIGTERM make one too.
        keep_last: newest checkpoints that are kept; the one with the best validation score is kept
            besides.
    """

    every: int = 1000
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_lowest(self, "checkpoints.", 1, "every", "keep_last")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        run: folder of the run, made by `train`; without --resume it must be absent or empty.
        data: chains.
        model: the folding model.
        adapter: what is trained inside the language model.
        loss: terms and their weights.
        optimizer: Adam, schedule, clipping.
        engine: devices, precision, batch, steps.
        checkpoints: how often the state of the training is kept, and how many states.
        guard: when a training counts as diverged.
        log: where losses and scores go.
        seed: of initial weights, dropout, order, crops and recycling.
        start_from: folder of a run whose model (the moving average) this one starts with: trunk,
            structure module and heads, and the adapter if that run has one.
        resume: auto goes on from the newest checkpoint of the run's folder, or begins the run where
            there is none. What decides the result must be as it was; devices, engine,
            micro_batch, compile, cuda_graphs, model.chunk, what is recomputed (checkpoint), steps,
            and what is checked, kept or logged may change.
        allow_leaks: train although training chains give validation chains away (released on the day
            of the first validation chain or later, or similar to one); the run lists them in
            leaks.csv, and its config.yaml does not allow them again.
    """

    run: Path
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 0
    start_from: Path | None = None
    resume: Literal["never", "auto"] = "never"
    allow_leaks: bool = False

    def __post_init__(self) -> None:
        check_lowest(self, "", 0, "seed")
        if self.model.kernels == "openfold":
            for name, done in (("compile", "compiled"), ("cuda_graphs", "captured")):
                if getattr(self.engine, name) is True:
                    raise UserError(
                        f"engine.{name}: openfold3's own forward pass (model.kernels) is not {done}"
                    )
        for head in self.model.section.missing_heads if "head" in self.model.freeze else ():
            if getattr(self.loss.weights, head):
                raise UserError(
                    f"loss.weights.{head}: the published weights of {self.model.trunk} have no such"
                    " head, and model.freeze keeps it from learning"
                )

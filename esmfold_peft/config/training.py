"""Settings of `train`: data, loss, optimizer, engine, checkpoints, guard and loggers."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from esmfold_peft.config.adapter import AdapterConfig
from esmfold_peft.config.checks import check_lowest, check_shares
from esmfold_peft.config.model import Auto, ModelConfig
from esmfold_peft.errors import UserError

Precision = Literal["float32", "bf16"]
ClusterWeight = Literal["inverse", "inverse_sqrt", "none"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms (AF2 Suppl. 1.9). The defaults are those of initial training.

    A term of weight 0 is not computed, and its head is not trained.

    Attributes:
        fape: frame aligned point error, half of the backbone and half of the side chains.
        chi: torsion angles and their norm.
        distogram: cross entropy of Cβ distances.
        plddt: cross entropy of predicted lDDT.
        resolved: cross entropy of which atoms are resolved (fine-tuning: 0.01).
        violation: bond lengths and angles between residues, and clashes (fine-tuning: 1).
        pae: cross entropy of aligned errors; PAE and pTM need it (fine-tuning: 0.1).
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
        resolution: only chains with a resolution in this range (Å) train the heads of plddt,
            resolved and pae; null trains them on all chains.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    clamp_probability: float = 0.9
    resolution: tuple[float, float] | None = (0.1, 3.0)

    def __post_init__(self) -> None:
        check_shares(self, "loss.", "clamp_probability")
        if not any(getattr(self.weights, f.name) for f in fields(self.weights)):
            raise UserError("loss.weights: all are 0; at least one term needs a weight")
        bounds = self.resolution
        if bounds is not None and not 0 <= bounds[0] < bounds[1]:
            raise UserError(f"loss.resolution: {bounds}: the first number must be the lower one")


@dataclass(frozen=True)
class DataConfig:
    """Training and validation chains.

    Attributes:
        train: store of the training chains, a folder made by `prepare`.
        validation: store of the validation chains; null trains without validation.
        mix: more stores of training chains, each path with the probability that a sample comes
            from it; `train` has the rest (OpenFold, ESMFold: 0.75 predicted structures).
        cluster_weight: probability to accept a chain by the size of its cluster: inverse (1/size,
            OpenFold), inverse_sqrt (1/sqrt(size)) or none (1).
        length_weight: also accept a chain with probability clip(length, 256, 512)/512 (OpenFold).
        crop: longest stretch of residues in a training step (AF2: 256, 384 in fine-tuning).
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
        eps: Adam's epsilon (OpenFold 1e-5, AF2 1e-6). It damps the updates of parameters whose
            gradients are not much larger.
        eps_adapter: Adam's epsilon for the adapter, whose gradients depend on its rank, scale and
            start. The default damps none of them; null takes `eps`, as adapter.kind full always
            does.
        warmup_steps: steps of linear warm-up from 0.
        schedule: openfold (x 0.95 every `decay_steps`), alphafold (x 0.95 once), linear (falls from
            the end of the warm-up to 0 at `decay_steps`) or constant.
        decay_steps: steps until the learning rate falls, or with linear until it is 0.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        ema: decay of the moving average of the weights, which is validated and exported
            (AF2: 0.999); 0 switches averaging off.
        lr_adapter: factor on the learning rate of the language model's parameters.
        lr_trunk: factor on the learning rate of the trunk.
        lr_head: factor on the learning rate of the structure module and heads.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5
    eps_adapter: float | None = 1e-15
    warmup_steps: int = 1000
    schedule: Literal["openfold", "alphafold", "linear", "constant"] = "openfold"
    decay_steps: int = 50_000
    clip_norm: float = 0.1
    ema: float = 0.999
    lr_adapter: float = 1.0
    lr_trunk: float = 1.0
    lr_head: float = 1.0

    def __post_init__(self) -> None:
        numbers = (f.name for f in fields(self) if f.type in (int, float))
        check_lowest(self, "optimizer.", 0, *numbers)
        for name, eps in (("eps", self.eps), ("eps_adapter", self.eps_adapter)):
            if eps is not None and not eps > 0:
                raise UserError(f"optimizer.{name}: {eps} is not above 0")
        check_lowest(self, "optimizer.", 1, "decay_steps")
        if self.schedule == "linear" and self.decay_steps <= self.warmup_steps:
            raise UserError(
                f"optimizer.decay_steps: {self.decay_steps} is not above optimizer.warmup_steps"
                f" {self.warmup_steps}; the schedule linear needs steps to fall in"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: {self.betas} are not between 0 and 1")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema: {self.ema} is not from 0 to below 1")


@dataclass(frozen=True)
class EngineConfig:
    """Devices, precision, batch and steps.

    Attributes:
        accelerator: cpu, gpu, or auto (a GPU if there is one).
        devices: processes on each node, one device each; null takes what torchrun, srun or the
            deepspeed launcher has started, or 1.
        nodes: number of nodes; null takes what the launcher has started.
        deepspeed: DeepSpeed JSON file; null trains one device plainly and several by DDP.
        precision: float32, or bf16 autocast in the language model and the trunk (parameters stay
            float32).
        batch_size: chains in an optimizer step, over all devices.
        micro_batch: chains that a device computes at a time; gradients are summed over a step's
            micro-batches. auto tests a GPU's memory at the start and takes the most that fit; on a
            CPU and under ZeRO stage 3 it is 1.
        compile: compile the model and its losses with torch.compile; crops are then padded to
            data.crop, so that there is one length. auto: on a GPU.
        cuda_graphs: launch each recycling pass, and the last pass with its losses and gradients,
            as one CUDA graph; needs compile. auto: on a GPU, where compile is on.
        steps: optimizer steps.
        validate_every: optimizer steps between validations; a run also ends with one.
        validation_tokens: most residues in a validation batch, padding included. Chains of similar
            length share a batch; a longer chain is alone.
        validate_raw: validate the raw weights too, not only their moving average.
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
    """Checkpoints, from which a run resumes: folders checkpoints/step_<steps> of the run.

    Attributes:
        every: optimizer steps between checkpoints; the end of a run and a SIGTERM make one too.
        keep_last: number of newest checkpoints to keep, besides the one with the best validation
            score.
    """

    every: int = 1000
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_lowest(self, "checkpoints.", 1, "every", "keep_last")


@dataclass(frozen=True)
class GuardConfig:
    """When a run counts as diverged, which stops it, or as on a plateau, which is reported only.

    LoRTA gives no rule; these are ours. Some seeds of OpenFold learn late.

    Attributes:
        nonfinite_steps: stop after so many steps in a row whose loss or gradient is not finite; 0
            switches this off.
        loss_factor: the loss is too high above this many times its lowest value, both smoothed.
        loss_steps: stop after so many steps in a row with a loss that is too high, counted after
            the warm-up; 0 switches this off.
        smoothing: steps of the exponential average of the loss and the training lDDT-Cα.
        update_limit: stop if the adapter's update ‖ΔW‖ / ‖W‖ of a matrix is above this at a logged
            step (log.every); 0 switches this off. At 10, the last hidden states of an ESM-2 35M of
            random weights keep nothing of their values; layer norms keep the loss finite even then.
            Not computed for full, bitfit and loretta_adp.
        score_floor: lowest validation lDDT-Cα that a run may have at `score_step`.
        score_step: the first validation at this step or later is compared with `score_floor`; null
            compares none.
        plateau_steps: report a plateau after so many steps without a gain; 0 switches this off.
        plateau_gain: smallest rise of the smoothed training lDDT-Cα that counts as a gain.
        plateau_score: above this smoothed training lDDT-Cα no plateau is reported.
    """

    nonfinite_steps: int = 10
    loss_factor: float = 2.0
    loss_steps: int = 2000
    smoothing: int = 100
    update_limit: float = 10.0
    score_floor: float = 0.25
    score_step: int | None = 20_000
    plateau_steps: int = 20_000
    plateau_gain: float = 0.01
    plateau_score: float = 0.4

    def __post_init__(self) -> None:
        names = ("nonfinite_steps", "loss_steps", "plateau_steps", "update_limit")
        check_lowest(self, "guard.", 0, *names)
        check_lowest(self, "guard.", 1, "loss_factor", "smoothing", "score_step")
        check_shares(self, "guard.", "score_floor", "plateau_gain", "plateau_score")


@dataclass(frozen=True)
class LogConfig:
    """Loggers besides metrics.csv, which every run has.

    Attributes:
        every: optimizer steps between two lines.
        tensorboard: also log for TensorBoard, into the run's folder tensorboard/ (needs
            pip install 'esmfold-peft[tensorboard]').
        wandb: also log to this project of Weights & Biases; a resumed run continues its record
            there (needs pip install 'esmfold-peft[wandb]'). Its variables, such as WANDB_MODE,
            apply.
    """

    every: int = 10
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_lowest(self, "log.", 1, "every")
        if self.wandb is not None and not self.wandb.strip():
            raise UserError(f"log.wandb: {self.wandb!r} is no name of a project")


@dataclass(frozen=True)
class TrainConfig:
    """Train an adapter, the trunk and the head on a store of chains.

    `train` fills the folder `run` with the model, checkpoints, metrics.csv and everything that is
    needed to rebuild the model.

    Attributes:
        run: folder for the run; it must be absent or empty, except with --resume.
        data: chains
        model: the folding model
        adapter: the adapter of the language model
        loss: the loss
        optimizer: Adam, schedule, clipping
        engine: devices, precision, batch, steps
        checkpoints: checkpoints
        guard: when a training counts as diverged
        log: loggers
        seed: seed of initial weights, dropout, order, crops and recycling.
        start_from: folder of another run; training starts with its model (the moving average):
            trunk, structure module and heads, and the adapter if that run has one.
        resume: auto resumes from the newest checkpoint in the run's folder, or starts if there is
            none. Settings that decide the result must be unchanged. Devices, engine, micro_batch,
            compile, cuda_graphs, model.chunk, the recompute settings, steps, checkpoints, guard and
            log may change.
        allow_leaks: train although training chains leak validation chains: they were released on
            the day of the first validation chain or later, or are similar to one. The run lists
            them in leaks.csv. Its config.yaml does not keep this permission.
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
            for name in ("compile", "cuda_graphs"):
                if getattr(self.engine, name) is True:
                    raise UserError(
                        f"engine.{name}: not possible with model.kernels openfold; choose fused"
                    )
        steps, falls = self.engine.steps, self.optimizer.decay_steps
        if self.optimizer.schedule == "linear" and steps > falls:
            raise UserError(
                f"optimizer.decay_steps: {falls} is below engine.steps {steps}; with the schedule"
                " linear, later steps would change nothing"
            )
        for head in self.model.section.missing_heads if "head" in self.model.freeze else ():
            if getattr(self.loss.weights, head):
                raise UserError(
                    f"loss.weights.{head}: the published weights of {self.model.trunk} have no such"
                    " head, and model.freeze keeps it from learning; set it to 0"
                )

"""The divergence search: its grid, its ladder, and what runs its trials."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from esmfold_peft.config.adapter import WITHOUT_RANK, AdapterConfig, AdapterKind, Init, has_start
from esmfold_peft.config.checks import check_lowest
from esmfold_peft.config.model import ModelConfig
from esmfold_peft.config.training import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    GuardConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
)
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class LadderConfig:
    """The ladder that searches α, as LoRTA does (except `beat_frozen`).

    The first trials have α = 256·r and 128·r. If all trials of a rung are out, the next rung
    divides their α by four: a pair spans two halvings.

    Attributes:
        multiples: α / rank of the first trials; with the paper's scaling alpha/r this is the scale
            of the update.
        factor: divides all multiples when every trial of them is out.
        floor: lowest multiple to try; the search of an adapter ends without a winner below it.
        metric: a trial's score is the validation lDDT-Cα of the moving average (ema) or of the raw
            weights (raw).
        select: a trial's score is that of its last or of its best validation.
        halve_at: after so many optimizer steps only the best of the trials that are not out
            continues; null trains all to the end.
        beat_frozen: a trial is also out if its score is not above that of the grid's frozen model
            (none) of the same seed at the same step. false follows the paper's text, where only
            diverged trials are out.
    """

    multiples: tuple[float, ...] = (256.0, 128.0)
    factor: float = 4.0
    floor: float = 0.5
    metric: Literal["ema", "raw"] = "ema"
    select: Literal["last", "best"] = "last"
    halve_at: int | None = None
    beat_frozen: bool = True

    def __post_init__(self) -> None:
        if not self.multiples or len(set(self.multiples)) < len(self.multiples):
            raise UserError(
                f"ladder.multiples: {list(self.multiples)}: give at least one, and each once"
            )
        for multiple in self.multiples:
            if not 0 < multiple < float("inf"):
                raise UserError(f"ladder.multiples: {multiple:g} is not above 0 and finite")
        if not self.factor >= 1.1:
            raise UserError(f"ladder.factor: {self.factor:g} is less than 1.1")
        if not self.floor > 0:
            raise UserError(f"ladder.floor: {self.floor:g} is not above 0")
        if self.floor > min(self.multiples):
            raise UserError(
                f"ladder.floor: {self.floor:g} is above {min(self.multiples):g}, one of the"
                " ladder.multiples, which would then not be tried"
            )
        check_lowest(self, "ladder.", 1, "halve_at")


@dataclass(frozen=True)
class ExecutorConfig:
    """The program that runs the trials.

    Attributes:
        kind: local (processes on this machine; they survive a killed search, and Ctrl-C stops
            them), ray (actors of a Ray cluster; they survive the search in any case; needs pip
            install 'esmfold-peft[ray]') or slurm (jobs through submitit; needs pip install
            'esmfold-peft[slurm]').
        concurrent: trials at a time; on this machine each has `engine.devices` GPUs of its own.
        retries: how often a lost or failed trial is started again before the search gives it up;
            running the same command again retries it too.
        poll_seconds: seconds between looks at the trials.
        cpus: CPUs of each trial (ray and slurm).
        gpus: GPUs of each trial (ray); 0.5 puts two trials on one GPU; null takes engine.devices,
            or none where engine.accelerator is cpu.
        address: address of the Ray cluster; null takes RAY_ADDRESS, or starts Ray here.
        slurm: options of the jobs by submitit's names, for example {slurm_partition: gpu,
            timeout_min: 1440}.
    """

    kind: Literal["local", "ray", "slurm"] = "local"
    concurrent: int = 1
    retries: int = 3
    poll_seconds: float = 5.0
    cpus: int = 1
    gpus: float | None = None
    address: str | None = None
    slurm: dict[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_lowest(self, "executor.", 1, "concurrent", "cpus")
        check_lowest(self, "executor.", 0, "retries", "poll_seconds", "gpus")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise UserError(f"executor.gpus: {self.gpus:g} must be below 1 or a whole number")
        if "name" in self.slurm or "slurm_job_name" in self.slurm:
            raise UserError("executor.slurm: the search sets the name of its jobs; remove it here")


@dataclass(frozen=True)
class SearchConfig:
    """Search α for each adapter of a grid of methods, ranks and seeds, by LoRTA's ladder.

    Each trial is a training run. Settings that are not described here are those of `train` and
    hold for every trial; the grid sets the adapter's kind, rank and alpha, and the seed.

    Attributes:
        output: folder of the search; the same command resumes a search that is there.
        data: chains; data.validation is needed
        grid: ranks of each kind of adapter, for example {lora: [1], lorta: [1, 8, 64], none: [],
            full: []}; a kind without a rank has an empty list.
        seeds: each adapter and rank is searched once for each seed.
        init: start of the factors by kind, where it is not adapter.init, for example {lorta:
            paper}.
        ladder: which α are tried, and how a winner is chosen
        executor: the program that runs the trials
        model: the folding model
        adapter: settings that all adapters share
        loss: the loss
        optimizer: Adam, schedule, clipping
        engine: devices, precision, batch, and the steps of a trial
        checkpoints: checkpoints of a trial
        guard: when a trial counts as diverged, which ends it at once
        log: loggers
        start_from: folder of a run; all trials start with its model.
        allow_leaks: train although training chains leak validation chains.
    """

    output: Path
    data: DataConfig
    grid: dict[str, list[int]]
    seeds: tuple[int, ...] = (0,)
    init: dict[str, Init] = field(default_factory=dict)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log: LogConfig = field(default_factory=LogConfig)
    start_from: Path | None = None
    allow_leaks: bool = False

    def __post_init__(self) -> None:
        _check_grid(self.grid)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds: {list(self.seeds)}: give at least one, each once, from 0 on")
        unknown = sorted(self.init.keys() - self.grid.keys())
        if unknown:
            raise UserError(f"init: {unknown[0]} is not in the grid")
        for kind in self.grid:
            if not has_start(kind, init := self.init.get(kind, self.adapter.init)):
                raise UserError(f"init: {init} has no meaning for {kind}, which is in the grid")
        if self.data.validation is None:
            raise UserError(
                "data.validation: missing; a search scores its trials on validation chains"
            )
        if self.ladder.metric == "raw" and not self.engine.validate_raw:
            raise UserError("ladder.metric: raw needs engine.validate_raw")
        if self.engine.steps < 1:
            raise UserError(f"engine.steps: {self.engine.steps}: a trial needs at least 1")
        at = self.ladder.halve_at
        if at is not None and not at < self.engine.steps:
            raise UserError(
                f"ladder.halve_at: {at} is not before the end of a trial"
                f" (engine.steps {self.engine.steps})"
            )

    @property
    def devices(self) -> int:
        """Processes of a trial, each with a device of its own."""
        return self.engine.devices or 1


@dataclass(frozen=True)
class SearchStatusConfig:
    """Show the status of a search: its trials, what it has cost and saved, and the time left.

    Attributes:
        output: folder of the search.
        json: print JSON.
    """

    output: Path
    json: bool = False


@dataclass(frozen=True)
class SearchReportConfig:
    """Write a search's table, figures and page into its folder report/.

    Attributes:
        output: folder of the search.
    """

    output: Path


def _check_grid(grid: dict[str, list[int]]) -> None:
    if not grid:
        raise UserError("grid: empty; name at least one kind of adapter")
    for kind, ranks in grid.items():
        if kind not in get_args(AdapterKind):
            raise UserError(f"grid: {kind!r} is none of {', '.join(get_args(AdapterKind))}")
        if kind in WITHOUT_RANK and ranks:
            raise UserError(f"grid.{kind}: {ranks}: this kind has no rank; give []")
        if kind not in WITHOUT_RANK and not ranks:
            raise UserError(f"grid.{kind}: empty; give at least one rank")
        if len(set(ranks)) < len(ranks) or any(rank < 1 for rank in ranks):
            raise UserError(f"grid.{kind}: {ranks}: give each rank once, from 1 on")

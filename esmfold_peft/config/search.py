"""The divergence search: its grid, its ladder, and what runs its trials."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from esmfold_peft.config.adapter import WITHOUT_RANK, AdapterConfig, AdapterKind, Init, has_start
from esmfold_peft.config.checks import check_lowest
from esmfold_peft.config.guard import GuardConfig
from esmfold_peft.config.logging import LogConfig
from esmfold_peft.config.model import ModelConfig
from esmfold_peft.config.training import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    LossConfig,
    OptimizerConfig,
)
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class LadderConfig:
    """How α is searched: LoRTA's first pair is 256·r and 128·r, divided by four while both diverge.

    Attributes:
        multiples: α / rank of the first trials; with the paper's scaling alpha/r this is the scale
            of the update.
        factor: all multiples are divided by this when every trial of them is out.
        floor: lowest multiple that is tried; the search of an adapter ends without a winner when
            the next ones would be below.
        metric: ema scores a trial by the validation lDDT-Cα of the moving average, raw by that of
            the weights as they are.
        select: the last validation of a trial is its score, or the best.
        halve_at: optimizer steps after which only the better of the trials that are not out goes
            on; null trains all to the end.
        beat_frozen: a trial is out, as if it had diverged, if its score is not above that of the
            grid's frozen model (none) with the same seed at the same step; false does what the
            paper's text says, where only trials that diverge are out.
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
            raise UserError(f"ladder.multiples: {list(self.multiples)}: none, or one twice")
        for multiple in self.multiples:
            if not 0 < multiple < float("inf"):
                raise UserError(f"ladder.multiples: {multiple:g} is not above 0 and finite")
        if not self.factor >= 1.1:
            raise UserError(f"ladder.factor: {self.factor:g} is less than 1.1")
        if not self.floor > 0:
            raise UserError(f"ladder.floor: {self.floor:g} is not above 0")
        if self.floor > min(self.multiples):
            raise UserError(
                f"ladder.floor: {self.floor:g} is above {min(self.multiples):g} of the first"
                " multiples, which would not be tried"
            )
        check_lowest(self, "ladder.", 1, "halve_at")


@dataclass(frozen=True)
class ExecutorConfig:
    """What runs the trials.

    Attributes:
        kind: local (processes on this machine, which outlive the search if it is killed; Ctrl-C
            stops them too), ray (actors of a Ray cluster, which outlive it in any case; needs pip
            install 'esmfold-peft[ray]') or slurm (jobs through submitit; needs pip install
            'esmfold-peft[slurm]').
        concurrent: trials at a time; on this machine each has `engine.devices` GPUs of its own.
        retries: how often a trial that was lost or has failed is begun again before the search
            gives it up; the same command tries it again.
        poll_seconds: between looks at the trials.
        cpus: of each trial (ray and slurm).
        gpus: of each trial (ray); a half puts two on one GPU; null takes engine.devices, and none
            where engine.accelerator is cpu.
        address: of the Ray cluster; null takes RAY_ADDRESS, and without it starts Ray here.
        slurm: options of the jobs by the names of submitit, for example {slurm_partition: gpu,
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
            raise UserError(f"executor.gpus: {self.gpus:g} is neither a share of one nor whole")
        if "name" in self.slurm or "slurm_job_name" in self.slurm:
            raise UserError("executor.slurm: the search names its jobs, to find them again")


@dataclass(frozen=True)
class SearchConfig:
    """Search each adapter's α by the ladder of LoRTA, over a grid of adapters, ranks and seeds.

    Settings without a description of their own are those of `train`, for every trial; what the grid
    says of the adapter (kind, rank, alpha, seed) comes from the grid.

    Attributes:
        output: folder of the search; the same command goes on with one that is there.
        data: chains; validation chains are needed.
        grid: ranks of each kind of adapter, for example {lora: [1], lorta: [1, 8, 64], none: [],
            full: []}; kinds without a rank have none.
        seeds: each adapter and rank is searched once with each.
        init: start of the factors by kind, where it is not adapter.init, for example {lorta:
            paper}.
        ladder: which α are tried, and what decides.
        executor: what runs the trials.
        model: the folding model.
        adapter: what is common to all adapters.
        loss: terms and their weights.
        optimizer: Adam, schedule, clipping.
        engine: devices, precision, batch, and the steps of a trial.
        checkpoints: how often the state of a trial is kept, and how many states.
        guard: when a trial counts as diverged, which ends it at once.
        log: where losses and scores go.
        start_from: folder of a run whose model all trials start with.
        allow_leaks: train although training chains give validation chains away.
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
            raise UserError(f"seeds: {list(self.seeds)}: none, one twice, or below 0")
        unknown = sorted(self.init.keys() - self.grid.keys())
        if unknown:
            raise UserError(f"init: {unknown[0]} is not in the grid")
        for kind in self.grid:
            if not has_start(kind, init := self.init.get(kind, self.adapter.init)):
                raise UserError(f"init: {init} has no meaning for {kind}, which is in the grid")
        if self.data.validation is None:
            raise UserError("data.validation: a search needs validation chains to choose by")
        if self.ladder.metric == "raw" and not self.engine.validate_raw:
            raise UserError("ladder.metric: raw needs engine.validate_raw")
        if self.engine.steps < 1:
            raise UserError(f"engine.steps: {self.engine.steps}: a trial has at least 1")
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
    """Show how a search stands: its tree, what it has cost and saved, and how long it may take.

    Attributes:
        output: folder of the search.
        json: the same as JSON, on stdout.
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
        raise UserError("grid: no adapters")
    for kind, ranks in grid.items():
        if kind not in get_args(AdapterKind):
            raise UserError(f"grid: {kind!r} is none of {', '.join(get_args(AdapterKind))}")
        if kind in WITHOUT_RANK and ranks:
            raise UserError(f"grid.{kind}: {ranks}: it has no rank; give []")
        if kind not in WITHOUT_RANK and not ranks:
            raise UserError(f"grid.{kind}: no ranks")
        if len(set(ranks)) < len(ranks) or any(rank < 1 for rank in ranks):
            raise UserError(f"grid.{kind}: {ranks}: a rank twice, or below 1")

"""The grid above the ladders: adapters, ranks and seeds, and the settings of each trial."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from esmfold_peft.config import AdapterConfig, SearchConfig, TrainConfig
from esmfold_peft.config.adapter import WITHOUT_ALPHA, unused_settings
from esmfold_peft.config.unused import without_unused
from esmfold_peft.search.attempt import RUN
from esmfold_peft.search.ladder import Rules, Trial, rungs_of

FROZEN = "none"
"""The kind of adapter of the frozen baseline."""

_COMMON = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(SearchConfig)}


@dataclass(frozen=True, order=True)
class Arm:
    """An adapter, rank and seed: each has a ladder of its own. The rank is None where it has none.

    A kind of adapter without an α is trained once.
    """

    kind: str
    rank: int | None
    seed: int

    @property
    def label(self) -> str:
        """The adapter for people, without the seed: "lorta r=8"."""
        return self.kind if self.rank is None else f"{self.kind} r={self.rank}"

    def called(self, trial: Trial | None = None) -> str:
        """The ladder for people, or one trial of it: "lorta r=8, seed 0, α=2048"."""
        alpha = None if trial is None else self.alpha(trial)
        return f"{self.label}, seed {self.seed}" + ("" if alpha is None else f", α={alpha:g}")

    @property
    def name(self) -> str:
        """Name of its folder."""
        rank = "" if self.rank is None else f"_r{self.rank}"
        return f"{self.kind}{rank}_seed{self.seed}"

    @property
    def has_alpha(self) -> bool:
        """Whether there is an α to search."""
        return self.kind not in WITHOUT_ALPHA

    def alpha(self, trial: Trial) -> float | None:
        """α of a trial; None where there is none."""
        return trial.multiple * (self.rank or 1) if self.has_alpha else None


def arms_of(config: SearchConfig) -> list[Arm]:
    """All arms in the order of the grid; the seeds of one adapter follow each other."""
    return [
        Arm(kind, rank, seed)
        for kind, ranks in config.grid.items()
        for rank in (ranks or [None])
        for seed in config.seeds
    ]


def in_turn(arms: Iterable[Arm]) -> list[Arm]:
    """Arms in the order in which they begin: first the frozen ones, which the others must beat."""
    return sorted(arms, key=lambda arm: arm.kind != FROZEN)


def baseline_of(config: SearchConfig, arm: Arm) -> Arm | None:
    """The frozen arm that an arm's trials must beat; None: only divergence counts."""
    beats = config.ladder.beat_frozen and arm.has_alpha and FROZEN in config.grid
    return Arm(FROZEN, None, arm.seed) if beats else None


def rules_of(config: SearchConfig, arm: Arm) -> Rules:
    """The ladder of an arm; one trial where there is no α."""
    ladder, steps = config.ladder, config.engine.steps
    halve_at = ladder.halve_at if len(ladder.multiples) > 1 else None
    if arm.has_alpha:
        return Rules(rungs_of(ladder), steps, halve_at)
    # The frozen trial stops where the halving compares the others with it.
    return Rules(((1.0,),), steps, halve_at if arm.kind == FROZEN else None)


def trial_folder(output: Path, arm: Arm, trial: Trial) -> Path:
    """Folder of a trial; the same for its part up to the halving and for the whole."""
    alpha = arm.alpha(trial)
    return output / "trials" / arm.name / ("run" if alpha is None else f"alpha_{alpha:.15g}")


def trial_config(config: SearchConfig, arm: Arm, trial: Trial) -> TrainConfig:
    """The settings of a trial's training, without those that its kind of adapter does not use."""
    return without_unused(shared_config(config, arm, trial))


def shared_config(config: SearchConfig, arm: Arm, trial: Trial) -> TrainConfig:
    """The settings of a trial, with all that the search sets for every trial."""
    common = {name: getattr(config, name) for name in _COMMON}
    adapter = {f.name: getattr(config.adapter, f.name) for f in fields(AdapterConfig)}
    adapter |= {"kind": arm.kind, "rank": arm.rank, "alpha": arm.alpha(trial)}
    adapter["init"] = config.init.get(arm.kind, config.adapter.init)
    own = {name: adapter[name] for name in adapter.keys() - unused_settings(arm.kind)}
    return TrainConfig(
        **common
        | {
            "run": trial_folder(config.output, arm, trial) / RUN,
            "adapter": AdapterConfig(**own),
            "engine": replace(config.engine, steps=trial.steps),
            "seed": arm.seed,
            "resume": "auto",
        }
    )

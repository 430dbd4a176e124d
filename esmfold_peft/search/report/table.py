"""Table 10 of a search: one row for each adapter and rank, over its seeds."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from esmfold_peft.search.ladder import OUT
from esmfold_peft.search.outcomes import endings_text
from esmfold_peft.search.records import LadderRecord, SearchRecord, TrialRecord
from esmfold_peft.search.report.logged import LOGGED_COLUMNS, logged_cells
from esmfold_peft.search.report.paper import TABLE_10

NAMES = {"lora": "LoRA", "lorta": "LoRTA", "none": "frozen", "full": "full"}
"""As papers write them; other kinds keep their names of the settings."""

COLUMNS = (
    "model", "parameters", "alpha", "validation_lddt_ca", "validation_spread", "seeds",
    "train_lddt_ca", "train_spread", "ending", "paper_alpha", "paper_lddt_ca",
)  # fmt: skip
TRIAL_COLUMNS = (
    "model", "seed", "alpha", "multiple", "state", "step", "steps", "score", "rule", "message",
    "attempts", "gpu_hours", *LOGGED_COLUMNS,
)  # fmt: skip
WINNER_COLUMNS = ("model", "seed", "alpha", *LOGGED_COLUMNS)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: None without a seed.
        spread: sample standard deviation; None below two seeds.
        seeds: how many have a number.
    """

    value: float | None
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """An adapter and rank.

    Attributes:
        kind: of the adapter.
        rank: of its factors; None where it has none.
        ladders: one for each seed.
    """

    kind: str
    rank: int | None
    ladders: tuple[LadderRecord, ...]

    @property
    def label(self) -> str:
        """As the paper writes it."""
        return label_of(self.kind, self.rank)

    @property
    def winners(self) -> list[TrialRecord]:
        """Of the seeds that have one."""
        return [ladder.winner for ladder in self.ladders if ladder.winner is not None]

    @property
    def parameters(self) -> int | None:
        """Trained ones in the language model; None if not known yet."""
        if self.kind == "none":
            return 0
        trials = (trial for ladder in self.ladders for trial in ladder.trials)
        return next((t.parameters for t in trials if t.parameters is not None), None)

    @property
    def validation(self) -> Mean:
        """lDDT-Cα of the validation chains."""
        return mean_of(winner.score for winner in self.winners)

    @property
    def train(self) -> Mean:
        """lDDT-Cα in training."""
        return mean_of(winner.train_score for winner in self.winners)


def label_of(kind: str, rank: int | None) -> str:
    """An adapter as the paper writes it, for example "LoRTA r=8"."""
    name = NAMES.get(kind, kind)
    return name if rank is None else f"{name} r={rank}"


def mean_of(values: Iterable[float | None]) -> Mean:
    """Mean and sample standard deviation of those that are finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    spread = statistics.stdev(known) if len(known) > 1 else None
    return Mean(statistics.fmean(known) if known else None, spread, len(known))


def rows_of(record: SearchRecord) -> list[Row]:
    """Rows in the order of the grid."""
    grouped: dict[tuple[str, int | None], list[LadderRecord]] = {}
    for ladder in record.ladders:
        grouped.setdefault((ladder.arm.kind, ladder.arm.rank), []).append(ladder)
    return [Row(kind, rank, tuple(ladders)) for (kind, rank), ladders in grouped.items()]


def cells_of(row: Row) -> list[str]:
    """A row of table10.csv."""
    paper = TABLE_10.get((row.kind, row.rank))
    return [
        row.label,
        "" if row.parameters is None else str(row.parameters),
        _alphas(row),
        number(row.validation.value),
        number(row.validation.spread),
        f"{row.validation.seeds} of {len(row.ladders)}",
        number(row.train.value),
        number(row.train.spread),
        _endings(row),
        "" if paper is None else f"{paper.alpha:g}",
        "" if paper is None else f"{paper.lddt_ca:.3f}",
    ]


def trial_cells(trial: TrialRecord) -> list[str]:
    """A row of trials.csv."""
    return [
        *_named(trial),
        f"{trial.trial.multiple:g}" if trial.arm.has_alpha else "",
        trial.state + (", beaten at halving" if trial.beaten else ""),
        str(trial.step),
        str(trial.trial.steps),
        number(trial.score),
        trial.rule or "",
        trial.message or "",
        str(trial.attempts),
        f"{trial.gpu_seconds / 3600:.2f}",
        *logged_cells(trial),
    ]


def winner_cells(trial: TrialRecord) -> list[str]:
    """A row of the table of winners: what they have logged for a comparison."""
    return [*_named(trial), *logged_cells(trial)]


def ended_by(record: SearchRecord) -> list[str]:
    """A sentence for each trial that has diverged."""
    return [_divergence(trial) for trial in record.trials if trial.state == "diverged"]


def below_frozen(record: SearchRecord) -> list[str]:
    """A sentence for each trial that does not beat the frozen one of its seed."""
    return [
        f"{_called(trial)}: at step {trial.step} {trial.message}"
        for trial in record.trials
        if trial.state == "below frozen"
    ]


def number(value: float | None) -> str:
    """Four decimals; nothing for what is not known."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4f}"


def ending_of(ladder: LadderRecord) -> str:
    """How a ladder stands."""
    if ladder.winner is not None:
        return ladder.winner.state
    if ladder.exhausted:
        out = [trial.state for trial in ladder.trials if trial.state in OUT]
        return f"no survivor ({endings_text(out)} down to the floor)"
    if ladder.waits:
        return "waits for the frozen trial"
    if not ladder.trials:
        return "not begun"
    states = {trial.state for trial in ladder.trials}
    return next(
        (state for state in ("running", "failed", "interrupted") if state in states), "open"
    )


def _alphas(row: Row) -> str:
    found = {
        ladder.arm.seed: f"{ladder.winner.alpha:g}"
        for ladder in row.ladders
        if ladder.winner is not None and ladder.winner.alpha is not None
    }
    if len(set(found.values())) < 2:
        return next(iter(found.values()), "")
    return ", ".join(f"{alpha} (seed {seed})" for seed, alpha in found.items())


def _endings(row: Row) -> str:
    endings = {ladder.arm.seed: ending_of(ladder) for ladder in row.ladders}
    if len(set(endings.values())) == 1:
        return next(iter(endings.values()))
    return ", ".join(f"{ending} (seed {seed})" for seed, ending in endings.items())


def _named(trial: TrialRecord) -> list[str]:
    alpha = "" if trial.alpha is None else f"{trial.alpha:g}"
    return [label_of(trial.arm.kind, trial.arm.rank), str(trial.arm.seed), alpha]


def _called(trial: TrialRecord) -> str:
    label, seed, alpha = _named(trial)
    return f"{label}, seed {seed}" + (f", α = {alpha}" if alpha else "")


def _divergence(trial: TrialRecord) -> str:
    rule = f"rule {trial.rule}" if trial.rule else "unknown rule"
    said = f": {trial.message}" if trial.message else ""
    return f"{_called(trial)}: ended by {rule} at step {trial.step}{said}"

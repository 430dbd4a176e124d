"""The tables of the report: adapters and ranks (Table 10), pairs of them, and trials."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from esmfold_peft.config import LadderConfig
from esmfold_peft.evaluation.comparison import Difference, difference
from esmfold_peft.evaluation.summary import mean_interval
from esmfold_peft.search import trial_files
from esmfold_peft.search.grid import FROZEN, Arm
from esmfold_peft.search.ladder import OUT
from esmfold_peft.search.search_record import LadderRecord, SearchRecord, TrialRecord
from esmfold_peft.training.metrics_file import RELATIVE_UPDATE

Table = tuple[Sequence[str], list[list[str]]]
"""Names of columns, and rows of cells."""

NAMES = {"lora": "LoRA", "lorta": "LoRTA", "none": "frozen", "full": "full"}
"""As papers write them; other kinds keep their names of the settings."""

_PAPER: dict[tuple[str, int | None], tuple[str, str]] = {
    ("lora", 1): ("128", "0.668"),
    ("lorta", 64): ("128", "0.663"),
    ("lorta", 8): ("256", "0.667"),
    ("lorta", 1): ("2", "0.656"),
}
"""α and validation lDDT-Cα of Table 10 of LoRTA (arXiv 2410.04060), by kind and rank."""

_ROW_COLUMNS = (
    "model", "parameters", "alpha", "validation_lddt_ca", "validation_low", "validation_high",
    "validation_spread", "seeds", "train_lddt_ca", "train_spread", "ending", "paper_alpha",
    "paper_lddt_ca",
)  # fmt: skip
_PAIR_COLUMNS = (
    "one", "other", "seeds", "chains", "one_lddt_ca", "other_lddt_ca", "difference",
    "low", "high", "p", "wins", "ties", "losses",
)  # fmt: skip
LOGGED_COLUMNS = (
    "gradient_share_adapter", "gradient_share_trunk", "gradient_share_head",
    "relative_update", "damping",
)  # fmt: skip
_TRIAL_COLUMNS = (
    "model", "seed", "alpha", "multiple", "state", "step", "steps", "score", "rule", "message",
    "attempts", "gpu_hours", *LOGGED_COLUMNS,
)  # fmt: skip


ScoreName = Literal["score", "train_score"]
Scores = dict[int, dict[str, float]]
"""lDDT-Cα by seed and validation chain."""


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, None without a seed; sample standard deviation, None below two seeds.

    low and high: 95 % interval of the mean over seeds and chains (`mean_interval`); None in
    training, or where a seed has no table of its chains, or fewer than five.
    """

    mean: float | None
    spread: float | None
    seeds: int
    low: float | None
    high: float | None
    chains: int


@dataclass(frozen=True)
class Row:
    """An adapter and rank, with a ladder for each seed, and the scores of the winners' chains."""

    kind: str
    rank: int | None
    ladders: tuple[LadderRecord, ...]
    scores: Scores

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

    def mean(self, score: ScoreName) -> Mean:
        """Mean of the winners' lDDT-Cα: of the validation chains, or in training."""
        known = [v for w in self.winners if (v := getattr(w, score)) is not None]
        spread = statistics.stdev(known) if len(known) > 1 else None
        complete = score == "score" and len(self.scores) == len(known)
        (chains,) = common_scores(self.scores if complete else {})
        average = statistics.fmean(known) if known else None
        return Mean(average, spread, len(known), *mean_interval(chains), chains.shape[1])


def rows_of(record: SearchRecord) -> list[Row]:
    """Adapters and ranks in the order of the grid."""
    grouped: dict[tuple[str, int | None], list[LadderRecord]] = {}
    for ladder in record.ladders:
        grouped.setdefault((ladder.arm.kind, ladder.arm.rank), []).append(ladder)
    return [
        Row(*arm, tuple(ladders), _winners_scores(ladders, record.config.ladder))
        for arm, ladders in grouped.items()
    ]


def _winners_scores(ladders: Sequence[LadderRecord], config: LadderConfig) -> Scores:
    """The chains' scores in the validation by which the ladder has judged each winner."""
    found: Scores = {}
    for winner in (ladder.winner for ladder in ladders if ladder.winner is not None):
        at = trial_files.scored_at(winner.folder, winner.trial.steps, config)
        if at and (scores := trial_files.chain_scores(winner.folder, at[0], config)):
            found[winner.arm.seed] = scores
    return found


def common_scores(*adapters: Scores) -> Float64[np.ndarray, "adapters seeds n"]:
    """The scores for the seeds that all adapters have, and the chains that all of these have."""
    seeds = sorted(set[int].intersection(*map(set, adapters)))
    scored = [set(scores[seed]) for scores in adapters for seed in seeds]
    chains = sorted(set[str].intersection(*scored)) if scored else []
    values = [scores[seed][chain] for scores in adapters for seed in seeds for chain in chains]
    return np.array(values, dtype=np.float64).reshape(len(adapters), len(seeds), len(chains))


def label_of(adapter: Row | Arm) -> str:
    """An adapter as the paper writes it, for example "LoRTA r=8"."""
    name = NAMES.get(adapter.kind, adapter.kind)
    return name if adapter.rank is None else f"{name} r={adapter.rank}"


def called(arm: Arm, alpha: float | None = None) -> str:
    """The same with its seed, and an α if it is given."""
    return f"{label_of(arm)}, seed {arm.seed}" + ("" if alpha is None else f", α = {alpha:g}")


def table10(record: SearchRecord) -> Table:
    """A row for each adapter and rank, with the paper's numbers."""
    return _ROW_COLUMNS, [_row_cells(row) for row in rows_of(record)]


def _row_cells(row: Row) -> list[str]:
    validation, train = row.mean("score"), row.mean("train_score")
    return [
        label_of(row),
        "" if row.parameters is None else str(row.parameters),
        _by_seed({w.arm.seed: f"{w.alpha:g}" for w in row.winners if w.alpha is not None}),
        *map(number, (validation.mean, validation.low, validation.high, validation.spread)),
        f"{validation.seeds} of {len(row.ladders)}",
        number(train.mean),
        number(train.spread),
        _by_seed({ladder.arm.seed: ending_of(ladder) for ladder in row.ladders}),
        *_PAPER.get((row.kind, row.rank), ("", "")),
    ]


def _by_seed(texts: dict[int, str]) -> str:
    """A text that all seeds share once; else each with its seed."""
    if len(set(texts.values())) < 2:
        return next(iter(texts.values()), "")
    return ", ".join(f"{text} (seed {seed})" for seed, text in texts.items())


def ending_of(ladder: LadderRecord) -> str:
    """The end of a ladder, or its state."""
    states = [trial.state for trial in ladder.trials]
    if ladder.winner is not None:
        return ladder.winner.state
    if ladder.exhausted:
        endings = trial_files.endings_text(state for state in states if state in OUT)
        return f"no survivor ({endings} down to the floor)"
    if ladder.waits:
        return "waits for the frozen trial"
    if not states:
        return "not begun"
    return next((s for s in ("running", "failed", "interrupted") if s in states), "open")


def trials_table(record: SearchRecord) -> Table:
    """A row for each trial."""
    return _TRIAL_COLUMNS, [
        [
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
        for trial in record.trials
    ]


def winners_table(record: SearchRecord) -> Table:
    """The numbers that each winner has logged for a comparison."""
    rows = [[*_named(trial), *logged_cells(trial)] for trial in record.winners]
    return ("model", "seed", "alpha", *LOGGED_COLUMNS), rows


def _named(trial: TrialRecord) -> list[str]:
    alpha = "" if trial.alpha is None else f"{trial.alpha:g}"
    return [label_of(trial.arm), str(trial.arm.seed), alpha]


def logged_cells(trial: TrialRecord) -> list[str]:
    """Cells of `LOGGED_COLUMNS`; empty where a trial logs no such number.

    Shares of the squared norm of the gradient are means over the last lines of metrics.csv. The
    relative update ‖ΔW‖/‖W‖, largest over layers and matrices, and the damping √v̂/(√v̂ + eps) of
    Adam's step, one number for each factor, are the last ones.
    """
    steps = ((row.get("step") or "", row) for row in trial_files.metrics_rows(trial.folder))
    rows = [row for step, row in steps if step.isdecimal() and int(step) <= trial.trial.steps]

    def mean(name: str, lines: int) -> str:
        values = [value for _, value in trial_files.column(rows, name)[-lines:]]
        return f"{statistics.fmean(values):.3g}" if values else ""

    factors = [name for name in (rows[0] if rows else {}) if name.startswith("damping/")]
    damping = {name.removeprefix("damping/"): mean(name, 1) for name in factors}
    return [
        *(
            mean(f"gradient_share/{group}", trial_files.LAST_LINES)
            for group in ("adapter", "trunk", "head")
        ),
        mean(RELATIVE_UPDATE, 1),
        ", ".join(f"{factor} {cell}" for factor, cell in damping.items() if cell),
    ]


def diverged_trials(record: SearchRecord) -> list[str]:
    """A sentence for each trial that has diverged."""
    return [
        f"{called(trial.arm, trial.alpha)}: ended by"
        f" {f'rule {trial.rule}' if trial.rule else 'unknown rule'} at step {trial.step}"
        + (f": {trial.message}" if trial.message else "")
        for trial in record.trials
        if trial.state == "diverged"
    ]


def trials_below_frozen(record: SearchRecord) -> list[str]:
    """A sentence for each trial that does not beat the frozen one of its seed."""
    below = [trial for trial in record.trials if trial.state == "below frozen"]
    return [
        f"{called(trial.arm, trial.alpha)}: at step {trial.step} {trial.message}" for trial in below
    ]


def number(value: float | None) -> str:
    """Four decimals; "" if it is not known."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4f}"


@dataclass(frozen=True)
class ArmPair:
    """Labels of two adapters, how many seeds both have, and second minus first."""

    one: str
    other: str
    seeds: int
    difference: Difference


def pairs_of(record: SearchRecord) -> tuple[list[ArmPair], list[str]]:
    """Compares the winners of every two adapters, first each with the frozen model.

    The differences are of the same chain and the same seed, in the validation by which the ladder
    has judged; the interval is over seeds and chains (`difference`).

    Returns:
        The pairs, and a sentence for each adapter and seed, or pair, with nothing to compare.
    """
    pairs: list[ArmPair] = []
    rows = rows_of(record)
    missing = [why for row in rows for ladder in row.ladders if (why := _why_missing(row, ladder))]
    scored = sorted((row for row in rows if row.scores), key=lambda row: row.kind != FROZEN)
    for one, other in combinations(scored, 2):
        scores = common_scores(one.scores, other.scores)
        labels = label_of(one), label_of(other)
        if scores[0].size:
            pairs.append(ArmPair(*labels, len(scores[0]), difference("lddt_ca", *scores)))
        else:
            missing.append(f"{' and '.join(labels)} have no chain of the same seed in common.")
    return pairs, missing


def pairs_table(pairs: Sequence[ArmPair]) -> Table:
    """A row for each pair."""
    return _PAIR_COLUMNS, [
        [
            *(pair.one, pair.other, str(pair.seeds), str(d.count)),
            *map(number, (d.one, d.other, d.difference, d.low, d.high)),
            "" if d.wilcoxon_p is None else f"{d.wilcoxon_p:.1g}",
            *map(str, (d.wins, d.ties, d.losses)),
        ]
        for pair in pairs
        for d in [pair.difference]
    ]


def summary(record: SearchRecord) -> dict[str, Any]:
    """The content of summary.json: each adapter, its difference to the frozen model, settings."""
    config = record.config
    return {
        "arms": [
            {
                "model": label_of(row),
                **{name: getattr(row, name) for name in ("kind", "rank", "parameters")},
                "alpha": {str(winner.arm.seed): winner.alpha for winner in row.winners},
                **asdict(row.mean("score")),
            }
            for row in rows_of(record)
        ],
        "differences_to_frozen": [
            {"model": pair.other, "seeds": pair.seeds, **asdict(pair.difference)}
            for pair in pairs_of(record)[0]
            if pair.one == NAMES[FROZEN]
        ],
        "settings": {
            "steps": config.engine.steps,
            "batch_size": config.engine.batch_size,
            "start_from": None if config.start_from is None else str(config.start_from),
            "validation": str(config.data.validation),
            **{name: getattr(config.ladder, name) for name in ("metric", "select")},
        },
    }


def _why_missing(row: Row, ladder: LadderRecord) -> str:
    """Why a seed has no scores to compare; "" if it has."""
    if ladder.winner is None:
        return f"{called(ladder.arm)}, has no winner: {ending_of(ladder)}."
    if ladder.arm.seed not in row.scores:
        return f"{called(ladder.arm)}, has no table of its validation chains."
    return ""

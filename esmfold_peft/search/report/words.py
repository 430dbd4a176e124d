"""What the numbers of a report are, in sentences."""

import html
from collections.abc import Iterable, Sequence

from esmfold_peft.search.costs import costs_of, hours_text
from esmfold_peft.search.grid import FROZEN
from esmfold_peft.search.records import LadderRecord, SearchRecord
from esmfold_peft.search.report.pairs import PAIR_COLUMNS, ArmPairs, pair_cells
from esmfold_peft.search.report.table import (
    COLUMNS,
    WINNER_COLUMNS,
    below_frozen,
    cells_of,
    ended_by,
    number,
    rows_of,
    winner_cells,
)

NOTHING_YET = "No trial has been begun yet."


def about(record: SearchRecord) -> list[str]:
    """Metric, steps and chains, and what is missing."""
    config = record.config
    weights = "moving average" if config.ladder.metric == "ema" else "raw weights"
    chains = validation_chains(record)
    count = "" if chains is None else f" ({chains} chains)"
    said = [
        f"Ours: lDDT-Cα of the {config.ladder.select} validation ({weights}) after"
        f" {config.engine.steps} steps, on {config.data.validation}{count}; mean over seeds, spread"
        " is the sample standard deviation. The paper's are on its own validation set."
    ]
    said += frozen_words(record)
    opened = sum(ladder.winner is None and not ladder.exhausted for ladder in record.ladders)
    if opened:
        said.append(f"{opened} of {len(record.ladders)} ladders are open: numbers may change.")
    return said if record.trials else [NOTHING_YET, *said]


def frozen_words(record: SearchRecord) -> list[str]:
    """What trials have to beat besides divergence, and where they have nothing to beat."""
    has_alpha = any(ladder.arm.has_alpha for ladder in record.ladders)
    if not (record.config.ladder.beat_frozen and has_alpha):
        return []
    if not record.compared:
        return ["The grid has no frozen model (none) to beat: only trials that diverge are out."]
    said = ["A trial whose score is not above the frozen model's at the same step is out."]
    for ladder in record.ladders:
        if ladder.arm.kind == FROZEN and (why := _why_nothing_to_beat(ladder)):
            said.append(
                f"The frozen model of seed {ladder.arm.seed} {why}: with that seed only trials"
                " that diverge are out."
            )
    return said


def _why_nothing_to_beat(frozen: LadderRecord) -> str | None:
    if frozen.exhausted:
        return "has diverged"
    no_score = frozen.winner is not None and not number(frozen.winner.score)
    return "has no score" if no_score else None


def pair_words(pairs: ArmPairs) -> list[str]:
    """What the table of pairs has, and what it lacks."""
    said = (
        "Second minus first, paired by validation chain; the winners were chosen on these chains."
        " A chain's score is its mean over the seeds that both have. low and high: 95 % bootstrap"
        " interval of the mean difference, of five chains or more; p: Wilcoxon's signed-rank test."
    )
    return [said, *pairs.missing]


def validation_chains(record: SearchRecord) -> int | None:
    """Chains in the newest validation of the first trial that has one."""
    for trial in record.trials:
        files = sorted((trial.folder / "run" / "validation").glob("step_*.csv"))
        if files:
            return max(0, len(files[-1].read_text(errors="replace").splitlines()) - 1)
    return None


def hours(record: SearchRecord) -> str:
    """What was spent, and what diverged and beaten trials would still have taken."""
    costs = costs_of(record)
    saved = costs.saved_by_divergence + costs.saved_by_halving
    return (
        f"{hours_text(costs.spent, record.config)} spent, about"
        f" {hours_text(saved, record.config)} saved by ending trials early."
    )


def markdown(record: SearchRecord, pairs: ArmPairs) -> str:
    """Text of table10.md."""
    lines = [
        "# Table 10 of this search",
        *map(_plain, about(record)),
        _table(COLUMNS, map(cells_of, rows_of(record))),
        hours(record),
        "## Pairs",
        *map(_plain, pair_words(pairs)),
        _table(PAIR_COLUMNS, map(pair_cells, pairs.pairs)),
        "## Winners",
        _table(WINNER_COLUMNS, map(winner_cells, record.winners)),
        "## Diverged trials",
        _list(ended_by(record)),
        "## Trials below frozen",
        _list(below_frozen(record)),
    ]
    return "\n\n".join(lines) + "\n"


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(text)}" for text in items) or "None."


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(map(_line, [columns, ["---"] * len(columns), *rows]))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Text of others without what Markdown or HTML would take for a sign of theirs."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")

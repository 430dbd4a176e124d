"""What the numbers of a report are, in sentences."""

import html
from collections.abc import Sequence

from esmfold_peft.search.costs import costs_of, hours_text
from esmfold_peft.search.records import SearchRecord
from esmfold_peft.search.report.table import COLUMNS, cells_of, ended_by, rows_of

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
    opened = sum(ladder.winner is None and not ladder.exhausted for ladder in record.ladders)
    if opened:
        said.append(f"{opened} of {len(record.ladders)} ladders are open: numbers may change.")
    return said if record.trials else [NOTHING_YET, *said]


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


def markdown(record: SearchRecord) -> str:
    """Text of table10.md."""
    ended = [f"- {_plain(text)}" for text in ended_by(record)]
    lines = [
        "# Table 10 of this search",
        *(_plain(text) for text in about(record)),
        "\n".join(map(_line, [COLUMNS, ["---"] * len(COLUMNS), *map(cells_of, rows_of(record))])),
        hours(record),
        "## Diverged trials",
        "\n".join(ended) or "None.",
    ]
    return "\n\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Text of others without what Markdown or HTML would take for a sign of theirs."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")

"""The report of a search: Table 10, pairs, all trials, figures, one page with all, and JSON."""

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config.parsing import config_text
from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.evaluation.summary import FEWEST
from esmfold_peft.prediction.html_text import document, escaped
from esmfold_peft.search.attempt import RUN
from esmfold_peft.search.costs import costs_of, hours_text
from esmfold_peft.search.grid import FROZEN
from esmfold_peft.search.report import rows
from esmfold_peft.search.report.figures import draw_curves, draw_figure5
from esmfold_peft.search.search_record import LadderRecord, SearchRecord
from esmfold_peft.training.validation import VALIDATION

_LONG = 40
"""Letters of a cell; a longer one is broken into lines. The table scrolls in its box."""


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, then a table or a list."""

    title: str
    text: Sequence[str] = ()
    table: rows.Table | None = None
    items: Sequence[str] = ()


def write_report(record: SearchRecord) -> list[Path]:
    """Writes the report of a search, finished or not, into output/report; returns its files.

    Raises:
        UserError: the folder cannot be written to.
    """
    sections, figure5, curves = sections_of(record), draw_figure5(record), draw_curves(record)
    contents: dict[str, str | bytes] = {
        "table10.csv": _csv(sections[0]),
        "table10.md": markdown(sections),
        "pairs.csv": _csv(sections[1]),
        "trials.csv": _csv(sections[-1]),
        "summary.json": relative(json.dumps(rows.summary(record), indent=2) + "\n"),
        **{f"figure5.{ending}": content for ending, content in figure5.items()},
        **{f"curves.{ending}": content for ending, content in curves.items()},
        "index.html": _page(record, sections, figure5["svg"], curves["svg"]),
    }
    folder = record.config.output / "report"
    make_folder(folder)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def sections_of(record: SearchRecord) -> list[Section]:
    """The report without its figures: first Table 10 and the pairs, last all trials."""
    pairs, missing = rows.pairs_of(record)
    costs, config = costs_of(record), record.config
    saved = hours_text(costs.saved_by_divergence + costs.saved_by_halving, config)
    hours = f"{hours_text(costs.spent, config)} spent, about {saved} saved by ending trials early."
    return [
        Section("Table 10", [*about(record), hours], rows.table10(record)),
        Section("Pairs", [_PAIRS, *missing], rows.pairs_table(pairs)),
        Section("Winners", table=rows.winners_table(record)),
        Section("Diverged trials", items=rows.diverged_trials(record)),
        Section("Trials below frozen", items=rows.trials_below_frozen(record)),
        Section("Trials", table=rows.trials_table(record)),
    ]


def _csv(section: Section) -> str:
    columns, cells = section.table or ((), [])
    return table_text([*columns], [[*row] for row in cells])


_PAIRS = (
    "Second minus first, paired by validation chain and seed; the first rows compare with frozen."
    " The winners were chosen on these chains. low and high: 95 % bootstrap interval of the mean"
    " difference over seeds and chains, of five chains or more. p (Wilcoxon's signed-rank test),"
    " wins and losses: of the chains' means over the seeds that both have."
)
_FIGURE5 = "The bars are wide because chains differ. Whether adapters differ: see the pairs."
_CURVES = (
    "Dotted: the raw weights; the other lines of lDDT-Cα: their moving average. Dashed: the trial"
    " diverged, and the guard ended it at the cross. A loss far above the others' is cut off."
)


def about(record: SearchRecord) -> list[str]:
    """Sentences on metric, steps and chains, what trials must beat, and open ladders."""
    config = record.config
    weights = "moving average" if config.ladder.metric == "ema" else "raw weights"
    chains = _validation_chains(record)
    count = "" if chains is None else f" ({chains} chains)"
    won = Counter((trial.arm.kind, trial.arm.rank) for trial in record.winners)
    seeds = min(won.values(), default=FEWEST)
    few = f"With so few seeds ({seeds}) the intervals understate how seeds differ."
    sentences = [
        f"validation_lddt_ca: lDDT-Cα of the {config.ladder.select} validation ({weights}) after"
        f" {config.engine.steps:,} steps, on {config.data.validation}{count}, the mean over seeds;"
        " validation_spread: their sample standard deviation; low and high: 95 % bootstrap interval"
        " of that mean over seeds and chains, both drawn with replacement. paper_lddt_ca: on the"
        " paper's own validation set.",
        *([few] if seeds < FEWEST else []),
        *_frozen_words(record),
    ]
    opened = sum(ladder.is_open for ladder in record.ladders)
    if opened:
        sentences.append(
            f"Ladders that have not ended: {opened} of {len(record.ladders)}. Numbers may change."
        )
    return sentences if record.trials else ["No trial has started yet.", *sentences]


def _frozen_words(record: SearchRecord) -> list[str]:
    """Sentences on the frozen model that trials must beat, and where there is none."""
    has_alpha = any(ladder.arm.has_alpha for ladder in record.ladders)
    if not (record.config.ladder.beat_frozen and has_alpha):
        return []
    if not record.compared:
        return ["The grid has no frozen model (none) to beat: only trials that diverge are out."]
    whys = {
        ladder.arm.seed: _why_nothing_to_beat(ladder)
        for ladder in record.ladders
        if ladder.arm.kind == FROZEN
    }
    return ["A trial whose score is not above the frozen model's at the same step is out."] + [
        f"The frozen model of seed {seed} {why}: with that seed only trials that diverge are out."
        for seed, why in whys.items()
        if why
    ]


def _why_nothing_to_beat(frozen: LadderRecord) -> str:
    if frozen.exhausted:
        return "has diverged"
    return "has no score" if frozen.winner and frozen.winner.score is None else ""


def _validation_chains(record: SearchRecord) -> int | None:
    """Chains in the newest validation of the first trial that has one."""
    for trial in record.trials:
        files = sorted((trial.folder / RUN / VALIDATION).glob("step_*.csv"))
        if files:
            return max(0, len(files[-1].read_text(errors="replace").splitlines()) - 1)
    return None


def relative(text: str) -> str:
    """Text in which paths below the working folder are relative to it."""
    return re.sub(rf"(?<![^\s'\"(=:]){re.escape(str(Path.cwd()))}/", "", text)


def markdown(sections: Sequence[Section]) -> str:
    """Text of table10.md: all but the table of all trials."""
    blocks = []
    for section in sections[:-1]:
        blocks.append(f"## {section.title}" if blocks else f"# {section.title} of this search")
        blocks += map(_plain, section.text)
        if section.table is None:
            blocks.append("\n".join(f"- {_plain(i)}" for i in section.items) or "None.")
        else:
            columns, cells = section.table
            lines = [columns, ["---"] * len(columns), *cells]
            blocks.append("\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    return html.escape(" ".join(relative(text).split()), quote=False).replace("|", "\\|")


def _page(record: SearchRecord, sections: Sequence[Section], figure5: bytes, curves: bytes) -> str:
    """index.html: all of the report on one page that loads nothing."""
    title = f"Search {record.config.output.resolve().name}"
    parts = [
        _html(s.title, s.text, _table(s.table) if s.table else _list(s.items)) for s in sections
    ]
    parts[3:3] = [
        _html("Figure 5", [_FIGURE5], _image(figure5, "lDDT-Cα against trainable parameters")),
        _html("Learning curves", [_CURVES], _image(curves, "Learning curves")),
    ]
    settings = "\n".join(map(_shown, config_text(record.config).splitlines()))
    details = f"<details><summary>Settings (search.yaml)</summary><pre>{settings}</pre></details>"
    header = f"<header><h1>{escaped(title)}</h1></header>"
    return document(title, "\n".join([header, *parts, f"<section>{details}</section>"]), ())


def _html(title: str, sentences: Sequence[str], inner: str) -> str:
    words = "".join(f"<p>{_shown(text)}</p>" for text in sentences)
    return f"<section><h2>{escaped(title)}</h2>{words}{inner}</section>"


def _table(table: rows.Table) -> str:
    """A table in a box of its own, in which it scrolls; only long cells break words."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in table[0])
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in table[1])
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{whole}</div>'


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > _LONG else ""
    return f"<td{kind}>{_shown(text)}</td>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_shown(i)}</li>" for i in items) + "</ul>" if items else "None."


def _image(svg: bytes, text: str) -> str:
    data = base64.b64encode(svg).decode()
    return f'<img width="100%" alt="{escaped(text)}" src="data:image/svg+xml;base64,{data}">'


def _shown(text: str) -> str:
    return escaped(relative(text))

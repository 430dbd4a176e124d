"""`esmfold-peft evaluate`: predicted structures against true ones."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from esmfold_peft.config import EvaluateConfig
from esmfold_peft.console import report, watched
from esmfold_peft.disk.files import make_folder
from esmfold_peft.evaluation.comparison import chains_have, compare_folders
from esmfold_peft.evaluation.pairing import Pair, Pairs, loaded, pairs_by_name, pairs_by_table
from esmfold_peft.evaluation.result_files import (
    comparison_table,
    score_tables,
    write_comparison,
    write_scores,
)
from esmfold_peft.evaluation.run_model import folded_pairs, open_model, open_stores
from esmfold_peft.evaluation.scoring import SCORED, Scored, crashed, score_pair
from esmfold_peft.evaluation.sides import open_side
from esmfold_peft.evaluation.summary import summarize
from esmfold_peft.evaluation.table_files import SUMMARY
from esmfold_peft.evaluation.work import pooled

_ALIGNMENTS = 5
"""Alignments that are printed; the table has the reasons of the others."""


def run(config: EvaluateConfig) -> int:
    """Scores files, or the chains that a run's model folds, or compares two earlier evaluations.

    Returns 0, or 1 if a chain has no scores.

    Raises:
        UserError: a setting or a source is wrong, no prediction has a reference, or the output
            cannot be written.
    """
    if config.compare:
        return _compare(config)
    return _evaluate_run(config) if config.run else _evaluate_files(config)


def _evaluate_files(config: EvaluateConfig) -> int:
    with TemporaryDirectory(prefix="esmfold-peft-") as folder:
        pairs, unused = _pairs(config, Path(folder))
        make_folder(config.output)
        results = _score(config, loaded(pairs), len(pairs))
        scored = list(watched(results, "scoring", len(pairs)))
    if unused:
        more = "" if len(unused) == 1 else f" and {len(unused) - 1} more"
        report(f"predictions without a reference: {unused[0]}{more} (see {SUMMARY})")
    return _finish(config, scored, unused)


def _pairs(config: EvaluateConfig, spool: Path) -> Pairs:
    """Predictions and their references."""
    sides = {}
    for what, sources in (("prediction", config.predictions), ("reference", config.references)):
        if sources:
            (spool / what).mkdir()
            sides[what] = open_side(what, sources, spool / what, config.workers)
    if config.pairs is not None:
        return pairs_by_table(config.pairs, sides.get("prediction"), sides.get("reference"))
    return pairs_by_name(sides["prediction"], sides["reference"])


def _evaluate_run(config: EvaluateConfig) -> int:
    stores = open_stores(config)
    model = open_model(config)
    make_folder(config.output)
    count = sum(len(store) for store in stores.values())
    folded = watched(folded_pairs(config, model, stores), "folding", count)
    return _finish(config, list(_score(config, folded, count)), [])


def _score(config: EvaluateConfig, pairs: Iterable[Pair], count: int) -> Iterator[Scored]:
    work = partial(score_pair, match=config.match, per_residue=config.per_residue)
    shown = 0
    for result in pooled(work, crashed, pairs, count=count, workers=config.workers):
        if result.alignment and shown < _ALIGNMENTS:
            shown += 1
            report(f"{result.row.id}: {result.row.status}\n{result.alignment}")
        yield replace(result, alignment="")


def _finish(config: EvaluateConfig, scored: list[Scored], unused: list[str]) -> int:
    """Writes and prints the results, sorted by split and id."""
    scored.sort(key=lambda result: (result.row.split, result.row.id))
    summary: dict[str, Any] = {**summarize(scored), "unused_predictions": unused}
    write_scores(config, scored, summary)
    for table in score_tables(summary, f"evaluation in {config.output}"):
        Console().print(table)
    for note, count in summary["notes"].items():
        report(f"{count} {'chain' if count == 1 else 'chains'}: {note}")
    skipped = [result.row for result in scored if result.row.status != SCORED]
    if not skipped:
        return 0
    report(f"{skipped[0].id}: {skipped[0].status}")
    reasons = config.output / SUMMARY
    report(f"{len(skipped)} of {len(scored)} chains have no scores; {reasons} has the reasons")
    return 1


def _compare(config: EvaluateConfig) -> int:
    found = compare_folders(*config.compare)
    write_comparison(config, found)
    Console().print(comparison_table(found, config))
    for only, folder in zip((found.only_one, found.only_other), config.compare, strict=True):
        if only:
            report(f"{chains_have(len(only))} scores only in {folder}, such as {only[0][1]}")
    return 0

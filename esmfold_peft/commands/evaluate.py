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
from esmfold_peft.evaluation.comparison import compare_folders
from esmfold_peft.evaluation.folding import folded_pairs, open_model, open_stores
from esmfold_peft.evaluation.output import (
    SUMMARY,
    comparison_table,
    score_tables,
    write_comparison,
    write_scores,
)
from esmfold_peft.evaluation.pairs import Pair, Pairs, loaded, pairs_by_name, pairs_by_table
from esmfold_peft.evaluation.scoring import SCORED, Scored, crashed, score_pair
from esmfold_peft.evaluation.sources import open_side
from esmfold_peft.evaluation.summary import summarize
from esmfold_peft.evaluation.work import pooled

_ALIGNMENTS = 5
"""Alignments that are printed; what is wrong with the others is in the table."""


def run(config: EvaluateConfig) -> int:
    """Scores files, or what a run's model folds, or compares two earlier evaluations.

    Returns:
        0, or 1 if a chain has no scores.

    Raises:
        UserError: a setting or a source is wrong, nothing fits together, or the output cannot be
            written.
    """
    if config.compare:
        return _compare(config)
    return _evaluate_run(config) if config.run else _evaluate_files(config)


def _evaluate_files(config: EvaluateConfig) -> int:
    with TemporaryDirectory(prefix="esmfold-peft-") as folder:
        found = _pairs(config, Path(folder))
        make_folder(config.output)
        results = _score(config, loaded(found.pairs), len(found.pairs))
        scored = list(watched(results, "scoring", len(found.pairs)))
    if found.unused:
        more = "" if len(found.unused) == 1 else f" and {len(found.unused) - 1} more"
        report(f"predictions without a reference: {found.unused[0]}{more} (see {SUMMARY})")
    return _finish(config, scored, found.unused)


def _pairs(config: EvaluateConfig, spool: Path) -> Pairs:
    """What is scored against what."""
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
    folded = watched(folded_pairs(model, stores), "folding", count)
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
    """Writes and prints the results, which are sorted by split and id."""
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
    report(
        f"{len(skipped)} of {len(scored)} chains have no scores; {config.output / SUMMARY} says why"
    )
    return 1


def _compare(config: EvaluateConfig) -> int:
    found = compare_folders(*config.compare)
    write_comparison(config, found)
    Console().print(comparison_table(found, config))
    for only, folder in zip((found.only_one, found.only_other), config.compare, strict=True):
        if only:
            report(f"{len(only)} chains have scores in {folder} alone, such as {only[0][1]}")
    return 0

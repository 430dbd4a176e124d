"""The files of an evaluation or a comparison, and the tables that are printed."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from esmfold_peft import __version__
from esmfold_peft.config import EvaluateConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.evaluation.comparison import Comparison, Difference
from esmfold_peft.evaluation.plots import FOLDER, draw_comparison, draw_scores
from esmfold_peft.evaluation.scoring import METRICS, SCORED, Scored
from esmfold_peft.evaluation.summary import CONFIDENCE, RESAMPLES, SEED
from esmfold_peft.evaluation.table_files import (
    RESIDUES,
    SCORES,
    SUMMARY,
    write_residues,
    write_scores_table,
    write_table,
)
from esmfold_peft.runs.versions import installed_versions

_COMPARISON = "comparison"
_PACKAGES = ("torch", "numpy", "scipy", "gemmi", "biopython")
_LABELS = {
    "lddt_ca": "lDDT-Cα",
    "lddt_ca_residue_mean": "lDDT-Cα, residues",
    "lddt_all_atom": "lDDT, all atoms",
    "rmsd": "RMSD (Å)",
    "gdt_ts": "GDT-TS",
    "gdt_ha": "GDT-HA",
    "tm_score": "TM-score",
    "plddt": "pLDDT",
}
_DECIMALS = dict.fromkeys(_LABELS, 3) | {"rmsd": 2, "plddt": 1}
"""Decimal places that mean something."""


def write_scores(
    config: EvaluateConfig, results: Sequence[Scored], summary: dict[str, Any]
) -> None:
    """Writes tables, figures and, at last, the summary; replaces those of an earlier evaluation."""
    output = config.output
    _remove(output, (SCORES, RESIDUES), SUMMARY, ("distribution", "length", "calibration"))
    rows = [result.row for result in results]
    write_scores_table(output / SCORES, rows)
    if config.per_residue:
        write_residues(output / RESIDUES, results)
    if config.plots:
        scored = [row for row in rows if row.status == SCORED]
        draw_scores(output, scored, summary["calibration"])
    _write_json(output / SUMMARY, summary | _provenance(config))


def write_comparison(config: EvaluateConfig, found: Comparison) -> None:
    """Writes comparison.csv, .parquet and .json, and a figure."""
    output = config.output
    make_folder(output)
    _remove(output, (_COMPARISON,), f"{_COMPARISON}.json", (_COMPARISON,))
    columns = found.columns()
    types = {name: str if name in ("id", "split") else float for name in columns}
    write_table(output / _COMPARISON, columns, types)
    pairs = zip(columns["lddt_ca_1"], columns["lddt_ca_2"], strict=True)
    known = [pair for pair in pairs if None not in pair]
    if config.plots and known:
        one, other = zip(*known, strict=True)
        title = _comparison_title(found.differences()["lddt_ca"])
        draw_comparison(output, one, other, _names(*config.compare), title)
    _write_json(output / f"{_COMPARISON}.json", found.summary() | _provenance(config))


def _names(one: Path, other: Path) -> tuple[str, str]:
    """Two folders without the parts that begin or end both paths."""
    parts = [list(path.parts) for path in (one, other)]
    for place in (0, -1):
        while all(len(own) > 1 for own in parts) and parts[0][place] == parts[1][place]:
            for own in parts:
                del own[place]
    return str(Path(*parts[0])), str(Path(*parts[1]))


def _comparison_title(found: Difference) -> str:
    interval = f"95 % {_interval(found.low, found.high, '+.3f')}, " if found.low is not None else ""
    p = "all equal" if found.wilcoxon_p is None else f"p = {found.wilcoxon_p:.1g}"
    return f"{found.count} chains, mean difference {found.difference:+.3f}\n{interval}{p}"


def _interval(low: float | None, high: float | None, form: str) -> str:
    """Both ends, or nothing if there are too few chains for an interval."""
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def score_tables(summary: dict[str, Any], title: str) -> list[Table]:
    """A table of the metrics, one for each split."""
    parts = summary.get("splits", {"": summary})
    return [
        _score_table(part, f"{title}: {name}" if name else title) for name, part in parts.items()
    ]


def _score_table(part: dict[str, Any], title: str) -> Table:
    table = Table(title=title)
    table.add_column("metric")
    for column in ("chains", "mean", "95 %", "median"):
        table.add_column(column, justify="right")
    for name in METRICS:
        found, places = part["metrics"][name], _DECIMALS[name]
        if found["count"]:
            table.add_row(
                _LABELS[name],
                str(found["count"]),
                f"{found['mean']:.{places}f}",
                _interval(found["low"], found["high"], f".{places}f"),
                f"{found['median']:.{places}f}",
            )
    error = part["calibration"]["mean_absolute_error"]
    if error is not None:
        table.add_row("calibration error", "", f"{error:.3f}", "", "")
    return table


def comparison_table(found: Comparison, config: EvaluateConfig) -> Table:
    """A line for each metric."""
    one, other = config.compare
    title = f"{other} (second) against {one} (first): {len(found.keys)} chains in both"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric", no_wrap=True)
    for column in ("first", "second", "change", "95 %", "p", "win/tie/loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found.differences().items():
        places = _DECIMALS[name]
        if row.count:
            table.add_row(
                _LABELS[name],
                f"{row.one:.{places}f}",
                f"{row.other:.{places}f}",
                f"{row.difference:+.{places}f}",
                _interval(row.low, row.high, f"+.{places}f").replace(" to ", " "),
                "" if row.wilcoxon_p is None else f"{row.wilcoxon_p:.1g}",
                "" if row.wins is None else f"{row.wins}/{row.ties}/{row.losses}",
            )
    return table


def _remove(output: Path, tables: tuple[str, ...], file: str, figures: tuple[str, ...]) -> None:
    """Removes files of an earlier command; this one may not write all of them again."""
    names = [f"{table}{ending}" for table in tables for ending in (".csv", ".parquet")]
    for name in (file, *names, *(f"{FOLDER}/{figure}.png" for figure in figures)):
        (output / name).unlink(missing_ok=True)


def _provenance(config: EvaluateConfig) -> dict[str, Any]:
    return {
        "bootstrap": {"seed": SEED, "resamples": RESAMPLES, "confidence": CONFIDENCE},
        "versions": {"esmfold_peft": __version__, "python": platform.python_version()}
        | installed_versions(_PACKAGES),
        "settings": yaml.safe_load(config_text(config)),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode(errors="backslashreplace") + b"\n")

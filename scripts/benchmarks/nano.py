"""Collects what scripts/nano.sh has measured, and draws the learning curve.

    python scripts/benchmarks/nano.py runs/nano --output scripts/benchmarks/results/nano_cpu.json \
        --figure docs/nano_curve.svg

Printed and written: the data and the search for similar sequences, seconds of each step,
perplexity of the language model, lDDT-Cα of the base at each number of samples with its 95 %
interval over chains, and the report of the search.
"""

import csv
from collections import Counter
from pathlib import Path

from measuring import command_line, table, write_report
from rich.console import Console

from esmfold_peft.disk.files import read_json
from esmfold_peft.search.report.figures import rendered

_SCORES = ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "plddt")


def main() -> None:
    """Runs the command line."""
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, help="the OUTPUT of scripts/nano.sh")
    parser.add_argument("--figure", type=Path, help="SVG file for the learning curve")
    args = parser.parse_args()
    folder: Path = args.folder
    curve = {
        int(path.name.removeprefix("validation_")): _scores(path)
        for path in (folder / "scores").glob("validation_*")
    }
    found = {
        "data": read_json(folder / "data" / "data.json"),
        "seconds": _seconds(folder / "hours.csv"),
        "language_model": _table(folder / "language_model" / "metrics.csv"),
        "base": read_json(folder / "base" / "provenance.json")["parameters"],
        "validation": {samples: curve[samples] for samples in sorted(curve)},
        "cameo": _scores(folder / "scores" / "cameo"),
        "search": read_json(folder / "search" / "report" / "summary.json"),
    }
    rows = [(f"nanoFold, {samples:,} samples", scores) for samples, scores in sorted(curve.items())]
    cells = [
        [name, str(s["lddt_ca"]["count"]), *(_interval(s[key]) for key in ("lddt_ca", "tm_score"))]
        for name, s in [*rows, ("CAMEO 2022", found["cameo"])]
    ]
    Console().print(table(("chains of", "count", "lDDT-Cα", "TM-score"), cells))
    write_report(args, found)
    if args.figure:
        args.figure.write_bytes(_drawn(found["validation"]))


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    metrics = read_json(folder / "summary.json")["metrics"]
    return {name: metrics[name] for name in _SCORES}


def _seconds(path: Path) -> dict[str, int]:
    """Seconds of each step, all attempts together."""
    seconds = Counter[str]()
    for name, spent in _rows(path):
        seconds[name] += int(spent)
    return dict(seconds)


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _table(path: Path) -> list[dict[str, float]]:
    header, *rows = _rows(path)
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def _interval(score: dict[str, float]) -> str:
    mean = f"{score['mean']:.3f}"
    return mean if score["low"] is None else f"{mean} ({score['low']:.3f} to {score['high']:.3f})"


def _drawn(curve: dict[int, dict[str, dict[str, float]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.subplots()
    scores = [value["lddt_ca"] for value in curve.values()]
    means = [score["mean"] for score in scores]
    ends = [(s["mean"] if s["low"] is None else s["low"], s["high"] or s["mean"]) for s in scores]
    bars = [[abs(m - end[k]) for m, end in zip(means, ends, strict=True)] for k in (0, 1)]
    axes.errorbar(list(curve), means, bars, marker="o", capsize=3)
    axes.set(xlabel="samples", ylabel=f"lDDT-Cα of {scores[-1]['count']} unseen chains")
    axes.set(xlim=(0, None), ylim=(0, None))
    return rendered(figure)["svg"]


if __name__ == "__main__":
    main()

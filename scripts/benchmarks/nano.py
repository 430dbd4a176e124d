"""Collects what scripts/nano.sh has measured, and draws the learning curve.

    python scripts/benchmarks/nano.py runs/nano --output scripts/benchmarks/results/nano_cpu.json \
        --figure docs/nano_curve.svg

Printed and written: the data and the search for similar sequences, seconds of each step,
perplexity of the language model, and lDDT-Cα at each number of samples (with its 95 %
interval over chains, the run and its crops).
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
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
        int(path.name.removeprefix("validation_")): _point(path, folder)
        for path in (folder / "scores").glob("validation_*")
    }
    found = {
        "data": read_json(folder / "data" / "data.json"),
        "seconds": _seconds(folder / "hours.csv"),
        "language_model": _table(folder / "language_model" / "metrics.csv"),
        "base": read_json(folder / "base" / "provenance.json")["parameters"],
        "validation": {samples: curve[samples] for samples in sorted(curve)},
        "cameo": _scores(folder / "scores" / "cameo"),
    }
    rows = [
        (f"nanoFold, {samples:,} samples ({point['run']}, crops of {point['crop']})", point)
        for samples, point in sorted(curve.items())
    ]
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


def _point(scores: Path, folder: Path) -> dict[str, Any]:
    """Scores on the learning curve, with the run that has them and its crops."""
    run = Path(read_json(scores / "summary.json")["settings"]["run"]).name
    crop = yaml.safe_load((folder / run / "config.yaml").read_text())["data"]["crop"]
    return {"run": run, "crop": crop, **_scores(scores)}


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


def _drawn(curve: dict[int, dict[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.subplots()
    scores = {samples: point["lddt_ca"] for samples, point in curve.items()}
    axes.plot(list(scores), [score["mean"] for score in scores.values()], color="0.8", zorder=0)
    for crop in sorted({point["crop"] for point in curve.values()}):
        part = {n: scores[n] for n, point in curve.items() if point["crop"] == crop}
        means = [score["mean"] for score in part.values()]
        lows = [s["mean"] - (s["mean"] if s["low"] is None else s["low"]) for s in part.values()]
        highs = [(s["mean"] if s["high"] is None else s["high"]) - s["mean"] for s in part.values()]
        bars = [lows, highs]
        axes.errorbar(list(part), means, bars, fmt="o", capsize=3, label=f"crops of {crop}")
    axes.set(xlabel="samples", xlim=(0, None), ylim=(0, None))
    count = max(score["count"] for score in scores.values())
    axes.set(ylabel=f"lDDT-Cα of {count} unseen chains")
    axes.legend(loc="lower right")
    return rendered(figure)["svg"]


if __name__ == "__main__":
    main()

"""Does a model learn worse with a pair track in bf16?

    python scripts/benchmarks/pair_track.py --output pair_track.json

Trains one small model three ways: in float32, in bf16 with the pair track in float32, and in bf16
with the pair track in bf16. A seed has the same weights, order, crops, recycling and dropout in all
three. The model has random weights, 5 Evoformer blocks (c_m 64, c_z 64) and at most one recycling.
It learns the 8 chains of data/example's train and full_atom by crops of 32 in batches of 2, on one
thread of a CPU. The table has for each run the training loss, mean over windows of steps, and at
the end the loss and lDDT-Cα of the chains as a whole, in the precision of the training. Below are
the differences to bf16 with a float32 track: mean over seeds, and their standard deviation.

A CPU rounds to bf16 as a GPU does, but sums in another order. The model is far from converged, so
that its scores say nothing of accuracy.
"""

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import command_line, table, write_report
from paper_arms import SMALL, example_chains, metrics, train_with
from rich.console import Console

WAYS = {
    "float32": {"engine.precision": "float32"},
    "bf16, float32 track": {"engine.precision": "bf16", "model.pair_track": "float32"},
    "bf16, bf16 track": {"engine.precision": "bf16", "model.pair_track": "bf16"},
}
BASE = "bf16, float32 track"
"""The way that the others are compared with."""

NUMBERS = {"mean": "mean", "last": "last window", "loss": "whole chains", "lddt_ca": "lDDT-Cα"}
"""Numbers of a run, and how the table calls them."""

SIZES = SMALL | {
    "model.language_model.name": "custom",
    "model.language_model.layers": 6,
    "model.language_model.width": 128,
    "model.language_model.heads": 8,
    "model.evoformer.c_z": 64,
    "model.evoformer.c_mul": 64,
    "model.evoformer.heads_msa": 4,
    "model.evoformer.c_head_msa": 16,
    "model.evoformer.c_head_pair": 16,
    "model.evoformer.c_opm": 16,
    "model.evoformer.transition": 2,
    "model.max_recycles": 1,
    "loss.clamp_probability": 1.0,
    "data.crop": 32,
    "optimizer.warmup_steps": 20,
    "optimizer.ema": 0,
    "engine.validate_raw": "false",
    "log.every": 1,
}
"""Settings that all ways share."""


def main(words: list[str] | None = None) -> None:
    """Trains all ways with all seeds and prints how they differ."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    add("--window", type=int, default=20, help="steps of a mean of the loss (default: 20)")
    add("--blocks", type=int, default=5, help="of the Evoformer (default: 5)")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2, 3), help="(default: 0 1 2 3)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chains = example_chains(Path(folder), "train", "full_atom")
        for seed in args.seeds:
            for number, way in enumerate(WAYS):
                run = Path(folder) / f"{seed}_{number}"
                own: dict[str, object] = {
                    "run": run,
                    "data.train": chains,
                    "data.validation": chains,
                    "model.evoformer.blocks": args.blocks,
                    "engine.steps": args.steps,
                    "engine.validate_every": args.steps,
                    "checkpoints.every": args.steps,
                    "seed": seed,
                }
                train_with(SIZES | own | WAYS[way])
                rows.append({"seed": seed, "way": way} | measured(run, args.window))
    columns = ("way", "training loss by window", "seed", *NUMBERS.values())
    title = "Training with two types of the pair track"
    Console(highlight=False, width=180).print(table(columns, cells(rows), title, left=2))
    write_report(args, {"rows": rows, "differences": differences(rows)})


def measured(run: Path, window: int) -> dict[str, object]:
    """Of a run: its mean training losses by window, and what whole chains give at the end."""
    lines = metrics(run)
    losses = [float(line["train/loss"]) for line in lines]
    curve = [statistics.fmean(losses[i : i + window]) for i in range(0, len(losses), window)]
    whole = {name: float(lines[-1][f"validation/{name}"]) for name in ("loss", "lddt_ca")}
    return {"curve": curve, "mean": statistics.fmean(losses), "last": curve[-1], **whole}


def differences(rows: Sequence[dict]) -> dict[str, dict[str, list[float]]]:
    """Of each other way and BASE, by number: one for each seed."""
    by = {(row["way"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return {
        way: {name: [by[way, s][name] - by[BASE, s][name] for s in seeds] for name in NUMBERS}
        for way in WAYS
        if way != BASE
    }


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; NaN of one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def cells(rows: Sequence[dict]) -> list[Sequence[str]]:
    """The lines of the table: each run, then the differences to BASE."""
    lines: list[Sequence[str]] = []
    for row in rows:
        curve = " ".join(f"{loss:.2f}" for loss in row["curve"])
        numbers = (f"{row[name]:.3f}" for name in NUMBERS)
        lines.append((row["way"], curve, str(row["seed"]), *numbers))
    for way, found in differences(rows).items():
        gaps = (f"{statistics.fmean(g):+.3f} ± {deviation(g):.3f}" for g in found.values())
        lines.append((f"{way} − {BASE}", "", "", *gaps))
    return lines


if __name__ == "__main__":
    main()

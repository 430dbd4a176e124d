"""Runs every main command on a CPU in minutes: prepare, train, evaluate, predict.

    make demo

Trains a tiny model three times on the chains of data/example, from the same start: with LoRTA, with
LoRA, and with a frozen language model. The language model is randomly initialised, so the scores
show that the model learns, but not how accurate it can become.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from esmfold_peft.cli import main as main_of_esmfold_peft

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))  # reads better than absolute
EXAMPLE = ROOT / "data" / "example"
ADAPTERS = {"lorta": "LoRTA", "lora": "LoRA", "none": "frozen"}
CONSOLE = Console(highlight=False)
PRINTING = threading.Lock()
MARK = ".made_by_demo"
"""Only a folder with this file in it is ever deleted."""


def main() -> None:
    """Runs the demo in a new folder, which replaces that of an earlier demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to fill")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: configs/tiny.yaml)")
    parser.add_argument("--held-out", type=int, help="held-out chains (default: all 26)")
    args = parser.parse_args()
    out = args.output
    if (out / MARK).exists():
        shutil.rmtree(out)
    if out.exists():
        raise SystemExit(f"--output: {out} exists and is no earlier demo; choose another folder")
    out.mkdir(parents=True)
    (out / MARK).touch()

    heading("1. Read structure files into chain stores")
    held_out = sorted((EXAMPLE / "held_out").glob("*.cif.gz"))[: args.held_out]
    splits = {
        "train": [EXAMPLE / "train"],
        "held_out": [EXAMPLE / "held_out"] if args.held_out is None else held_out,
    }
    for split, sources in splits.items():
        # No two of these chains are alike (data/README.md), so there is nothing to cluster.
        words = ("--output", out / "chains" / split, "--clusters", "none")
        command("prepare", *sources, *words)

    heading("2. Score the untrained model on the training chains")
    command(*train(out, "none", "untrained"), "--engine.steps", 0)
    before = evaluate(out, "untrained", "train")

    heading("3. Train the model three times: with LoRTA, with LoRA, and with a frozen LM")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # One process and one thread each: threads that share busy cores wait for each other.
        runs = {kind: pool.submit(train_apart, out, kind, args.steps) for kind in ADAPTERS}
    seconds = {kind: run.result() for kind, run in runs.items()}

    heading("4. Score the trained models on training and held-out chains")
    table = Table(title="Mean lDDT-Cα (0 to 1, higher is better)")
    columns = ("adapter", "parameters", "untrained", "trained", "held-out chains", "training s")
    for column in columns:
        table.add_column(column, justify="left" if column == "adapter" else "right")
    for kind, name in ADAPTERS.items():
        after, unseen = (evaluate(out, kind, split) for split in ("train", "held_out"))
        parameters = json.loads((out / kind / "provenance.json").read_text())["parameters"]
        row = (f"{before:.3f}", f"{after:.3f}", f"{unseen:.3f}", f"{seconds[kind]:.0f}")
        table.add_row(name, f"{parameters['adapter']:,}", *row)

    heading("5. Predict structures from sequences with the LoRTA model")
    fasta, predictions = EXAMPLE / "sequences.fasta", out / "predictions"
    command("predict", fasta, "--run", out / "lorta", "--output", predictions)

    CONSOLE.print()
    CONSOLE.print(table)
    CONSOLE.print(
        "untrained, trained: scores of the five training chains before and after training.\n"
        "If the score rises, adapter, trunk and head learn together. The language model was"
        " randomly initialised\nand there are few chains, so the scores do not show how accurate"
        " ESMFold can become.\n\n"
        f"Runs (settings, metrics, model, adapter):  {out}/{{lorta,lora,none}}\n"
        f"Scores of each chain:                      {out}/scores\n"
        f"Predicted structures (PDB and mmCIF):      {out}/predictions",
        soft_wrap=True,
    )


def train(out: Path, kind: str, name: str) -> list[str]:
    """The command that trains one adapter."""
    chains = out / "chains"
    words = (
        "train", "--config", ROOT / "configs" / "tiny.yaml", "--run", out / name,
        "--data.train", chains / "train", "--data.validation", chains / "held_out",
        "--adapter.kind", kind,
        # These few chains cannot be split by date; 1ubq of 1987 is too good an example.
        "--allow-leaks",
        # The table shows only the moving average's scores.
        "--engine.validate_raw", "false",
    )  # fmt: skip
    return [str(word) for word in words]


def evaluate(out: Path, name: str, split: str) -> float:
    """Mean lDDT-Cα of a run on a set of chains."""
    scores = out / "scores" / f"{name}_{split}"
    command(
        "evaluate", "--run", out / name, "--store", out / "chains" / split,
        "--output", scores,
    )  # fmt: skip
    return json.loads((scores / "summary.json").read_text())["lddt_ca"]


def command(*words: object) -> None:
    """Prints one command of esmfold-peft and runs it here, which saves importing PyTorch again."""
    arguments = [str(word) for word in words]
    show(f"$ esmfold-peft {shlex.join(arguments)}", "bold")
    if main_of_esmfold_peft(arguments) != 0:
        raise SystemExit(f"the demo stopped: esmfold-peft {arguments[0]} failed (see above)")


def train_apart(out: Path, kind: str, steps: int | None) -> float:
    """Trains one adapter in a process of its own, prints its lines, and returns its seconds."""
    arguments = train(out, kind, kind) + ([] if steps is None else ["--engine.steps", str(steps)])
    show(f"$ esmfold-peft {shlex.join(arguments)}", "bold")
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "esmfold_peft", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        show(f"{ADAPTERS[kind]:>6} | {line.rstrip()}")
    if process.wait() != 0:
        raise SystemExit(f"the demo stopped: training {ADAPTERS[kind]} failed (see above)")
    return time.monotonic() - started


def heading(text: str) -> None:
    """Prints what the next commands do."""
    CONSOLE.rule(text, align="left")


def show(line: str, style: str = "") -> None:
    """Prints one whole line, because several trainings print at the same time."""
    with PRINTING:
        CONSOLE.print(line, style=style, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

"""Folds proteins with a small trained model and fine-tunes it, on a CPU in minutes.

    make demo

The nano base (data/nano: a trunk and a head on a small frozen language model) folds sequences that
it has not seen. Then it is fine-tuned three times on 18 SH3 domains of data/sh3: with LoRTA, with
LoRA, and with its language model frozen. It is scored on these and on 12 other SH3 domains, before
and after.
"""

import argparse
import csv
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
EXAMPLE, FAMILY, NANO = (ROOT / "data" / name for name in ("example", "sh3", "nano"))
BASE = NANO / "base"
ADAPTERS = {"lorta": "LoRTA", "lora": "LoRA", "none": "frozen"}
CONSOLE = Console(highlight=False)
PRINTING = threading.Lock()
MARK = ".made_by_demo"
"""Only a folder with this file in it is ever deleted."""


def main() -> None:
    """Runs the demo in a new folder, which replaces that of an earlier demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to fill")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps (default: configs/nano/finetune.yaml)"
    )
    parser.add_argument("--held-out", type=int, help="held-out domains (default: all 12)")
    args = parser.parse_args()
    out = args.output
    if (out / MARK).exists():
        shutil.rmtree(out)
    if out.exists():
        raise SystemExit(f"--output: {out} exists and is no earlier demo; choose another folder")
    out.mkdir(parents=True)
    (out / MARK).touch()

    heading("1. Read structure files into chain stores")
    held_out = sorted((FAMILY / "held_out").glob("*.cif.gz"))[: args.held_out]
    splits = {
        "train": [FAMILY / "train"],
        "held_out": [FAMILY / "held_out"] if args.held_out is None else held_out,
    }
    for split, sources in splits.items():
        # They are one family, and two folders: there is nothing to cluster.
        words = ("--output", out / "chains" / split, "--clusters", "none")
        command("prepare", *sources, *words)

    heading("2. Predict structures from sequences with the nano base")
    fasta, predictions = EXAMPLE / "sequences.fasta", out / "predictions"
    command("predict", fasta, "--run", BASE, "--output", predictions, "--html")
    proteins = read_csv(predictions / "predictions.csv")
    known = [EXAMPLE / "held_out" / f"{protein['id']}.cif.gz" for protein in proteins]
    command(
        "evaluate", "--predictions", predictions, "--output", out / "scores" / "predictions",
        "--references", *(path for path in known if path.exists()),
    )  # fmt: skip

    heading("3. Score the nano base on a family of proteins, SH3 domains")
    before = evaluate(out, BASE, "base")

    heading("4. Fine-tune it on 18 of them: with LoRTA, with LoRA, and with a frozen LM")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # One process and one thread each: threads that share busy cores wait for each other.
        runs = {kind: pool.submit(train_apart, out, kind, args.steps) for kind in ADAPTERS}
    seconds = {kind: run.result() for kind, run in runs.items()}

    heading("5. Score the fine-tuned models on the same domains")
    after = {kind: evaluate(out, out / kind, kind) for kind in ADAPTERS}

    show_results(out, proteins, before, after, seconds)


def show_results(
    out: Path,
    proteins: list[dict[str, str]],
    before: dict[str, float],
    after: dict[str, dict[str, float]],
    seconds: dict[str, float],
) -> None:
    """Prints the tables and what they mean; scores are by split, those of adapters by adapter."""
    heading("Results")
    CONSOLE.print(table_of_proteins(out, proteins))
    CONSOLE.print(
        "The nano base was trained on none of these proteins, nor on similar ones. A dash: no"
        f" structure in {EXAMPLE}.\n\n"
        f"Its lDDT-Cα on the held-out SH3 domains:\n{scores_in_words(out)}\n",
        soft_wrap=True,
    )
    table = Table(title="Mean lDDT-Cα (0 to 1, higher is better), before → after fine-tuning")
    for column in ("adapter", "parameters", "training domains", "held-out domains", "seconds"):
        table.add_column(column, justify="left" if column == "adapter" else "right")
    for kind, name in ADAPTERS.items():
        parameters = json.loads((out / kind / "provenance.json").read_text())["parameters"]
        changes = (f"{score:.3f} → {after[kind][split]:.3f}" for split, score in before.items())
        table.add_row(name, f"{parameters['adapter']:,}", *changes, f"{seconds[kind]:.0f}")
    CONSOLE.print(table)
    CONSOLE.print(
        "parameters: trained in the language model; trunk and head are trained in all three.\n"
        "training domains: a rise shows only that these are learnt by heart.\n"
        "held-out domains: other members of the family, at most 50 % identical to a training"
        " domain.\nA rise is a gain: the model folds the family better.\n"
        "Each adapter was trained once and for a short time: the differences between adapters mean"
        " nothing.\n\n"
        f"Predicted structures, with a 3D view:       {out}/predictions/index.html\n"
        f"Scores of each chain:                       {out}/scores\n"
        f"Runs (settings, metrics, model, adapter):   {out}/{{lorta,lora,none}}",
        soft_wrap=True,
    )


def table_of_proteins(out: Path, proteins: list[dict[str, str]]) -> Table:
    """The predicted sequences, with lDDT-Cα where there is a structure to compare with."""
    scores = {row["id"]: row["lddt_ca"] for row in read_csv(out / "scores/predictions/scores.csv")}
    table = Table(title="Sequences folded by the nano base")
    for column in ("protein", "residues", "pLDDT (expected)", "lDDT-Cα (true)"):
        table.add_column(column, justify="left" if column == "protein" else "right")
    for protein in proteins:
        score = scores.get(protein["id"])
        lddt = "-" if score is None else f"{float(score):.3f}"
        table.add_row(protein["id"], protein["length"], f"{float(protein['plddt']):.0f}", lddt)
    return table


def scores_in_words(out: Path) -> str:
    """The base's score on each held-out chain, the best first."""
    rows = [row for row in read_csv(out / "scores/base/scores.csv") if "held_out" in row["split"]]
    rows.sort(key=lambda row: -float(row["lddt_ca"]))
    return ", ".join(f"{row['id']} {float(row['lddt_ca']):.2f}" for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(out: Path, kind: str) -> list[str]:
    """The command that fine-tunes the base with one adapter."""
    chains, configs = out / "chains", ROOT / "configs" / "nano"
    words = (
        "train", "--config", configs / "base.yaml", "--config", configs / "finetune.yaml",
        "--start_from", BASE, "--model.language_model.weights", NANO / "esm2.pt",
        "--run", out / kind, "--adapter.kind", kind,
        "--data.train", chains / "train", "--data.validation", chains / "held_out",
        # Members of a family are alike: mmseqs finds two at 45 % identity.
        "--allow-leaks",
        # The table shows only the moving average's scores.
        "--engine.validate_raw", "false",
    )  # fmt: skip
    return [str(word) for word in words]


def evaluate(out: Path, run: Path, name: str) -> dict[str, float]:
    """Mean lDDT-Cα of a run on the chains of each split."""
    scores = out / "scores" / name
    stores = {split: out / "chains" / split for split in ("train", "held_out")}
    command("evaluate", "--run", run, "--store", *stores.values(), "--output", scores)
    found = json.loads((scores / "summary.json").read_text())["splits"]
    return {split: found[str(store)]["lddt_ca"] for split, store in stores.items()}


def command(*words: object) -> None:
    """Prints one command of esmfold-peft and runs it here, which saves importing PyTorch again."""
    arguments = [str(word) for word in words]
    show(f"$ esmfold-peft {shlex.join(arguments)}", "bold")
    if main_of_esmfold_peft(arguments) != 0:
        raise SystemExit(f"the demo stopped: esmfold-peft {arguments[0]} failed (see above)")


def train_apart(out: Path, kind: str, steps: int | None) -> float:
    """Trains one adapter in a process of its own, prints its lines, and returns its seconds."""
    arguments = train(out, kind) + ([] if steps is None else ["--engine.steps", str(steps)])
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

"""Compares what two versions of the package make of the example chains.

    git worktree add ../before COMMIT
    .venv/bin/python scripts/same_outputs.py ../before --output runs/same

Runs the same commands with the code of the other checkout and with this one's: prepare, ten steps
of training, evaluate, predict, adapters, a short search. Then compares every file that they wrote
and what they printed. Tables are compared cell by cell, without times, paths and versions.
"""

import argparse
import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
STEPS = """
prepare EXAMPLE/train --output chains/train --clusters none --workers 1
prepare EXAMPLE/held_out --output chains/held_out --clusters none --workers 1
train --config CONFIGS/tiny.yaml --run run --data.train chains/train --data.validation \
 chains/held_out --engine.steps 10 --engine.validate_every 5 --checkpoints.every 5 --log.every 1 \
 --allow_leaks --loss.weights.pae 0.1
evaluate --run run --output scores --device cpu --per_residue
predict EXAMPLE/sequences.fasta --run run --output structures --device cpu --pae --html \
 --max_length 100
evaluate --predictions structures --references EXAMPLE/held_out --output scores_files
evaluate --compare scores scores --output scores_compared
adapters count --models all
adapters count --reference llama2-7b
search --config CONFIGS/tiny.yaml --output ladder --data.train chains/train --data.validation \
 chains/held_out --grid '{"none": [], "lora": [1]}' --engine.steps 4 --engine.validate_every 2 \
 --engine.batch_size 2 --engine.micro_batch 2 --data.crop 24 --model.evoformer.blocks 1 \
 --ladder.floor 128 --checkpoints.every 4 --allow_leaks
search report ladder
"""
PASSING = re.compile(r"second|hours|^time|^date|memory|version|commit|command|^store|path|^run$")
"""Columns and keys that differ between two runs of one program."""
SPEED = re.compile(r"[\d.]+ steps/s.*")
TOLERANCE = 1e-6


def main() -> None:
    """Runs both versions and prints one line for each file that differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout of the other version")
    parser.add_argument("--output", type=Path, default=Path("runs/same_outputs"), help="folder")
    args = parser.parse_args()
    for name, code in (("before", args.before.resolve()), ("after", ROOT)):
        make(code, args.output / name)
    differences = compare(args.output / "before", args.output / "after")
    print("\n".join(differences) or "no difference")
    sys.exit(bool(differences))


def make(code: Path, folder: Path) -> None:
    """Runs the commands with a checkout's code; what a finished folder has is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    places = {"EXAMPLE": ROOT / "data" / "example", "CONFIGS": code / "configs"}
    for number, step in enumerate(shlex.split(line) for line in _lines()):
        printed = folder / f"{number:02}_{step[0]}.txt"
        if printed.exists():
            continue
        words = [re.sub("EXAMPLE|CONFIGS", lambda m: str(places[m[0]]), word) for word in step]
        done = subprocess.run(
            [sys.executable, "-m", "esmfold_peft", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1, 3) or "Traceback" in done.stderr:
            raise SystemExit(f"{code}: {shlex.join(words)}: {done.stderr.strip()}")
        printed.write_text(done.stdout)


def _lines() -> list[str]:
    return STEPS.replace("\\\n", "").strip().splitlines()


def compare(before: Path, after: Path) -> list[str]:
    """Names the files that one side lacks, or that differ."""
    names = {p.relative_to(side) for side in (before, after) for p in side.rglob("*")}
    names = sorted(n for n in names if n.suffix in READERS and not (before / n).is_dir())
    found = []
    for name in names:
        if not ((before / name).exists() and (after / name).exists()):
            found.append(f"{name}: {'after' if (before / name).exists() else 'before'} lacks it")
            continue
        read = READERS[name.suffix]
        found += [f"{name}: {line}" for line in _unlike(read(before / name), read(after / name))]
    return found


def _unlike(one: object, other: object, place: str = "") -> list[str]:
    """The first place in which two contents differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one.keys() ^ other.keys()))} on one side only"]
        pairs = [(f"{place}/{key}", one[key], other[key]) for key in one]
        pairs = [pair for pair in pairs if not PASSING.search(pair[0].rpartition("/")[2])]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{place}/{i}", *both) for i, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.shape == other.shape and np.allclose(one, other, 0, TOLERANCE, equal_nan=True)
        return [] if same else [f"{place}: numbers differ"]
    elif isinstance(one, float) and isinstance(other, float):
        return [] if math.isclose(one, other, rel_tol=1e-6, abs_tol=TOLERANCE) else [place]
    else:
        return [] if one == other else [f"{place}: {str(one)[:60]!r}, {str(other)[:60]!r}"]
    return next((found for place, a, b in pairs if (found := _unlike(a, b, place))), [])


def _table(path: Path) -> list[dict[str, object]]:
    with path.open(newline="") as file:
        return [{key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _store(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as store, store.begin() as t:
        return dict(t.cursor())


READERS = {
    ".csv": _table,
    ".json": lambda path: json.loads(path.read_text()),
    ".lmdb": _store,
    ".npz": lambda path: dict(np.load(path)),
    ".safetensors": load_file,
    ".txt": lambda path: SPEED.sub("", path.read_text()),
    **dict.fromkeys((".pdb", ".cif"), Path.read_text),
}


if __name__ == "__main__":
    main()

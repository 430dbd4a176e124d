"""Makes the data of the nano base: stores of chains, and sequences for its language model.

    python scripts/nano_data.py --train chains.tar --validation chains.tar val.txt --cameo cameo/ \
        --sequences swissprot.fasta --output runs/nano/data

`scripts/nano.sh` calls it. No chain or sequence that is trained on resembles one that is evaluated
(those of data/example included): mmseqs searches all of these in the others, and what it finds at
30 % identity and an E-value of 0.001 or better, over any length, is removed. data.json says how
much that was. The sequences are clustered at 50 % identity (as UniRef50, on which ESM-2 was
trained); one of each cluster is kept, and 1,000 of these are held out.
"""

import argparse
import csv
import json
import random
import subprocess
import tempfile
from pathlib import Path

from esmfold_peft.cli import main as esmfold_peft
from esmfold_peft.console import report
from esmfold_peft.datasets.store import Store
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import read_fasta

_SEARCH = "--min-seq-id 0.3 -e 0.001 -s 7.5 --max-seqs 1000000 --dbtype 1 --format-output target"
_CLUSTER = "--min-seq-id 0.5 -c 0.8 --cov-mode 1 --dbtype 1"
_HELD_OUT = 1000
_SHORTEST = 40, 1
"""Residues of a chain of the sets and of data/example."""

_EXAMPLE = Path(__file__).parents[1] / "data" / "example"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "validation", "cameo"):
        parser.add_argument(f"--{name}", nargs="+", required=True, help="sources of `prepare`")
    parser.add_argument("--sequences", type=Path, required=True, help="FASTA file")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    args = parser.parse_args()
    out: Path = args.output
    structures = {name: getattr(args, name) for name in ("train", "validation", "cameo")}
    for name, sources in {**structures, "example": [str(_EXAMPLE)]}.items():
        words = ["--clusters", "none", "--filters.min_length", str(_SHORTEST[name == "example"])]
        if esmfold_peft(["prepare", *sources, "--output", str(out / name), *words]) != 0:
            raise SystemExit(f"nano_data: prepare failed for --{name} (see above)")
    evaluated = {r.id: r.sequence for r in read_fasta([_EXAMPLE / "sequences.fasta"])}
    for name in ("validation", "cameo", "example"):
        evaluated |= {f"{name} {chain}": text for chain, text in _named(out / name).items()}
    read = len(Store(out / "train"))
    while similar := _similar(evaluated, _named(out / "train")):
        _keep_lines(out / "train" / "manifest.csv", similar)
    records = read_fasta([args.sequences])
    distinct = {r.sequence: r.id for r in records if len(r.chains) == 1}
    kept = _representatives({name: sequence for sequence, name in distinct.items()})
    clusters = len(kept)
    while similar := _similar(evaluated, kept):
        kept = {name: sequence for name, sequence in kept.items() if name not in similar}
    names = sorted(kept)
    random.Random(0).shuffle(names)
    for file, part in (("held_out", names[:_HELD_OUT]), ("train", names[_HELD_OUT:])):
        text = "".join(f">{name}\n{kept[name]}\n" for name in part)
        write_atomically(out / f"{file}.fasta", text)
    counts = {
        "search": f"mmseqs easy-search {_SEARCH}",
        "evaluated chains": {n: len(Store(out / n)) for n in ("validation", "cameo", "example")},
        "training chains": len(Store(out / "train")),
        "training chains removed": read - len(Store(out / "train")),
        "sequences": len(distinct),
        "clusters at 50 % identity": clusters,
        "clusters removed": clusters - len(kept),
        "training sequences": len(names) - _HELD_OUT,
        "held-out sequences": _HELD_OUT,
        "trained on and similar to an evaluated chain": 0,
    }
    write_atomically(out / "data.json", json.dumps(counts, indent=2) + "\n")
    report(json.dumps(counts, indent=2))


def _named(path: Path) -> dict[str, str]:
    """The sequences of a store by the names of its chains."""
    store = Store(path)
    return {name: store.sequence(place) for place, name in enumerate(store.manifest.ids)}


def _similar(queries: dict[str, str], targets: dict[str, str]) -> set[str]:
    """Names of the targets that resemble a query.

    Search again without them: the E-value of a hit falls with the number of targets.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = _fasta(folder / "queries", queries), _fasta(folder / "targets", targets)
        _mmseqs("easy-search", *files, folder / "hits", folder / "tmp", *_SEARCH.split())
        return set((folder / "hits").read_text().split())


def _representatives(sequences: dict[str, str]) -> dict[str, str]:
    """One sequence of each cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fasta = _fasta(folder / "sequences", sequences)
        _mmseqs("easy-linclust", fasta, folder / "out", folder / "tmp", *_CLUSTER.split())
        rows = (folder / "out_cluster.tsv").read_text().splitlines()
        return {name: sequences[name] for name in {row.split("\t")[0] for row in rows}}


def _fasta(path: Path, sequences: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def _mmseqs(*words: object) -> None:
    try:
        subprocess.run(
            ["mmseqs", *map(str, words), "-v", "1"], check=True, stdout=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise UserError(
            "mmseqs: not found (Debian package mmseqs2, or https://mmseqs.com)"
        ) from None


def _keep_lines(manifest: Path, removed: set[str]) -> None:
    """Removes chains from a store by their names: the rest is a smaller store."""
    with manifest.open(newline="") as file:
        header, *rows = csv.reader(file)
    kept = [row for row in rows if row[0] not in removed]
    with manifest.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept])


if __name__ == "__main__":
    main()

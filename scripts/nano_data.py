"""Makes the data of the nano base: stores of chains, and sequences for its language model.

    python scripts/nano_data.py --train chains.tar --validation chains.tar val.txt --cameo cameo \
        --sequences swissprot.fasta --output runs/nano/data

`scripts/nano.sh` calls it. mmseqs searches every chain that is evaluated (those of data/example
too) in everything that is trained on; what it finds at 30 % identity and an E-value of 0.001 or
better, over any length, is removed. Homologues that are more distant remain. data.json has the
counts. The sequences are clustered at 50 % identity, as UniRef50 on which ESM-2 was trained; one of
each cluster is kept, and 1,000 of these are held out. Held-out and training sequences may still be
alike where the clustering has missed it.

Exit codes: 0 done, 2 wrong usage or files, 130 stopped by Ctrl-C.
"""

import csv
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from downloading import OneLineParser, ended

from esmfold_peft.cli import main as esmfold_peft
from esmfold_peft.console import report
from esmfold_peft.datasets.mmseqs import cluster, similar
from esmfold_peft.datasets.store import Store
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.protein.fasta import read_fasta

_IDENTITY, _IDENTITY_OF_CLUSTERS, _COVER_OF_CLUSTERS = 0.3, 0.5, 0.8
_HELD_OUT = 1000
_SHORTEST = 40
"""Residues of a chain that is trained on or evaluated; those of data/example may be shorter."""
_EXAMPLE = Path(__file__).parents[1] / "data" / "example"


def main() -> int:
    """Runs the command line."""
    return ended("nano_data", _make)


def _make() -> int:
    parser = OneLineParser(description=(__doc__ or "").splitlines()[0])
    for name in ("train", "validation", "cameo"):
        parser.add_argument(f"--{name}", nargs="+", required=True, help="sources of `prepare`")
    parser.add_argument("--sequences", type=Path, required=True, help="FASTA file")
    parser.add_argument("--output", type=Path, required=True, help="folder to fill")
    args = parser.parse_args()
    out: Path = args.output
    for name in ("train", "validation", "cameo"):
        _prepare(getattr(args, name), out / name, _SHORTEST)
    _prepare([str(_EXAMPLE)], out / "example", 1)

    stores = ("validation", "cameo", "example")
    evaluated = {f"{name} {chain}": s for name in stores for chain, s in _named(out / name).items()}
    evaluated |= {r.id: r.sequence for r in read_fasta([_EXAMPLE / "sequences.fasta"])}
    chains = _named(out / "train")
    kept = _unlike(evaluated, chains)
    _keep_lines(out / "train" / "manifest.csv", kept.keys())

    records = read_fasta([args.sequences])
    names = {record.sequence: record.id for record in records if len(record.chains) == 1}
    clusters = cluster(
        {sequence: sequence for sequence in names},
        threads=_threads(),
        identity=_IDENTITY_OF_CLUSTERS,
        cover=_COVER_OF_CLUSTERS,
        linear=True,
    )
    representatives = {sequence: sequence for sequence in sorted(set(clusters.values()))}
    apart = list(_unlike(evaluated, representatives))
    random.Random(0).shuffle(apart)
    parts = {"held_out": apart[:_HELD_OUT], "train": apart[_HELD_OUT:]}
    for name, part in parts.items():
        text = "".join(f">{names[sequence]}\n{sequence}\n" for sequence in part)
        write_atomically(out / f"{name}.fasta", text)
    counts = {
        "removed": f"mmseqs: {_IDENTITY:.0%} identity, E-value 0.001, any length",
        "evaluated": {**{name: len(Store(out / name)) for name in stores}, "all": len(evaluated)},
        "training chains": len(kept),
        "training chains removed": len(chains) - len(kept),
        "sequences": len(names),
        "clusters at 50 % identity": len(representatives),
        "clusters removed": len(representatives) - len(apart),
        "training sequences": len(parts["train"]),
        "held-out sequences": len(parts["held_out"]),
    }
    write_atomically(out / "data.json", json.dumps(counts, indent=2) + "\n")
    report(json.dumps(counts, indent=2))
    return 0


def _prepare(sources: list[str], output: Path, shortest: int) -> None:
    words = ["--clusters", "none", "--filters.min_length", str(shortest)]
    if esmfold_peft(["prepare", *sources, "--output", str(output), *words]) != 0:
        raise UserError(f"{output}: `prepare` has failed (see above)")


def _named(path: Path) -> dict[str, str]:
    """The sequences of a store by the names of its chains."""
    store = Store(path)
    return {name: store.sequence(place) for place, name in enumerate(store.manifest.ids)}


def _unlike(evaluated: Mapping[str, str], trained: Mapping[str, str]) -> dict[str, str]:
    """What no evaluated sequence resembles.

    The search is repeated until it finds nothing: E-values fall with the number of sequences.
    """
    kept = dict(trained)
    while hits := similar(evaluated, kept, threads=_threads(), identity=_IDENTITY, cover=0.0):
        for name in {hit.target for hit in hits}:
            del kept[name]
    return kept


def _threads() -> int:
    return os.cpu_count() or 1


def _keep_lines(manifest: Path, kept: set[str]) -> None:
    """Removes all other chains from a store: the rest is a smaller store."""
    with manifest.open(newline="") as file:
        header, *rows = csv.reader(file)
    with manifest.open("w", newline="") as file:
        lines = [header, *(row for row in rows if row[0] in kept)]
        csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    raise SystemExit(main())

"""What scores cost: lDDT beside biotite's, superpositions beside tmtools', memory of a long chain.

    python scripts/benchmarks/scoring.py FOLDER [--residues 300 400] [--output scoring.json]

FOLDER holds mmCIF files. Each of their first chains with so many resolved residues is scored
against itself with noise of 1 Å, in one process and one thread, parsing apart. Every round scores
all of them by one method after the other, so that a machine that slows down slows all. lDDT-Cα is
`lddt_ca`, which `evaluate` calls (float64, with the scores of residues); biotite's is timed twice,
for the score of the chain alone and with those of the residues, which take a call of their own.
All atoms: `lddt_all_atom`, which also chooses between the names of symmetric atoms, and biotite's,
which takes names as they are. Superposition: RMSD, GDT-TS, GDT-HA and TM-score together; tmtools
gives the TM-score alone. Their numbers must agree before anything is timed.

Times are of the process (CPU time) and medians over rounds. Ratios are of the fastest rounds: other
work on the machine makes rounds slower (it empties caches), and none faster. With `--check` the
exit code is 1 if a score is less than `LEAST` times as fast as the others'.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import biotite.structure as struc
import numpy as np
import tmtools
import torch
from measuring import CPU, Step, command_line, interleaved, table, write_report
from rich.console import Console

from esmfold_peft.datasets.features import Features, features
from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.metrics.superposition import superposition_scores
from esmfold_peft.protein.read import read_structure

CA = 1
LEAST = {
    ("lddt_ca", "biotite"): 3.0,
    ("lddt_all_atom", "biotite"): 2.0,
    ("superposition", "tmtools"): 1.0,
}
"""How many times as fast as another program each score has to be."""


@dataclass(frozen=True)
class Pair:
    """A chain and a prediction of it, in the form that each program takes.

    Attributes:
        reference: the chain.
        predicted: atom14 coordinates of the prediction.
        tensors: prediction, reference and mask as a batch of one, for lDDT.
        every, every_predicted: all known atoms for biotite, and the coordinates predicted for them.
        ca, ca_predicted: the same of Cα.
    """

    reference: Features
    predicted: np.ndarray
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    every: struc.AtomArray
    every_predicted: np.ndarray
    ca: struc.AtomArray
    ca_predicted: np.ndarray


def ca_score(pair: Pair) -> float:
    """lDDT-Cα."""
    return float(lddt_ca(*pair.tensors).per_chain)


def all_atom_score(pair: Pair) -> float:
    """All-atom lDDT."""
    predicted, true, mask = pair.tensors
    aatype = torch.from_numpy(pair.reference.aatype)[None]
    return float(lddt_all_atom(predicted.double(), true.double(), mask, aatype=aatype).per_chain)


def superpositions(pair: Pair) -> float:
    """Every score that needs a superposition; gives the TM-score."""
    mask = pair.reference.atom_mask[:, CA]
    true = pair.reference.positions[:, CA]
    return superposition_scores(pair.predicted[:, CA], true, mask, mask).tm_score


def tm_score(pair: Pair) -> float:
    """TM-score of tmtools with the known correspondence of residues."""
    x, y = pair.ca_predicted.astype(np.float64), pair.ca.coord.astype(np.float64)
    letters = "A" * len(x)
    return tmtools.tm_align(x, y, letters, letters, alignment=[letters] * 2).tm_norm_chain2


SCORES: dict[str, dict[str, Callable[[Pair], object]]] = {
    "lddt_ca": {
        "ours": ca_score,
        "biotite": lambda pair: struc.lddt(pair.ca, pair.ca_predicted),
        "biotite_residues": lambda pair: struc.lddt(pair.ca, pair.ca_predicted, "residue"),
    },
    "lddt_all_atom": {
        "ours": all_atom_score,
        "biotite": lambda pair: struc.lddt(pair.every, pair.every_predicted),
    },
    "superposition": {"ours": superpositions, "tmtools": tm_score},
}
"""Ways to each score."""

AGREE = {"lddt_ca": 1e-6, "lddt_all_atom": 2e-3, "superposition": 1e-6}
"""How far the first two ways to a score may be apart."""


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table, and writes all numbers."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="mmCIF files")
    add("--check", action="store_true", help="exit code 1 if ours are too slow")
    add("--residues", type=int, nargs=2, default=[300, 400], help="fewest and most")
    add("--rounds", type=int, default=25, help="of lDDT-Cα; of others a fifth, at least three")
    add("--long", type=int, default=3000, help="residues whose memory is measured")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    pairs = read_pairs(args.folder, *args.residues)
    if not pairs:
        raise SystemExit(f"{args.folder}: no chain of {args.residues} resolved residues")
    check(pairs)
    args.folder = args.folder.name
    found: dict = {
        "times": "CPU time: medians over rounds; times_faster: of the fastest rounds",
        "pairs": len(pairs),
        "mean_residues": statistics.fmean(len(pair.ca) for pair in pairs),
        "mean_atoms": statistics.fmean(len(pair.every) for pair in pairs),
    }
    for name in SCORES:
        rounds = args.rounds if name == "lddt_ca" else max(3, args.rounds // 5)
        found[name] = measure(steps_of(name, pairs), rounds, len(pairs))
    found["memory"] = measure_memory(args.long)
    rows = (
        (f"{part}: {name.replace('_', ' ')}", f"{value:,.4g}")
        for part in (*SCORES, "memory")
        for name, value in found[part].items()
    )
    title = f"{found['pairs']} pairs of {found['mean_residues']:.0f} residues"
    Console().print(table(("what", "value"), rows, title))
    write_report(args, found)
    if args.check and (slow := too_slow(found)):
        raise SystemExit(slow)


def too_slow(found: dict) -> str:
    """The scores that are less than `LEAST` times as fast as the others', one a line."""
    lines = []
    for (score, other), least in LEAST.items():
        times = found[score][f"times_faster_than_{other}"]
        if times < least:
            lines.append(f"{score}: {times:.2f} times as fast as {other}; {least:g} are promised")
    return "\n".join(lines)


def read_pairs(folder: Path, fewest: int, most: int) -> list[Pair]:
    """The chains of a folder that have so many resolved residues."""
    chains = [features(read_structure(path)) for path in sorted(folder.glob("*.cif.gz"))]
    draws = np.random.RandomState(0)
    return [
        make_pair(chain, draws)
        for chain in chains
        if fewest <= int(chain.atom_mask[:, CA].sum()) <= most
    ]


def make_pair(chain: Features, draws: np.random.RandomState) -> Pair:
    """A chain with a noisy copy as its prediction."""
    noise = draws.randn(*chain.positions.shape)
    predicted = (chain.positions + noise).astype(np.float32)
    arrays = (predicted, chain.positions, chain.atom_mask)
    ca_mask = chain.atom_mask & (np.arange(14) == CA)
    return Pair(
        reference=chain,
        predicted=predicted,
        tensors=tuple(torch.from_numpy(array)[None] for array in arrays),
        every=atom_array(chain, chain.atom_mask),
        every_predicted=predicted[chain.atom_mask],
        ca=atom_array(chain, ca_mask),
        ca_predicted=predicted[ca_mask],
    )


def atom_array(chain: Features, mask: np.ndarray) -> struc.AtomArray:
    """Some atoms of a chain; biotite needs their residues, and no names."""
    residue, _ = np.nonzero(mask)
    atoms = struc.AtomArray(len(residue))
    atoms.coord = chain.positions[mask]
    atoms.res_id[:], atoms.chain_id[:] = residue + 1, "A"
    return atoms


def check(pairs: list[Pair]) -> None:
    """Stops if the methods do not give the same numbers."""
    for pair in pairs:
        for name, limit in AGREE.items():
            ours, other, *_ = (float(score(pair)) for score in list(SCORES[name].values())[:2])
            if abs(ours - other) > limit:
                raise SystemExit(f"{pair.reference.id}: {name}: {ours} is not {other}")


def steps_of(name: str, pairs: list[Pair]) -> dict[str, Step]:
    """Each way to a score, for all pairs."""

    def each(score: Callable[[Pair], object]) -> Step:
        return lambda: [score(pair) for pair in pairs]

    return {way: each(score) for way, score in SCORES[name].items()}


def measure(steps: dict[str, Step], rounds: int, pairs: int) -> dict[str, float]:
    """Milliseconds a pair of each way, and how many times faster ours is than the others."""
    interleaved(steps, 1, CPU)  # warms up
    times = interleaved(steps, rounds, CPU)
    found = {
        f"{name}_ms": 1000 * statistics.median(values) / pairs for name, values in times.items()
    }
    for name in list(steps)[1:]:
        found[f"times_faster_than_{name}"] = min(times[name]) / min(times["ours"])
    return found


def measure_memory(residues: int) -> dict[str, float]:
    """Peaks of a process that scores one long chain by one method after the other."""
    script = Path(__file__).with_name("scoring_memory.py")
    # glibc otherwise keeps freed memory, and the peak is its own.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, str(script), str(residues)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()

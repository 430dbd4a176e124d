"""Memory and time of scoring a long chain; the other half of `scoring.py`, in its own process.

    MALLOC_MMAP_THRESHOLD_=1000000 python scripts/benchmarks/scoring_memory.py RESIDUES

Prints, as JSON, the peak of the process in MiB before scoring, and the seconds and the peak of each
score. The chain is a compact block of residues at the density of a protein, the prediction the same
with noise of 1 Å.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measuring import peak_mib

from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.metrics.superposition import superposition_scores
from esmfold_peft.protein.residues import ATOM14_MASK


def main() -> None:
    """Scores the chain and prints seconds and memory."""
    torch.set_num_threads(1)
    scorings = chain(int(sys.argv[1]))
    found: dict[str, float] = {"residues": int(sys.argv[1]), "before_mib": peak_mib()}
    for name, scoring in scorings.items():
        started = time.perf_counter()
        score = scoring()
        if not 0.3 < score < 1:
            raise SystemExit(f"{name}: {score} is no score of this prediction")
        found[f"{name}_seconds"] = time.perf_counter() - started
        found[f"{name}_mib"] = peak_mib()
    print(json.dumps(found))


def chain(length: int) -> dict[str, Callable[[], float]]:
    """The scores of a chain of so many residues, as functions."""
    draws = np.random.RandomState(0)
    side = round(length ** (1 / 3)) + 1
    # 125 Å³ a residue.
    grid = np.stack(np.unravel_index(np.arange(length), (side, side, side)), -1)
    true = 5.0 * grid[:, None] + draws.randn(length, 14, 3)
    predicted = true + draws.randn(*true.shape)
    aatype = torch.from_numpy(draws.randint(0, 20, length))[None]
    mask = torch.from_numpy(ATOM14_MASK)[aatype]
    pair = torch.from_numpy(predicted)[None], torch.from_numpy(true)[None], mask
    everything = np.ones(length, dtype=bool)
    return {
        "lddt_ca": lambda: float(lddt_ca(*pair).per_chain),
        "lddt_all_atom": lambda: float(lddt_all_atom(*pair, aatype=aatype).per_chain),
        "superposition": lambda: (
            superposition_scores(predicted[:, 1], true[:, 1], everything, everything).tm_score
        ),
    }


if __name__ == "__main__":
    main()

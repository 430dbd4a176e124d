"""Time and memory of sampling from a manifest: a part of data.py, in a process of its own.

python scripts/benchmarks/sampling.py manifest.csv
"""

import json
import statistics
import sys
import time
from pathlib import Path

from measuring import peak_mib

from esmfold_peft.datasets.manifest import read_manifest
from esmfold_peft.datasets.order import Mixture, StoreOrder, chain_weights
from esmfold_peft.datasets.samples import StepBatches


def sample(path: Path) -> dict[str, float]:
    """Reads a manifest, makes a sampler, and draws 10,000 batches of 32."""
    started = time.perf_counter()
    manifest = read_manifest(path)
    weights = chain_weights(manifest.length, manifest.cluster_size, "inverse", True)
    batches = iter(StepBatches(Mixture([StoreOrder(weights, 0)], [1.0], 0), 32, 0, 1))
    next(batches)
    built = time.perf_counter() - started
    times = []
    for _ in range(10_000):
        started = time.thread_time()
        next(batches)
        times.append(time.thread_time() - started)
    return {
        "chains": len(manifest),
        "seconds_to_build": built,
        "peak_mib": peak_mib(),
        "batch_ms_median": 1000 * statistics.median(times),
        "batch_ms_largest": 1000 * max(times),
    }


if __name__ == "__main__":
    print(json.dumps(sample(Path(sys.argv[1]))))

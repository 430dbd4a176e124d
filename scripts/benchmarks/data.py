"""What data cost: parsing, features, records, `prepare`, the loader and the sampler.

    python scripts/benchmarks/data.py FOLDER [--rounds 5] [--crop 256] [--output data.json]

FOLDER holds mmCIF files, and tars of them. Parsing reads the same files one after the other in one
process, by this project's reader (every protein chain of the first model, as arrays) and by
Biopython's MMCIFParser (a tree of all atoms); both begin with the compressed file on disk. Features
and records (packing and unpacking a chain of the store) are timed on the chains that were read.
`prepare` makes a store of the whole folder, with one worker and with two. The loader is that of
training: two workers sample, crop and pad chains of the store and prepare the true structures for
the losses, while the main process does nothing else. The sampler is measured on a manifest of
600,000 chains without a store: a process of its own reads it, makes the sampler and draws batches
of 32.

Times of parsing, features and records are of the process (CPU time); those of `prepare` and the
loader are wall time on all cores, so other work on the machine slows them. Ratios
are medians over rounds of paired timings. With `--check` the exit code is 1 if parsing is less than
eight times as fast as Biopython's, or if a batch takes the sampler a millisecond.
"""

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import torch
from Bio.PDB.MMCIFParser import MMCIFParser
from measuring import CPU, Step, command_line, interleaved, ratio, table, write_report
from rich.console import Console

from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.manifest import ManifestEntry, manifest_text
from esmfold_peft.datasets.records import from_record, to_record
from esmfold_peft.protein.read import read_chains

PREPARE = (sys.executable, "-m", "esmfold_peft", "prepare", "--clusters", "none")
LEAST_TIMES_FASTER = 8.0
"""How many times as fast as Biopython's parser ours has to be, on files with many atoms."""
MOST_BATCH_MS = 1.0
"""What a batch of the sampler may take."""


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table, and writes all numbers."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--check", action="store_true", help="exit code 1 if a part is too slow")
    add("folder", type=Path, help="mmCIF files and tars of them")
    add("--rounds", type=int, default=5, help="of parsing, features and records")
    add("--every", type=int, default=1, help="parse every n-th file only")
    add("--prepare-rounds", type=int, default=1, help="of `prepare`")
    add("--crop", type=int, default=256, help="residues")
    add("--chains", type=int, default=32, help="crops of a step")
    add("--samples", type=int, default=4000, help="crops to take from the loader")
    add("--listed", type=int, default=600_000, help="chains to sample from")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    files = sorted(args.folder.rglob("*.cif.gz"))[:: args.every]
    if not files:
        raise SystemExit(f"{args.folder}: no .cif.gz file")
    found = {
        "parsing": measure_parsing(files, args.rounds),
        "chains": measure_chains(files, args.rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        found["prepare"] = measure_prepare(args.folder, Path(folder), args.prepare_rounds)
        found["loader"] = measure_loader(Path(folder) / "2", args)
        found["sampler"] = measure_sampler(Path(folder) / "manifest.csv", args.listed)
    rows = (
        (f"{part}: {name.replace('_', ' ')}", f"{value:,.{'4g' if value < 1000 else '0f'}}")
        for part, numbers in found.items()
        for name, value in numbers.items()
    )
    Console().print(table(("what", "value"), rows, "data"))
    write_report(args, dict(found))
    if args.check and (slow := too_slow(found)):
        raise SystemExit(slow)


def too_slow(found: dict) -> str:
    """The parts that are slower than promised, one a line."""
    times, batch = found["parsing"]["times_faster"], found["sampler"]["batch_ms_median"]
    lines = []
    if times < LEAST_TIMES_FASTER:
        lines.append(f"parsing: {times:.1f} times as fast; {LEAST_TIMES_FASTER:g} are promised")
    if batch >= MOST_BATCH_MS:
        lines.append(f"sampler: {batch:.2f} ms a batch; less than {MOST_BATCH_MS:g} are promised")
    return "\n".join(lines)


def measure_parsing(files: list[Path], rounds: int) -> dict[str, float]:
    """Chains a second of both readers, and how many times faster this project's is."""
    chains = sum(len(read_chains(file)) for file in files)

    def ours() -> None:
        for file in files:
            read_chains(file)

    def biopython() -> None:
        for file in files:
            with gzip.open(file, "rt") as text:
                MMCIFParser(QUIET=True).get_structure(file.name, text)

    times = interleaved({"ours": ours, "biopython": biopython}, rounds, CPU)
    return {
        "files": len(files),
        "chains": chains,
        "chains_per_second": chains / statistics.median(times["ours"]),
        "chains_per_second_biopython": chains / statistics.median(times["biopython"]),
        "times_faster": ratio(times["biopython"], times["ours"]),
    }


def measure_chains(files: list[Path], rounds: int) -> dict[str, float]:
    """Chains a second for features, packing and unpacking."""
    structures = [chain for file in files for chain in read_chains(file)]
    chains = [features(structure) for structure in structures]
    records = [to_record(chain) for chain in chains]

    def each(work, items) -> Step:
        return lambda: [work(item) for item in items]

    steps = {
        "features": each(features, structures),
        "packing": each(to_record, chains),
        "unpacking": each(lambda record: from_record(record, "x", 1.0), records),
    }
    times = interleaved(steps, rounds, CPU)
    rates = {name: len(chains) / statistics.median(found) for name, found in times.items()}
    return {f"{name}_per_second": rate for name, rate in rates.items()} | {
        "record_bytes_per_residue": sum(map(len, records)) / sum(map(len, chains))
    }


def measure_prepare(source: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Wall time of `prepare` with one and two workers, and how much the second one helps."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2):
            output = folder / (str(workers) if number == 0 else f"{workers}-{number}")
            started = time.perf_counter()
            run([*PREPARE, source, "--output", output, "--workers", workers])
            times[workers].append(time.perf_counter() - started)
    report = json.loads((folder / "2" / "report.json").read_text())
    return {
        "files": report["files"],
        "chains": report["chains"],
        "seconds_1_worker": statistics.median(times[1]),
        "seconds_2_workers": statistics.median(times[2]),
        "speedup_of_2_workers": ratio(times[1], times[2]),
        "file_bytes_per_residue": report["bytes_per_residue"],
    }


def measure_loader(store: Path, args: argparse.Namespace) -> dict[str, float]:
    """Crops a second that training would get, after the workers have started."""
    config = TrainConfig(
        run=Path("unused"),
        data=DataConfig(train=store, crop=args.crop, workers=2),
        engine=EngineConfig(batch_size=args.chains),
    )
    batches = iter(ChainDataModule(config).train_dataloader())
    next(batches)
    steps = args.samples // args.chains
    started = time.perf_counter()
    residues = sum(sum(batch.lengths) for batch, _ in islice(batches, steps))
    passed = time.perf_counter() - started
    return {
        "crops_per_second": steps * args.chains / passed,
        "mean_residues": residues / (steps * args.chains),
        "workers": 2,
    }


def measure_sampler(path: Path, chains: int) -> dict[str, float]:
    """Time and memory of sampling from many chains."""
    rng = random.Random(0)
    text = manifest_text(
        ManifestEntry(
            id=f"{k:06d}_A",
            source=f"mmcif/{k:06d}.cif.gz",
            entity="1",
            length=rng.randint(30, 900),
            resolved=30,
            resolution=2.0,
            method="X-RAY DIFFRACTION",
            release_date="2010-01-01",
            cluster=f"{k % 40_000:06d}_A",
            cluster_size=15,
            sequence_hash=f"{k:016x}",
            hash=f"{k:032x}",
        )
        for k in range(chains)
    )
    path.write_text(text)
    # A process of its own, with these imports alone: what it takes is the sampler's.
    script = Path(__file__).with_name("sampling.py")
    return json.loads(run([sys.executable, script, path]))


def run(command: list[object]) -> str:
    """What a command prints; it must succeed."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    # Biopython's own remarks about files.
    warnings.filterwarnings("ignore", module="Bio")
    main()

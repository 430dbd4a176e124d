"""`esmfold-peft predict` on a Ray cluster: workers share one list of sequences.

    pip install 'esmfold-peft[ray]'
    python scripts/predict_ray.py --workers 8 sequences.fasta --run runs/x --output predictions

The flags of `predict` follow this script's own; every worker runs `predict` for its share, as under
torchrun. Ray restarts a worker that is lost, with its node or by running out of memory, and the new
one resumes. All nodes need the same paths: FASTA, model and output are on a shared disk. `--gpus
0.5` puts two workers on a GPU. Without a cluster's address (`--address`, or RAY_ADDRESS) Ray starts
on this machine.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from esmfold_peft.cli import parse
from esmfold_peft.commands.predict import run as predict
from esmfold_peft.config import PredictConfig
from esmfold_peft.config.parsing import to_config
from esmfold_peft.errors import UserError
from esmfold_peft.prediction.row_journal import OK, read_rows, require_new
from esmfold_peft.prediction.workers import Worker


def main(words: list[str] | None = None) -> int:
    """Runs all workers and returns the exit code of `predict`."""
    parser = _parser()
    own, rest = parser.parse_known_args(words)
    if own.workers < 1:
        parser.error(f"--workers: {own.workers} is less than 1")
    try:
        import ray
    except ImportError:
        parser.error("Ray is not installed: pip install 'esmfold-peft[ray]'")
    parsed = parse(["predict", *rest])
    try:
        config = to_config(parsed.parser, parsed.values, PredictConfig)
        if Path("-") in config.fasta:
            raise UserError("fasta: - is standard input, which workers cannot read; name a file")
        if not config.resume:
            require_new(config.output)
    except UserError as error:
        parser.error(str(error))
    # A restarted worker finds the files of the lost one.
    config = replace(_absolute(config), resume=True)
    ray.init(address=own.address, include_dashboard=False)
    # Ray repeats the work of a lost worker, but not of one that raised an exception.
    work = ray.remote(num_gpus=own.gpus, num_cpus=own.cpus, max_retries=own.retries)(predict_share)
    found = [work.remote(config, rank, own.workers) for rank in range(own.workers)]
    codes = ray.get(found)
    for line in dict.fromkeys(line for _, line in codes if line):
        print(line, file=sys.stderr)
    if any(code == 2 for code, _ in codes):
        return 2
    return int(any(row.status != OK for row in read_rows(config.output).values()))


def _absolute(config: PredictConfig) -> PredictConfig:
    """The same files, named so that a worker finds them from its own folder."""
    adapters = config.adapter_folders().items()
    return replace(
        config,
        fasta=tuple(path.resolve() for path in config.fasta),
        output=config.output.resolve(),
        run=None if config.run is None else config.run.resolve(),
        esmfold=_absolute_weights(config.esmfold),
        language_model=_absolute_weights(config.language_model),
        adapter=tuple(f"{name}={folder.resolve()}" for name, folder in adapters),
    )


def _absolute_weights(weights: str | None) -> str | None:
    return weights if weights in (None, "pretrained") else str(Path(weights).resolve())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s [--workers N] [--gpus N] [--address A] FASTA --run RUN --output FOLDER ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--address", help="of the cluster (default: RAY_ADDRESS, else this machine)")
    add("--workers", type=int, default=1, help="processes (default: 1)")
    add("--gpus", type=float, default=1, help="of each; 0 for none (default: 1)")
    add("--cpus", type=float, default=1, help="of each (default: 1)")
    add("--retries", type=int, default=3, help="of a lost worker (default: 3)")
    return parser


def predict_share(config: PredictConfig, rank: int, workers: int) -> tuple[int, str]:
    """Predicts one worker's share; the exit code, and a line if a setting or an input is wrong."""
    try:
        # Ray shows a worker only its own GPUs.
        return predict(config, Worker(rank, workers, local_rank=0)), ""
    except UserError as error:
        return 2, f"predict: error: {error}"


if __name__ == "__main__":
    sys.exit(main())

"""What decides a comparison of the arms of LoRTA's Table 10, beside the adapter itself?

    python scripts/benchmarks/paper_arms.py --output paper_arms.json

Each arm of `configs/paper` is trained as its file says, optimizer and language model included
(ESM-2 35M), but with random weights, a small trunk, no recycling, and crops of 32 in batches of 2
from data/example, in float32 on a CPU: once with OpenFold's epsilon of Adam (1e-5), once with
AlphaFold 2's (1e-6), once with one that damps nothing. Printed for each, at the last step: the
largest relative update ‖ΔW‖ / ‖W‖, the adapter's share of the squared norm of the gradient, for
every factor the share of Adam's step that epsilon leaves, the loss of the training chains as a
whole by the moving average of the weights, and the cosine of the language model's last hidden
states with those of the frozen one, mean over residues.

The weights are random, so that losses say nothing of accuracy. Other steps, warm-ups, scales and
starts are flags.
"""

import argparse
import csv
import tempfile
from itertools import product
from pathlib import Path

import torch
from measuring import command_line, table, write_report
from rich.console import Console

from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.commands.train import run as train
from esmfold_peft.config import PrepareConfig, TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.datasets.batch import collate
from esmfold_peft.datasets.store import Store
from esmfold_peft.runs.ready import load_model

ROOT = Path(__file__).parents[2]
ARMS = ("lora_r1", "lorta_r1", "lorta_r8", "lorta_r64")
SCALE_FREE = 1e-15
CHAINS = 4
"""Of the training chains, on which hidden states are compared."""

SMALL = {
    "model.language_model.weights": "random",
    "model.evoformer.blocks": 2,
    "model.evoformer.c_m": 64,
    "model.evoformer.c_z": 32,
    "model.evoformer.c_s": 64,
    "model.evoformer.c_mul": 32,
    "model.evoformer.heads_msa": 2,
    "model.evoformer.recompute": "false",
    "model.structure.layers": 2,
    "model.max_recycles": 0,
    "loss.resolution": "null",
    "data.crop": 32,
    "data.workers": 0,
    "guard.update_limit": 0,
    "engine.accelerator": "cpu",
    "engine.precision": "float32",
    "engine.batch_size": 2,
    "engine.micro_batch": 2,
}
"""Settings that make an arm of the paper small."""


def main(words: list[str] | None = None) -> None:
    """Trains all arms and prints what their metrics say."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--arms", nargs="+", default=ARMS, choices=ARMS, help="(default: all)")
    add("--eps", nargs="+", type=float, default=(1e-5, 1e-6, SCALE_FREE), help="of the adapter")
    add("--steps", type=int, default=40, help="optimizer steps (default: 40)")
    add("--warmup", type=int, default=1000, help="of the learning rate (default: the paper's)")
    add("--multiple", type=float, help="alpha / rank of all arms, instead of their own")
    add("--init", help="of LoRTA's factors, instead of the paper's")
    add("--seeds", nargs="+", type=int, default=(0,), help="of weights and order (default: 0)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chains = example_chains(Path(folder), "train")
        for arm, eps, seed in product(args.arms, args.eps, args.seeds):
            run = Path(folder) / f"{arm}_{eps:g}_{seed}"
            train_arm(arm, run, chains, eps, seed, args)
            rows.append({"arm": arm, "eps": eps, "seed": seed} | measured(run, chains))
    columns = ("arm", "damping", "ε", "seed", "‖ΔW‖ / ‖W‖", "gradient share", "loss", "cosine")
    cells = (
        (
            row["arm"],
            ", ".join(f"{name} {value:.2g}" for name, value in row["damping"].items()),
            f"{row['eps']:g}",
            str(row["seed"]),
            f"{row['relative_update']:.2g}",
            f"{row['gradient_share']:.2g}",
            f"{row['loss']:.2f}",
            f"{row['cosine']:.3f}",
        )
        for row in rows
    )
    title = "Table 10's arms, small, with random weights"
    Console(highlight=False, width=160).print(table(columns, cells, title, left=2))
    write_report(args, {"rows": rows})


def example_chains(folder: Path, *splits: str) -> Path:
    """A store of some of the example's chains."""
    files = tuple(ROOT / "data" / "example" / split for split in splits)
    prepare(PrepareConfig(files, folder / "chains", clusters="none", workers=1))
    return folder / "chains"


def train_with(flags: dict[str, object], *words: str) -> None:
    """Trains by flags, and words before them."""
    parser = config_parser(TrainConfig)
    given = parser.parse_args([*words, "--allow_leaks", *(f"--{k}={v}" for k, v in flags.items())])
    if code := train(to_config(parser, given, TrainConfig)):
        raise SystemExit(code)


def metrics(run: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def train_arm(
    arm: str, run: Path, chains: Path, eps: float, seed: int, args: argparse.Namespace
) -> None:
    """Trains an arm of the paper, made small."""
    own: dict[str, object] = {
        "run": run,
        "data.train": chains,
        "data.validation": chains,
        "optimizer.eps_adapter": eps,
        "optimizer.warmup_steps": args.warmup,
        "engine.steps": args.steps,
        "engine.validate_every": args.steps,
        "engine.validate_raw": "false",
        "log.every": max(1, args.steps // 20),
        "checkpoints.every": args.steps,
        "seed": seed,
    }
    kind, rank = arm.split("_r")
    if args.multiple is not None:
        own["adapter.alpha"] = args.multiple * int(rank)
    if args.init is not None and kind == "lorta":
        own["adapter.init"] = args.init
    train_with(SMALL | own, "--config", str(ROOT / "configs" / "paper" / f"{arm}.yaml"))


def measured(run: Path, chains: Path) -> dict[str, object]:
    """What the last lines of a run's metrics say, and how much of the language model is left."""
    last = {name: float(value) for name, value in metrics(run)[-1].items() if value}
    return {
        "relative_update": last["update/relative"],
        "gradient_share": last["gradient_share/adapter"],
        "damping": {n.removeprefix("damping/"): v for n, v in last.items() if "damping/" in n},
        "loss": last["validation/loss"],
        "cosine": cosine(run, chains),
    }


@torch.no_grad()
def cosine(run: Path, chains: Path) -> float:
    """Of the last hidden states with and without the adapter, mean over residues."""
    lm = load_model(run, raw=True)[0].language_model
    store = Store(chains)
    batch = collate([store[i] for i in range(CHAINS)], [True] * CHAINS)
    adapted = lm(batch.aatype, batch.mask)[:, :, -1]
    lm.adapter = None
    frozen = lm(batch.aatype, batch.mask)[:, :, -1]
    return float(torch.cosine_similarity(adapted, frozen, dim=-1)[batch.mask].mean())


if __name__ == "__main__":
    main()

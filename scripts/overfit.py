"""Does the folding head learn? Eight real chains learnt by heart on one CPU core, in minutes.

    python scripts/overfit.py

A tiny model with a random language model (LoRTA on it) is trained on eight chains of up to 64
residues, four of them with side chains: first with the losses of initial training, then with those
of fine-tuning and so with structural violations. Printed at the start and after each stage: mean
lDDT-Cα of all chains, mean all-atom lDDT of those with side chains, and per chain the violated
peptide bonds and the clashing pairs of atoms. It says nothing about accuracy on other chains.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EngineConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    StructureConfig,
    TrainConfig,
)
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.collate import collate
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.padded import map_tensors
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import fold_loss, heads_to_compute
from esmfold_peft.losses.violations import count_violations
from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.protein.read import read_structure
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.optim import build_optimizer

EXAMPLE = Path(__file__).parents[1] / "data" / "example"
FULL_ATOM = ("1hf9_A", "1psm_A", "1lcd_A", "1kd8_A")
BACKBONE = ("5k2l_A", "3k2t_A", "6at0_A", "4e6r_B")
BATCH = 4
WARMUP = 10
CLAMP = 10.0


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        name: for the table.
        steps: optimizer steps.
        lr: highest learning rate, from which it falls to a hundredth along a cosine.
        weights: of the losses at the end; that of violations grows to it from a thirtieth.
    """

    name: str
    steps: int
    lr: float
    weights: LossWeights


@dataclass(frozen=True)
class Result:
    """How well the chains are known, means over them."""

    stage: str
    lddt_ca: float
    lddt_all_atom: float
    bonds: float
    clashes: float
    seconds: float


def main(words: list[str] | None = None) -> None:
    """Trains both stages and prints what came of them."""
    args = parser().parse_args(words)
    torch.set_num_threads(1)
    stages = [
        Stage("initial", args.steps, args.lr, LossWeights()),
        Stage("finetune", args.more_steps, args.more_lr, FINETUNING),
    ]
    config = settings(args.seed)
    model, _ = build_model(config)
    optimizer, _ = build_optimizer(model, config.optimizer)
    batch = chains()
    results = [result("start", model, batch, 0.0)]
    started = time.process_time()
    rng = np.random.default_rng(args.seed)
    for stage in stages:
        train(model, optimizer, batch, stage, rng)
        results.append(result(stage.name, model, batch, time.process_time() - started))
    Console(highlight=False).print(table(results))
    if args.output is not None:
        args.output.write_text(json.dumps([vars(row) for row in results], indent=1) + "\n")


FINETUNING = LossWeights(resolved=0.01, violation=1.0, pae=0.1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--steps", type=int, default=600, help="of the first stage (default: 600)")
    add("--more-steps", type=int, default=500, help="of the second (default: 500)")
    add("--lr", type=float, default=3e-3, help="learning rate of the first stage")
    add("--more-lr", type=float, default=2e-3, help="learning rate of the second")
    add("--seed", type=int, default=0, help="of weights and order (default: 0)")
    add("--output", type=Path, help="JSON file for all numbers")
    return parser


def settings(seed: int) -> TrainConfig:
    """The model and the optimizer; no file of them is read."""
    model = ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=3, width=64, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=1,
            c_m=128,
            c_z=32,
            c_s=128,
            heads_msa=4,
            heads_pair=1,
            c_head_msa=16,
            c_head_pair=8,
            c_opm=16,
            c_mul=16,
            transition=2,
            dropout_msa=0.0,
            dropout_pair=0.0,
            checkpoint=False,
        ),
        structure=StructureConfig(layers=4, heads=6, c_angle=64, dropout=0.0),
        max_recycles=0,
        c_plddt=64,
    )
    return TrainConfig(
        run=Path("unused"),
        data=DataConfig(train=Path("unused")),
        model=model,
        adapter=AdapterConfig(kind="lorta"),
        # All heads are trained in the second stage.
        loss=replace(TrainConfig(Path("r"), DataConfig(Path("t"))).loss, weights=FINETUNING),
        optimizer=OptimizerConfig(betas=(0.9, 0.99), eps=1e-8, warmup_steps=0, schedule="constant"),
        engine=EngineConfig(precision="float32"),
        seed=seed,
    )


def chains() -> Batch:
    """All eight chains in one batch."""
    files = {path.name.split(".")[0]: path for path in EXAMPLE.glob("*/*.cif.gz")}
    read = [features(read_structure(files[name])) for name in FULL_ATOM + BACKBONE]
    return collate(read, [True] * len(read))


def train(
    model: FoldingModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    stage: Stage,
    rng: np.random.Generator,
) -> None:
    """Trains one stage on four chains at a time."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    order: list[int] = []
    for step in range(stage.steps):
        if not order:
            order = rng.permutation(len(batch.ids)).tolist()
        rows, order = torch.tensor(order[:BATCH]), order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * factor(step, stage.steps)
        part = pick(batch, rows)
        # Switched on at once, violations would pull twenty times as hard as FAPE.
        growth = 30 ** (step / max(1, stage.steps - 1) - 1)
        weights = replace(stage.weights, violation=growth * stage.weights.violation)
        heads = heads_to_compute(weights)
        output = model(part.aatype, part.residue_index, part.mask, 0, heads=heads)
        clamp = torch.full((len(rows),), CLAMP)
        terms = fold_loss(output, ground_truth(part), weights, clamp=clamp, resolution_range=None)
        optimizer.zero_grad()
        terms.total.mean().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def factor(step: int, steps: int) -> float:
    """Share of the learning rate: up in a straight line, down along a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def pick(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some chains of a batch, padded to the longest of them."""
    ids, lengths = (tuple(known[row] for row in rows) for known in (batch.ids, batch.lengths))
    picked = replace(map_tensors(batch, lambda tensor: tensor[rows]), ids=ids, lengths=lengths)
    return picked.rows(slice(None), max(lengths))


@torch.no_grad()
def result(stage: str, model: FoldingModel, batch: Batch, seconds: float) -> Result:
    """Folds all chains and scores them."""
    model.eval()
    output = model(batch.aatype, batch.residue_index, batch.mask, 0, heads=())
    positions, true = output.positions.double(), batch.positions.double()
    all_atom = lddt_all_atom(positions, true, batch.atom_mask, aatype=batch.aatype).per_chain
    violations = count_violations(output.positions, batch.aatype, batch.residue_index, batch.mask)
    return Result(
        stage=stage,
        lddt_ca=float(lddt_ca(positions, true, batch.atom_mask).per_chain.mean()),
        lddt_all_atom=float(all_atom[: len(FULL_ATOM)].mean()),
        bonds=float((violations.bonds + violations.angles).mean()),
        clashes=float(violations.clashes.mean()),
        seconds=round(seconds, 1),
    )


def table(results: list[Result]) -> Table:
    """The results for people."""
    drawn = Table(title="eight chains learnt by heart", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "lDDT-Cα", "all-atom lDDT", "bonds", "clashes", "CPU seconds"):
        drawn.add_column(column, justify="left" if column == "stage" else "right")
    for row in results:
        drawn.add_row(
            row.stage,
            f"{row.lddt_ca:.3f}",
            f"{row.lddt_all_atom:.3f}",
            f"{row.bonds:.1f}",
            f"{row.clashes:.1f}",
            f"{row.seconds:.0f}",
        )
    return drawn


if __name__ == "__main__":
    main()

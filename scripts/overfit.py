"""Does the folding head learn? Eight real chains learnt by heart on one CPU core, in minutes.

    python scripts/overfit.py

A tiny model with a random language model (LoRTA on it) is trained on eight chains of up to 64
residues, four of them with side chains: first with the losses of initial training, then with those
of fine-tuning and so with structural violations. Printed at the start and after each stage: mean
lDDT-Cα of all chains, mean all-atom lDDT of those with side chains, and per chain the violated
peptide bonds and the clashing pairs of atoms. It says nothing about accuracy on other chains.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from esmfold_peft.config import (
    AdapterConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    StructureConfig,
    TrainConfig,
)
from esmfold_peft.datasets.batch import Batch, collate, map_tensors
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import fold_loss, heads_to_compute
from esmfold_peft.losses.violations import count_violations
from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.protein.read import read_structure
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.optim import build_optimizer

sys.path.append(str(Path(__file__).parent / "benchmarks"))

from measuring import command_line, table
from training_step import EXAMPLE, FINETUNING, run_of

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
        lr: highest learning rate; it falls to a hundredth along a cosine.
        weights: of the losses at the end; that of violations grows from a thirtieth.
    """

    name: str
    steps: int
    lr: float
    weights: LossWeights


STAGES = (
    Stage("initial", 600, 3e-3, LossWeights()),
    Stage("finetune", 500, 2e-3, FINETUNING),
)


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
    """Trains both stages and prints the scores before and after each."""
    parser = command_line(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    config = settings(args.seed)
    model, _ = build_model(config)
    optimizer, _ = build_optimizer(model, config.optimizer)
    batch = chains()
    results = [result("start", model, batch, 0.0)]
    started = time.process_time()
    rng = np.random.default_rng(args.seed)
    for stage in STAGES:
        train(model, optimizer, batch, stage, rng)
        results.append(result(stage.name, model, batch, time.process_time() - started))
    formats = (".3f", ".3f", ".1f", ".1f", ".0f")
    rows = ((row.stage, *map(format, list(asdict(row).values())[1:], formats)) for row in results)
    columns = ("stage", "lDDT-Cα", "all-atom lDDT", "bonds", "clashes", "CPU seconds")
    Console(highlight=False).print(table(columns, rows, "eight chains learnt by heart"))
    if args.output is not None:
        args.output.write_text(json.dumps([asdict(row) for row in results], indent=1) + "\n")


def settings(seed: int) -> TrainConfig:
    """The model and the optimizer; reads no file."""
    model = ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=3, width=64, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=1, c_m=128, c_z=32, c_s=128, heads_msa=4, heads_pair=1, c_head_msa=16,
            c_head_pair=8, c_opm=16, c_mul=16, transition=2, dropout_msa=0.0, dropout_pair=0.0,
            recompute=False,
        ),
        structure=StructureConfig(layers=4, heads=6, c_angle=64, dropout=0.0),
        max_recycles=0,
        c_plddt=64,
    )  # fmt: skip
    config = run_of(model)
    return replace(
        config,
        adapter=AdapterConfig(kind="lorta"),
        loss=replace(config.loss, weights=FINETUNING),  # the second stage trains all heads
        optimizer=OptimizerConfig(betas=(0.9, 0.99), eps=1e-8, warmup_steps=0, schedule="constant"),
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


if __name__ == "__main__":
    main()

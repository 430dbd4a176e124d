"""Does one alpha / rank suit every rank of LoRTA? By which start of its factors?

    python scripts/benchmarks/lorta_scale.py --output lorta_scale.json

A student learns the last hidden states of a teacher. The teacher is a language model (6 layers,
width 128, 8 heads, random weights) with a random update of rank 2 of each attention matrix: normal
factors, as large as the matrices, and no tensor of low rank. The student is the same model, frozen,
with a LoRTA of rank 1, 8 or 64, trained by 200 steps of Adam at a learning rate of 1e-3 on one
batch of four chains of 16 residues.

For each start (`init`: unit, paper) and rank this finds the best s = alpha / rank on a grid of
powers of two: the one with the least loss at the end, over that of the untrained student, mean over
three seeds of weights, chains, teacher and student. What matters is how far the best s moves with
the rank.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from measuring import command_line, table, write_report
from rich.console import Console
from rich.progress import track
from torch import Tensor

from esmfold_peft.adapters.base import ATTENTION, AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.model.language_model import LanguageModel

SHAPE = AttentionShape(layers=6, width=128, heads=8)
INITS = ("unit", "paper")
RANKS = (1, 8, 64)
CHAINS, RESIDUES = 4, 16
LEARNING_RATE = 1e-3
HOPELESS_AFTER = 50
"""Steps after which a student that is worse than untrained is given up, at the loss that it has.

In whole runs such students ended at 0.5 of the initial loss or more, twenty times the best."""


Losses = dict[int, dict[float, float]]
"""Of a start: the final loss over the initial one by rank and scale."""


@dataclass(frozen=True)
class Effort:
    """How finely and how long to search: the grid of s for each start, steps, and seeds."""

    scales: dict[str, tuple[float, ...]]
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2)


def powers_of_two(lowest: int, highest: int, step: int = 1) -> tuple[float, ...]:
    """Those with exponents from lowest to highest."""
    return tuple(2.0**k for k in range(lowest, highest + 1, step))


FULL = Effort(dict.fromkeys(INITS, powers_of_two(-4, 14)), 200)
QUICK = Effort({"unit": powers_of_two(0, 6), "paper": powers_of_two(-2, 10, 4)}, 100, seeds=(0,))


@dataclass(frozen=True, eq=False)
class Task:
    """What students of one seed learn.

    Attributes:
        lm: the frozen language model, without an adapter.
        aatype: residues of the chains (b, n).
        wanted: the teacher's last hidden states (b, n, d).
        seed: of the model, the chains, the teacher and the students.
    """

    lm: LanguageModel
    aatype: Tensor
    wanted: Tensor
    seed: int

    def loss(self) -> Tensor:
        """Mean squared difference to the teacher with the adapter that the model now carries."""
        return (self.outputs() - self.wanted).square().mean()

    def outputs(self) -> Tensor:
        """Last hidden states."""
        return self.lm(self.aatype, torch.ones_like(self.aatype, dtype=torch.bool))[:, :, -1]


def main(words: list[str] | None = None) -> None:
    """Searches, prints a table, and writes all losses."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="few scales, 100 steps, one seed")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    effort = QUICK if args.quick else FULL
    inits = {}
    for init, losses in search(effort).items():
        best = {rank: min(own, key=own.__getitem__) for rank, own in losses.items()}
        spread = max(best.values()) / min(best.values())
        inits[init] = {"best": best, "spread": spread, "losses": losses}
    show(inits)
    found = {"steps": effort.steps, "seeds": len(effort.seeds), "inits": inits}
    write_report(args, found)


def search(effort: Effort) -> dict[str, Losses]:
    """The losses of each start, means over seeds."""
    tasks = [make_task(seed) for seed in effort.seeds]
    places = [
        (init, rank, scale) for init in INITS for rank in RANKS for scale in effort.scales[init]
    ]
    found: dict[str, Losses] = {init: {rank: {} for rank in RANKS} for init in INITS}
    for init, rank, scale in track(places, transient=True):
        config = AdapterConfig("lorta", rank, scale * rank, targets=ATTENTION, init=init)
        losses = (train(task, config, effort.steps) for task in tasks)
        found[init][rank][scale] = statistics.fmean(losses)
    return found


def make_task(seed: int) -> Task:
    """Language model, chains and teacher of a seed."""
    lm = LanguageModel.random(SHAPE, seed=seed)
    torch.manual_seed(seed)
    aatype = torch.randint(0, 20, (CHAINS, RESIDUES))
    teacher = insert_adapter(lm, AdapterConfig("lora", rank=2, alpha=2.0, targets=ATTENTION))
    assert teacher is not None
    with torch.no_grad():
        for name, factor in teacher.named_parameters():
            # Entries of ΔW get about the size of a weight: outputs differ by their own variance.
            factor.normal_(std=SHAPE.width**-0.5 if name.startswith("a_") else 0.5)
        task = Task(lm, aatype, torch.empty(0), seed)
        wanted = task.outputs()
    lm.adapter = None
    return Task(lm, aatype, wanted, seed)


def train(task: Task, config: AdapterConfig, steps: int) -> float:
    """Final loss of a fresh student over its initial one."""
    torch.manual_seed(1000 + task.seed)
    student = insert_adapter(task.lm, config)
    assert student is not None
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(steps + 1):
        loss = task.loss()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or (step >= HOPELESS_AFTER and losses[-1] > losses[0]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.lm.adapter = None
    return losses[-1] / losses[0] if math.isfinite(losses[-1]) else math.inf


def show(inits: dict[str, dict]) -> None:
    """Prints final over initial loss by scale, the best ones bold."""
    places = [(found, rank) for found in inits.values() for rank in RANKS]

    def cell(found: dict, rank: int, scale: float) -> str:
        loss = found["losses"][rank].get(scale)
        text = "" if loss is None else f"{loss:.3f}"
        return f"[bold]{text}[/bold]" if found["best"][rank] == scale else text

    scales = sorted({scale for found, rank in places for scale in found["losses"][rank]})
    rows = [[f"{scale:g}", *(cell(*place, scale) for place in places)] for scale in scales]
    rows.append(["best", *(f"{found['best'][rank]:g}" for found, rank in places)])
    columns = ["s", *(f"{init} r={rank}" for init in inits for rank in RANKS)]
    drawn = table(columns, rows, "LoRTA: final / initial loss by scale s = alpha / rank", left=0)
    spreads = ", ".join(f"{init}: {found['spread']:g}" for init, found in inits.items())
    drawn.caption = f"largest over smallest best s: {spreads}"
    Console(highlight=False).print(drawn)


if __name__ == "__main__":
    main()

"""How much does a trained model owe to its language model? Its scores with one that knows nothing.

    python scripts/benchmarks/language_model_use.py data/nano/base runs/nano/data/search \
        --output scripts/benchmarks/results/language_model_use_cpu.json

Every chain of a store is folded twice: as trained, and with the numbers of each tensor of the
language model in random order. Trunk and head stay as they are. Printed: both means of lDDT-Cα,
and their paired difference with its 95 % interval over chains.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measuring import command_line, write_report
from rich.console import Console

import esmfold_peft
from esmfold_peft.datasets.batch import collate
from esmfold_peft.datasets.store import Store
from esmfold_peft.evaluation.comparison import difference
from esmfold_peft.metrics.lddt import lddt_ca
from esmfold_peft.model.folding import FoldingModel


def main() -> None:
    """Runs the command line."""
    parser = command_line(__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("store", type=Path, help="chains to fold")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ready = esmfold_peft.load(args.run, device="cpu")
    store = Store(args.store)
    trained = scores(ready.model, store, ready.recycles)
    forget(ready.model.language_model, torch.Generator().manual_seed(0))
    change = difference("lddt_ca", scores(ready.model, store, ready.recycles), trained)
    Console().print(
        f"lDDT-Cα of {change.count} chains: {change.other:.3f} as trained, {change.one:.3f} with a"
        f" language model that knows nothing; difference {change.difference:+.3f}"
        f" ({change.low:+.3f} to {change.high:+.3f})"
    )
    write_report(args, {"difference": asdict(change)})


@torch.no_grad()
def scores(model: FoldingModel, store: Store, recycles: int) -> np.ndarray:
    """lDDT-Cα of each chain, uncropped."""
    found = []
    for index in range(len(store)):
        chain = collate([store[index]], [True])
        output = model(chain.aatype, chain.residue_index, chain.mask, recycles, heads=())
        found.append(lddt_ca(output.positions, chain.positions, chain.atom_mask).per_chain.item())
    return np.array(found)


@torch.no_grad()
def forget(language_model: torch.nn.Module, generator: torch.Generator) -> None:
    """Puts the numbers of every tensor into random order: their sizes stay, their meaning goes."""
    for tensor in language_model.parameters():
        order = torch.randperm(tensor.numel(), generator=generator)
        tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))


if __name__ == "__main__":
    main()

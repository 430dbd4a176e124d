"""Folding with less memory than it takes: a batch is halved, one chain is done in chunks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Folded, Query, fold, sequence_features
from gpu_checks.paper_step import Setup, paper_model
from gpu_checks.report import Row, at_least, at_most, skipped
from gpu_checks.running import Context, tidy

NAME = "predict, scarce memory"

SHARE = 0.6
"""Of what folding takes above the model: too little for it, enough for half of it."""

SAME_POSITIONS = 0.05
"""Å in float32: another batch and other chunks add up in another order, and recycling bins."""

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def scarce_memory(context: Context) -> Iterator[Row]:
    """The same structures as with enough memory, from less memory."""
    if context.device.type != "cuda":
        yield skipped(NAME, "absent: needs a GPU")
        return
    model = paper_model(Setup(1), context).eval()
    model.bf16 = False
    chains, length = context.sizes.scarce
    yield from _compared(f"{NAME}, {chains} x {length}", model, chains, length, context)
    model.trunk.stack.chunk = 2 * length  # all rows at once, which alone is too much
    yield from _compared(f"{NAME}, 1 x {2 * length}", model, 1, 2 * length, context)


def _compared(
    name: str, model: FoldingModel, chains: int, length: int, context: Context
) -> Iterator[Row]:
    queries = [Query(sequence_features(str(k), _sequence(length, k))) for k in range(chains)]
    expected, usual = _folded(model, queries, context)
    with _allowed(SHARE * usual, context.device):
        found, peak = _folded(model, queries, context)
    yield at_least(f"{name}: structures", len(found), chains)
    detail = f"{peak / 2**20:.0f} MiB above the model instead of {usual / 2**20:.0f}"
    yield at_most(f"{name}: memory", peak / usual, SHARE, detail=detail)
    off = max(
        float((found[k].positions - own.positions).norm(dim=-1).max()) if k in found else torch.inf
        for k, own in expected.items()
    )
    yield at_most(f"{name}: positions", off, SAME_POSITIONS, unit="Å")


def _folded(
    model: FoldingModel, queries: list[Query], context: Context
) -> tuple[dict[int, Folded], float]:
    """The structures by place, and the bytes that folding them took above the model."""
    device = context.device
    tidy(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    tokens = sum(len(query) for query in queries)
    results = fold(model, queries, recycles=1, max_tokens=tokens)
    folded = {each.index: each for each in results if isinstance(each, Folded)}
    return folded, torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _allowed(above: float, device: torch.device) -> Iterator[None]:
    """Lets this process have some bytes more than it has, and all again afterwards."""
    tidy(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_allocated(device) + above) / total, device
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _sequence(length: int, seed: int) -> str:
    drawn = torch.randint(len(LETTERS), (length,), generator=torch.Generator().manual_seed(seed))
    return "".join(LETTERS[k] for k in drawn)

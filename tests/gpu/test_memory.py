"""Folding with less memory than it takes: a batch is halved, one chain is done in chunks."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from gpu_checks.models import settings

from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Folded, Query, fold, sequence_features
from esmfold_peft.runs.build import build_model
from tests.gpu.conftest import Scale

SHARE = 0.6
"""Of what folding takes above the model: too little for it, enough for half of it."""

SAME_POSITIONS = 0.05
"""Å in float32: another batch and other chunks add up in another order, and recycling bins."""


@pytest.mark.gpu
@pytest.mark.parametrize("alone", [False, True])
def test_structures_are_the_same_with_less_memory(gpu, scale: Scale, alone: bool, at_most):
    model, _ = build_model(settings(scale.measured.paper))
    model = model.to(gpu).eval()
    chains, length = scale.scarce
    if alone:
        chains, length = 1, 2 * length
        model.trunk.stack.chunk = length  # all rows at once, which alone is too much
    queries = [Query(sequence_features(str(k), sequence(length, k))) for k in range(chains)]
    expected, usual = folded(model, queries, gpu)
    with allowed(SHARE * usual, gpu):
        found, peak = folded(model, queries, gpu)
    assert found.keys() == expected.keys()
    at_most("memory", peak / usual, SHARE)
    off = max(
        float((found[k].positions - own.positions).norm(dim=-1).max())
        for k, own in expected.items()
    )
    at_most("Å", off, SAME_POSITIONS)


def folded(
    model: FoldingModel, queries: list[Query], device: torch.device
) -> tuple[dict[int, Folded], float]:
    """The structures by place, and the bytes that folding them took above the model."""
    tidy()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    tokens = sum(len(query) for query in queries)
    results = fold(model, queries, recycles=1, max_tokens=tokens)
    structures = {each.index: each for each in results if isinstance(each, Folded)}
    return structures, torch.cuda.max_memory_allocated(device) - before


@contextmanager
def allowed(above: float, device: torch.device) -> Iterator[None]:
    """Lets this process have some bytes more than it has, and all again afterwards."""
    tidy()
    total = torch.cuda.get_device_properties(device).total_memory
    own = torch.cuda.memory_allocated(device)
    torch.cuda.set_per_process_memory_fraction((own + above) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def tidy() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def sequence(length: int, seed: int) -> str:
    drawn = torch.randint(20, (length,), generator=torch.Generator().manual_seed(seed))
    return "".join("ACDEFGHIKLMNPQRSTVWY"[k] for k in drawn)

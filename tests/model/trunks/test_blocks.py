"""Running blocks: chunks, and compiled code for training crops."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from esmfold_peft.config import EvoformerConfig, ModelConfig
from esmfold_peft.model.trunks.openfold import Evoformer

COMPILED = """
import functools, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from esmfold_peft.config import EsmfoldConfig, EvoformerConfig, ModelConfig
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldStack
from esmfold_peft.model.trunks.openfold import Evoformer
from torch._dynamo.utils import counters

def stack(kind, compile, recompute):
    torch.manual_seed(0)
    if kind == "evoformer":
        sizes = dict(c_m=32, heads_msa=2, c_head_msa=8, c_head_pair=8, c_opm=4, c_mul=16)
        config = EvoformerConfig(blocks=3, c_z=16, c_s=24, heads_pair=2, transition=2,
                                 dropout_msa=0.2, dropout_pair=0.3, recompute=recompute, **sizes)
        made = Evoformer(ModelConfig(evoformer=config), compile=compile)
    else:
        config = EsmfoldConfig(blocks=3, c_s=32, c_z=16, c_structure=24, heads=4, heads_pair=2,
                               dropout=0.2, recompute=recompute)
        model = ModelConfig(trunk="esmfold_v1", esmfold=config)
        made = EsmfoldStack(model, compile=compile)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made

def results(made, seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(2, n, 32, generator=generator, requires_grad=True)
    z = torch.randn(2, n, n, 16, generator=generator, requires_grad=True)
    mask = torch.arange(n) < torch.tensor([[n], [n - 3 - seed]])
    torch.manual_seed(seed)  # of the dropout, which is drawn outside the compiled code
    first, last = (draw_factors(made.dropout_sites(n), 2, m.device) for _ in range(2))
    with torch.no_grad():  # a recycling pass
        recycled = made(m.clone(), z.clone(), mask, None, first)
    made.zero_grad()
    tracks = made(m, z, mask, None, last)
    (tracks.s.square().sum() + tracks.structure_z.square().sum()).backward()
    return [recycled.s, recycled.z, m.grad, z.grad, *(p.grad for p in made.parameters())]

for kind in ("evoformer", "esmfold_v1"):
    for recompute in (True, False):
        torch._dynamo.reset()
        counters.clear()
        plain, fast = (stack(kind, compile, recompute) for compile in (False, True))
        for seed in range(2):
            for a, b in zip(results(fast, seed), results(plain, seed), strict=True):
                error = (a - b).abs().max()
                assert error <= 1e-3 * b.abs().max() + 1e-3, (kind, recompute, error)
        # For three blocks and two batches: one graph with gradients and one without.
        assert counters["stats"]["unique_graphs"] == 2, counters
        assert not counters["graph_break"], counters
        fast.eval()
        for n in (5, 9):  # other lengths are not compiled
            results(fast, 0, n)
        assert counters["stats"]["unique_graphs"] == 2, counters
print("done")
"""


@pytest.mark.proof
def test_compiled_blocks_are_one_graph_with_the_plain_gradients():
    # In a process of its own: the shape checks of the other tests cannot be compiled.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]


TINY = EvoformerConfig(
    blocks=1,
    c_m=8,
    c_z=8,
    c_s=8,
    heads_msa=1,
    heads_pair=1,
    c_head_msa=4,
    c_head_pair=4,
    c_opm=2,
    c_mul=4,
    transition=1,
    dropout_msa=0.0,
    dropout_pair=0.0,
)


@pytest.mark.parametrize("length", [33, pytest.param(512, marks=pytest.mark.proof)])
def test_a_chunked_evoformer_equals_the_unchunked_one(length: int):
    torch.manual_seed(0)
    model = Evoformer(ModelConfig(evoformer=TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    m, z = torch.randn(1, length, TINY.c_m), torch.randn(1, length, length, TINY.c_z)
    mask = torch.arange(length)[None] < length - 3
    results = []
    for chunk in (4 * length, max(1, length // 11)):
        model.chunk = chunk
        with torch.no_grad():
            results.append(model(m.clone(), z.clone(), mask))
    whole, chunked = results
    assert whole.z.std() > 0.1
    n = length - 3
    torch.testing.assert_close(chunked.z[:, :n, :n], whole.z[:, :n, :n], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(chunked.s[:, :n], whole.s[:, :n], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputing_can_be_switched_between_steps(compiled: bool):
    model = Evoformer(ModelConfig(evoformer=TINY)).train()
    block, calls, model.compiled = model.training_block, [], compiled

    def counted(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments[-1])  # selective
        return block(*arguments)

    model.training_block = counted
    mask = torch.ones(1, 5, dtype=torch.bool)
    for recompute in (True, False, True):
        model.recompute = recompute
        model(torch.randn(1, 5, 8), torch.randn(1, 5, 5, 8), mask).z.sum().backward()
        selective = compiled and not recompute
        assert calls == [selective] * (2 if recompute else 1)
        calls.clear()

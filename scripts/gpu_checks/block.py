"""Time and memory of one Evoformer block: openfold3's forward pass, ours, and ours compiled."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from measuring import milliseconds, peak_memory
from torch import Tensor
from training_step import forward_backward

from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.trunks.openfold import Evoformer
from gpu_checks.report import Row, measured, skipped
from gpu_checks.running import Context, tidy

WAYS: dict[str, dict[str, Any]] = {
    "openfold3": {"kernels": "openfold"},
    "fused": {},
    "fused, compiled": {"compile": True},
}
"""How the Evoformer is made. The last is compiled for each shape, which takes longest."""


def block(context: Context) -> Iterator[Row]:
    """Forward and backward pass under autocast, with a bfloat16 pair track, keeping activations."""
    sizes, device = context.sizes, context.device
    config = replace(sizes.paper.evoformer, blocks=1, checkpoint=False)
    for name, way in WAYS.items():
        if "compile" in way and sizes.tiny:
            yield skipped(f"block, {name}", "tiny: compiling takes a minute of a CPU core")
            continue
        stack = Evoformer(config, **way).to(device).train()
        for chains in sorted(sizes.micro_batches, reverse=True):
            row = f"block, {chains} x {sizes.paper_crop}, {name}"
            yield _measured(row, stack, chains, context)
            torch.compiler.reset()  # it gives up after a few shapes
            tidy(device)


def _measured(name: str, stack: Evoformer, chains: int, context: Context) -> Row:
    device, n = context.device, context.sizes.paper_crop
    mask = torch.ones(chains, n, dtype=torch.bool, device=device)

    def update(m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            factors = draw_factors(stack.dropout_sites(n), chains, device)
            tracks = stack(m, z, mask, stack.pack(), factors)
        return tracks.m, tracks.z

    try:
        m = torch.randn(chains, n, stack.config.c_m, device=device)
        z = torch.randn(chains, n, n, stack.config.c_z, device=device, dtype=torch.bfloat16)
        step = partial(forward_backward, stack, update, m, z)
        time = milliseconds(step, context.sizes.rounds, device)
        peak = peak_memory(step, device)
    except torch.OutOfMemoryError:
        return skipped(name, "does not fit into the card's memory")
    return measured(name, time, "ms", detail=f"peak {peak / 2**30:.2f} GiB above block and inputs")

"""What adapters cost in a step of the language model, and what inference costs by length."""

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from adapters import MODELS
from contenders import FROZEN, PEFT, build_contenders, frozen_model
from measuring import interleaved, peak_memory, ratio, seconds

from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.config import AdapterConfig
from gpu_checks.paper_step import Setup, paper_model
from gpu_checks.report import Row, against_goal, measured, skipped
from gpu_checks.running import Context

KINDS = ["lora", "lorta"]
RECYCLES = 3

LORA_GOAL, LORTA_GOAL = 1.1, 1.0
"""Time with LoRA over that of the frozen model, and with LoRTA over that with LoRA, at most."""


def adapters(context: Context) -> Iterator[Row]:
    """Frozen, LoRA, LoRTA and PEFT's LoRA on one language model, timed in turns."""
    sizes, device = context.sizes, context.device
    chains, length = sizes.adapter_batch
    shape = MODELS["tiny"] if sizes.tiny else SIZES[sizes.adapted]
    torch.manual_seed(0)
    aatype = torch.randint(0, 20, (chains, length)).to(device)
    mask = torch.ones_like(aatype, dtype=torch.bool)
    lm = frozen_model(shape, device)
    config = AdapterConfig(rank=8, alpha=8.0)
    found = build_contenders(lm, KINDS, config, aatype, mask)
    gradient = torch.randn(*aatype.shape, shape.layers + 1, shape.width, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16)
    compared = {name: found[name] for name in (FROZEN, *KINDS, PEFT) if name in found}
    steps = {name: partial(each.step, gradient, autocast) for name, each in compared.items()}
    for step in steps.values():
        step()  # warms up
    times = interleaved(steps, 5 * sizes.rounds, device)
    title = f"ESM-2 {sizes.adapted}, {chains} x {length}, bf16"
    for name, own in times.items():
        over = ratio(own, times[FROZEN])
        detail = f"{over:.3f} x frozen, {compared[name].parameters:,} parameters"
        yield measured(f"{title}: {name}", 1e3 * statistics.median(own), "ms", detail=detail)
    lora = ratio(times["lora"], times[FROZEN])
    lorta = ratio(times["lorta"], times["lora"])
    yield against_goal(f"{title}: lora / {FROZEN}", lora, LORA_GOAL, "x")
    yield against_goal(f"{title}: lorta / lora", lorta, LORTA_GOAL, "x")
    if PEFT not in compared:
        yield skipped(f"{title}: {PEFT}", "not installed")


def inference(context: Context) -> Iterator[Row]:
    """Seconds and memory of one structure with the paper's model, by length."""
    device = context.device
    model = paper_model(Setup(1), context).eval()
    for length, goal in context.sizes.inference.items():
        name = f"inference, {length} residues, {RECYCLES} recycles, bf16"
        aatype = torch.randint(0, 20, (1, length)).to(device)
        index = torch.arange(length, device=device)[None]
        mask = torch.ones_like(aatype, dtype=torch.bool)

        @torch.inference_mode()
        def fold(aatype=aatype, index=index, mask=mask) -> None:
            model(aatype, index, mask, RECYCLES, heads=("plddt",))

        try:
            fold()  # warms up
            times = [seconds(fold, device) for _ in range(context.sizes.rounds)]
            peak = peak_memory(fold, device)
        except torch.OutOfMemoryError:
            yield skipped(name, "does not fit into the card's memory")
            continue
        detail = f"peak {peak / 2**20:.1f} MiB above the model"
        yield against_goal(name, statistics.median(times), goal, "s", detail=detail)

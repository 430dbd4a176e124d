"""What adapters cost in a step of the language model, and what inference costs by length."""

import statistics
from collections.abc import Generator

import torch
from adapters import parser, timed, training_steps
from contenders import FROZEN, PEFT
from measuring import peak_memory, seconds

from gpu_checks.report import Row, against_goal, measured, skipped
from gpu_checks.running import Context
from gpu_checks.step import Setup, paper_model

KINDS = ["lora", "lorta"]
RECYCLES = 3

LORA_GOAL, LORTA_GOAL = 1.1, 1.0
"""Time with LoRA over that of the frozen model, and with LoRTA over that with LoRA, at most."""


def adapters(context: Context) -> Generator[Row]:
    """Frozen, LoRA, LoRTA and PEFT's LoRA on one language model, timed in turns."""
    chains, length = context.sizes.adapter_batch
    words = f"--batch {chains} --length {length} --precision bf16 --kinds".split()
    args = parser().parse_args([*words, *KINDS])
    contenders, steps = training_steps(args, context.sizes.adapted, context.device)
    steps = {name: steps[name] for name in (FROZEN, *KINDS, PEFT) if name in steps}
    for step in steps.values():
        step()  # warms up
    found = timed(steps, 5 * context.sizes.rounds, context.device)
    title = f"ESM-2 {context.sizes.adapted}, {chains} x {length}, bf16"
    for name, row in found.items():
        detail = f"{row['over'][FROZEN]:.3f} x frozen, {contenders[name].parameters:,} parameters"
        yield measured(f"{title}: {name}", 1e3 * row["seconds"], "ms", detail=detail)
    if PEFT not in found:
        yield skipped(f"{title}: {PEFT}", "not installed")
    lora, lorta = found["lora"]["over"][FROZEN], found["lorta"]["over"]["lora"]
    yield against_goal(f"{title}: lora / {FROZEN}", lora, LORA_GOAL, "x")
    yield against_goal(f"{title}: lorta / lora", lorta, LORTA_GOAL, "x")


def inference(context: Context) -> Generator[Row]:
    """Seconds and memory of one structure with the paper's model, by length."""
    device = context.device
    model = paper_model(Setup(), context).eval()
    for length, goal in context.sizes.inference:
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

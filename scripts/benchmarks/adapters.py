"""What an adapter costs in a training step of the language model.

    python scripts/benchmarks/adapters.py --models 35M --rounds 9 --output adapters.json

A step is the forward and the backward pass of ESM-2 (random weights) from the embedding to the
hidden states of all levels and back to the embedding, without an optimizer. Compared are the frozen
model, every adapter, Hugging Face PEFT's LoRA on transformers' EsmModel with the same weights, and
LoRTA built densely by a loop over heads, as its authors build it. Before anything is timed, fresh
adapters and PEFT must give the frozen model's outputs to 1e-4, and both LoRTAs each other's.

Measured for each: the median time over rounds (each round times all of them, and ratios are medians
of ratios within a round; CPU: time of this process on one thread; CUDA: synchronised wall time);
the operations that compute, on CUDA the launched kernels too; the peak of tensor memory above what
is held before the step; the numbers that train. Last, inference on a batch whose sequences have a
LoRTA each, beside one LoRTA for all of them.
"""

import argparse
import statistics
from functools import partial

import torch
from contenders import FROZEN, PEFT, Contender, build_contenders, build_inferences, frozen_model
from measuring import (
    Step,
    chosen_device,
    command_line,
    interleaved,
    kernels,
    launched_kernels,
    peak_memory,
    quieten,
    ratio,
    table,
    write_report,
)
from rich.console import Console

from esmfold_peft.adapters.base import SIZES, TARGETS, AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS
from esmfold_peft.config import AdapterConfig

MODELS = {name.split("_")[2]: shape for name, shape in SIZES.items()}
# As many kernels a layer as 35M: they do not depend on widths, only the authors' on heads.
MODELS["tiny"] = AttentionShape(layers=12, width=40, heads=5)
BASELINES = {"frozen": FROZEN, "lora": "lora", "peft": PEFT}
"""Contenders to which ratios are given, by the key of the ratio."""


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table for each model, and writes all numbers."""
    args = parser().parse_args(words)
    device = chosen_device(args.device)
    quieten()
    models: dict[str, dict] = {}
    many: dict[str, dict] = {}
    console = Console(highlight=False)
    for model in args.models:
        with console.status(f"{model} ..."):
            models[model] = measure(args, model, device)
        console.print(drawn(model, models[model]))
        if args.many:
            with console.status(f"{model}: {args.many} adapters at once"):
                many[model] = found = measure_many(args, model, device)
            console.print(
                f"ESM-2 {model}, inference of {args.many} sequences of {args.many_length}: one"
                f" adapter each {1e3 * found['one each']:.0f} ms, one for all"
                f" {1e3 * found['one adapter']:.0f} ms, ratio {found['ratio']:.3f}\n"
            )
        write_report(args, {"models": models, "many": many}, device)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_line(__doc__, device=True)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=["35M", "150M"], help="sizes of ESM-2")
    add("--batch", type=int, default=4, help="sequences (default: 4)")
    add("--length", type=int, default=256, help="residues of each (default: 256)")
    add(
        "--padding", type=int, default=0,
        help="residues that the last sequence is shorter; with 0 transformers' attention has no"
        " mask, ours always has one (default: 0)",
    )  # fmt: skip
    add("--rank", type=int, default=8, help="rank of all adapters (default: 8)")
    add(
        "--targets", nargs="+", choices=TARGETS, default=["query", "key", "value"],
        help="adapted matrices; a kind adapts those that it can (default: query key value)",
    )  # fmt: skip
    add(
        "--kinds", nargs="*", choices=ADAPTERS, default=list(ADAPTERS),
        help="adapters beside the frozen model, PEFT and the authors' LoRTA (default: all)",
    )  # fmt: skip
    add("--rounds", type=int, default=9, help="timings of each (default: 9)")
    add(
        "--many", type=int, default=64,
        help="sequences of a batch for inference, each with its own adapter; 0: no such batch"
        " (default: 64)",
    )  # fmt: skip
    add("--many-length", type=int, default=64, help="residues of each of these (default: 64)")
    add("--precision", choices=("float32", "bf16"), default="float32", help="bf16: autocast")
    return parser


def adapter_config(args: argparse.Namespace) -> AdapterConfig:
    """Rank, alpha and targets of all adapters."""
    return AdapterConfig(rank=args.rank, alpha=float(args.rank), targets=tuple(args.targets))


def measure(args: argparse.Namespace, model: str, device: torch.device) -> dict[str, dict]:
    """All numbers of one model, by contender."""
    contenders, steps = training_steps(args, model, device)
    found: dict[str, dict] = {}
    for name, step in steps.items():
        step()  # warms up
        costs = {"kernels": kernels(step), "peak_bytes": peak_memory(step, device)}
        if device.type == "cuda":
            costs["launched_kernels"] = launched_kernels(step)
        found[name] = {"parameters": contenders[name].parameters} | costs
    for name, row in timed(steps, args.rounds, device).items():
        found[name] |= row
    return found


def training_steps(
    args: argparse.Namespace, model: str, device: torch.device
) -> tuple[dict[str, Contender], dict[str, Step]]:
    """The contenders on one model, and a training step of each."""
    torch.manual_seed(0)
    aatype = torch.randint(0, 20, (args.batch, args.length)).to(device)
    mask = torch.ones_like(aatype, dtype=torch.bool)
    mask[-1, args.length - args.padding :] = False
    lm = frozen_model(MODELS[model], device)
    contenders = build_contenders(lm, args.kinds, adapter_config(args), aatype, mask)
    gradient = torch.randn(*aatype.shape, lm.shape.layers + 1, lm.shape.width).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    return contenders, {n: partial(each.step, gradient, autocast) for n, each in contenders.items()}


def timed(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict]:
    """Seconds of each step, and their ratios to those of the baselines."""
    times = interleaved(steps, rounds, device)
    bases = {key: times[name] for key, name in BASELINES.items() if name in times}
    return {
        name: {
            "seconds": statistics.median(own),
            "over": {key: ratio(own, base) for key, base in bases.items()},
            "seconds_of_rounds": own,
        }
        for name, own in times.items()
    }


def measure_many(args: argparse.Namespace, model: str, device: torch.device) -> dict[str, float]:
    """Seconds of inference with one LoRTA for a batch and with one for each sequence."""
    torch.manual_seed(0)
    aatype = torch.randint(0, 20, (args.many, args.many_length)).to(device)
    mask = torch.ones_like(aatype, dtype=torch.bool)
    lm = frozen_model(MODELS[model], device)
    inferences = build_inferences(lm, adapter_config(args), aatype, mask)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    steps = {name: partial(each.infer, autocast) for name, each in inferences.items()}
    for step in steps.values():
        step()  # warms up
    times = interleaved(steps, args.rounds, device)
    found = {name: statistics.median(own) for name, own in times.items()}
    return found | {"ratio": ratio(times["one each"], times["one adapter"])}


def drawn(model: str, found: dict[str, dict]):
    """The numbers of one model for people."""
    launched = ["launched"] if "launched_kernels" in found[FROZEN] else []
    over = [f"/{key}" for key in found[FROZEN]["over"]]
    rows = (
        (
            name,
            f"{row['parameters']:,}",
            f"{1e3 * row['seconds']:.1f}",
            *(f"{value:.3f}" for value in row["over"].values()),
            f"{row['kernels']:,}",
            *(f"{row['launched_kernels']:,}" for _ in launched),
            f"{row['peak_bytes'] / 2**20:.1f}",
        )
        for name, row in found.items()
    )
    columns = ["contender", "trained", "ms", *over, "kernels", *launched, "MiB"]
    return table(columns, rows, f"one training step of ESM-2 {model}")


if __name__ == "__main__":
    main()

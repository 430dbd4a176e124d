"""What an adapter costs in a training step of the language model.

    python scripts/benchmarks/adapters.py --models 35M --rounds 9 --output adapters.json

A step is the forward and the backward pass of ESM-2 (random weights) from the embedding to the
hidden states of all levels and back to the embedding; no optimizer. Compared are the frozen model,
every adapter, Hugging Face PEFT's LoRA on transformers' EsmModel with the same weights, and LoRTA
built densely by a loop over heads, as its authors build it. Before anything is timed, fresh
adapters and PEFT must give the frozen model's outputs to 1e-4, and both LoRTAs each other's.

Measured for each: the median time over rounds (each round times all of them, so that ratios are
medians of ratios within a round; CPU: time of this process on one thread; CUDA: synchronised wall
time); the operations that compute, on CUDA the launched kernels too; the peak of tensor memory
above what is held before the step; the numbers that train. Last, inference on a batch whose
sequences have a LoRTA each, beside one LoRTA for all of them.
"""

import argparse
import json
import os
import statistics
import warnings
from functools import partial
from pathlib import Path

import torch
from contenders import FROZEN, PEFT, build_contenders, build_inferences, frozen_model
from measuring import (
    Step,
    circumstances,
    interleaved,
    kernels,
    launched_kernels,
    peak_memory,
    ratio,
)
from rich import box
from rich.console import Console
from rich.table import Table

from esmfold_peft.adapters.base import TARGETS, AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS
from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.config import AdapterConfig

MODELS = {name.split("_")[2]: shape for name, shape in SIZES.items()}
# As many kernels a layer as 35M: they do not depend on widths, only the authors' on heads.
MODELS["tiny"] = AttentionShape(layers=12, width=40, heads=5)
BASELINES = {"frozen": FROZEN, "lora": "lora", "peft": PEFT}
"""Contenders to which ratios are given, by the key of the ratio."""


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table for each model, and writes all numbers."""
    args = parser().parse_args(words)
    device = torch.device(chosen_device(args.device))
    if device.type == "cpu":
        torch.set_num_threads(1)
    # Not about what is measured: transformers' deprecations, and the profiler's log.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    report = {"settings": settings, "circumstances": circumstances(device)}
    report |= {"models": {}, "many": {}}
    console = Console(highlight=False)
    for model in args.models:
        with console.status(f"{model} ...") as status:
            report["models"][model] = measure(args, model, device, status.update)
        console.print(table(model, report["models"][model]))
        if args.many:
            with console.status(f"{model}: {args.many} adapters at once"):
                report["many"][model] = found = measure_many(args, model, device)
            console.print(
                f"ESM-2 {model}, inference of {args.many} sequences of {args.many_length}: one"
                f" adapter each {1e3 * found['one each']:.0f} ms, one for all"
                f" {1e3 * found['one adapter']:.0f} ms, ratio {found['ratio']:.3f}\n"
            )
        if args.output is not None:
            args.output.write_text(json.dumps(report, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=["35M", "150M"], help="sizes of ESM-2")
    add("--batch", type=int, default=4, help="sequences (default: 4)")
    add("--length", type=int, default=256, help="residues of each (default: 256)")
    add(
        "--padding", type=int, default=0,
        help="residues that the last sequence is shorter; with 0 transformers' attention goes"
        " without a mask, ours always has one (default: 0)",
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
        help="sequences of a batch for inference, each with an adapter of its own; 0 leaves it out"
        " (default: 64)",
    )  # fmt: skip
    add("--many-length", type=int, default=64, help="residues of each of these (default: 64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("float32", "bf16"), default="float32", help="bf16: autocast")
    add("--output", type=Path, help="JSON file for all numbers")
    return parser


def chosen_device(name: str) -> str:
    """The device of `--device`."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: cuda is not available")
    return name


def measure(args: argparse.Namespace, model: str, device: torch.device, say) -> dict[str, dict]:
    """All numbers of one model, by contender."""
    torch.manual_seed(0)
    aatype = torch.randint(0, 20, (args.batch, args.length)).to(device)
    mask = torch.ones_like(aatype, dtype=torch.bool)
    mask[-1, args.length - args.padding :] = False
    lm = frozen_model(MODELS[model], device)
    config = AdapterConfig(rank=args.rank, alpha=float(args.rank), targets=tuple(args.targets))
    contenders = build_contenders(lm, args.kinds, config, aatype, mask)
    shape = (*aatype.shape, lm.shape.layers + 1, lm.shape.width)
    gradient = torch.randn(shape).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    found, steps = {}, {}
    for name, contender in contenders.items():
        say(f"{model}: kernels and memory of {name}")
        steps[name] = partial(contender.step, gradient, autocast)
        found[name] = {"parameters": contender.parameters} | costs(steps[name], device)
    say(f"{model}: {args.rounds} rounds of {len(steps)} steps")
    times = interleaved(steps, args.rounds, device)
    for name, own in times.items():
        found[name] |= timing(own, times)
    return found


def measure_many(args: argparse.Namespace, model: str, device: torch.device) -> dict[str, float]:
    """Seconds of inference with one LoRTA for a batch and with one for each sequence."""
    torch.manual_seed(0)
    aatype = torch.randint(0, 20, (args.many, args.many_length)).to(device)
    mask = torch.ones_like(aatype, dtype=torch.bool)
    config = AdapterConfig(rank=args.rank, alpha=float(args.rank), targets=tuple(args.targets))
    inferences = build_inferences(frozen_model(MODELS[model], device), config, aatype, mask)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    steps = {name: partial(each.infer, autocast) for name, each in inferences.items()}
    for step in steps.values():
        step()
    times = interleaved(steps, args.rounds, device)
    found = {name: statistics.median(own) for name, own in times.items()}
    return found | {"ratio": ratio(times["one each"], times["one adapter"])}


def costs(step: Step, device: torch.device) -> dict[str, int]:
    """Kernels and memory of a step, after one step that warms up."""
    step()
    counted = {"kernels": kernels(step), "peak_bytes": peak_memory(step, device)}
    if device.type == "cuda":
        counted["launched_kernels"] = launched_kernels(step)
    return counted


def timing(own: list[float], times: dict[str, list[float]]) -> dict[str, object]:
    """Median, ratios to the baselines that took part, and what they are made of."""
    ratios = {key: ratio(own, times[name]) for key, name in BASELINES.items() if name in times}
    return {"seconds": statistics.median(own), "over": ratios, "seconds_of_rounds": own}


def table(model: str, found: dict[str, dict]) -> Table:
    """The numbers of one model for people."""
    drawn = Table(title=f"one training step of ESM-2 {model}", box=box.SIMPLE_HEAD, pad_edge=False)
    over = [f"/{key}" for key in found[FROZEN]["over"]]
    launched = ["launched"] if "launched_kernels" in found[FROZEN] else []
    for column in ("contender", "trained", "ms", *over, "kernels", *launched, "MiB"):
        left = column == "contender"
        drawn.add_column(column, justify="left" if left else "right", no_wrap=left)
    for name, row in found.items():
        drawn.add_row(
            name,
            f"{row['parameters']:,}",
            f"{1e3 * row['seconds']:.1f}",
            *(f"{value:.3f}" for value in row["over"].values()),
            f"{row['kernels']:,}",
            *(f"{row['launched_kernels']:,}" for _ in launched),
            f"{row['peak_bytes'] / 2**20:.1f}",
        )
    return drawn


if __name__ == "__main__":
    main()

"""What folding costs: inference beside transformers' ESMFold, and a training step by its parts.

    python scripts/benchmarks/folding.py inference --lengths 64 128 256 512 --output folding.json
    python scripts/benchmarks/folding.py training --crop 256 --rounds 1

Inference: transformers' EsmForProteinFolding with random weights, and this project's model with the
same weights (written as a checkpoint and read by `esmfold_weights`), fold the same random sequences
in float32 without gradients, with the same heads. Before anything is timed their coordinates must
agree to 1e-3 Å after one pass. Ratios are medians over rounds of paired timings (CPU: time of this
process on one thread; CUDA: synchronised wall time), memory is the peak of tensors above what is
held before.

Training: a step of the paper's configuration (ESM-2 35M with LoRTA, 12 Evoformer blocks with
checkpointing, one crop, fine-tuning's losses) and the forward and backward pass of each part alone,
on real chains put end to end. Memory is that of tensors and, on a CPU, the resident peak of the
process (set MALLOC_MMAP_THRESHOLD_=1000000, or the allocator of the C library keeps much more than
it needs). With --rounds 0 one step is measured for its memory alone.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from adapters import chosen_device
from measuring import Step, circumstances, interleaved, peak_memory, ratio
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training_step import FINETUNING, Training, end_to_end, parts, run_of, whole_step
from transformers import EsmConfig, EsmForProteinFolding

from esmfold_peft.config import EsmfoldConfig, Kernels, LanguageModelConfig, ModelConfig
from esmfold_peft.datasets.collate import collate
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import HEADS
from esmfold_peft.runs.build import build_model


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table, and writes all numbers."""
    args = parser().parse_args(words)
    device = torch.device(chosen_device(args.device))
    if device.type == "cpu":
        torch.set_num_threads(1)
    # Not about what is measured: transformers' deprecations, and the profiler's log.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    settings = {key: str(value) for key, value in vars(args).items() if key != "output"}
    report = {"settings": settings, "circumstances": circumstances(device)}
    measure = measure_inference if args.what == "inference" else measure_training
    report[args.what] = measure(args, device, Console(highlight=False))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="what", required=True)
    inference = commands.add_parser("inference", help="beside transformers")
    add = inference.add_argument
    add("--lengths", type=int, nargs="+", default=[64, 128, 256, 512], help="residues")
    add("--batch", type=int, default=1, help="sequences (default: 1)")
    add("--blocks", type=int, default=4, help="blocks of the trunk (default: 4)")
    add("--width", type=int, default=256, help="its sequence track (default: 256)")
    add("--recycles", type=int, default=0, help="passes after the first (default: 0)")
    add(
        "--reference-chunk", type=int,
        help="rows that transformers handles at a time; by default all, which is its fastest",
    )  # fmt: skip
    training = commands.add_parser("training", help="one step and its parts")
    add = training.add_argument
    add("--crop", type=int, default=256, help="residues (default: 256)")
    add("--batch", type=int, default=1, help="chains (default: 1)")
    add("--blocks", type=int, default=12, help="Evoformer blocks (default: 12)")
    add("--recycles", type=int, default=0, help="passes without gradient (default: 0)")
    add("--precision", choices=("float32", "bf16"), default="float32", help="bf16: autocast")
    add("--compile", action="store_true", help="compile the trunk's blocks")
    add("--kernels", choices=get_args(Kernels), default="fused", help="of the Evoformer")
    add("--pair_track", choices=("float32", "bf16"), default="bf16", help="under bf16")
    for command in (inference, training):
        command.add_argument("--rounds", type=int, default=5, help="timings (default: 5)")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--output", type=Path, help="JSON file for all numbers")
    return parser


def measure_inference(
    args: argparse.Namespace, device: torch.device, console: Console
) -> dict[str, dict]:
    """Seconds and memory of both models at each length."""
    reference, ours = same_weights(args.blocks, args.width)
    reference, ours = reference.to(device), ours.to(device)
    reference.trunk.set_chunk_size(args.reference_chunk)
    found = {}
    table = Table(title="inference", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("residues", "transformers s", "ours s", "faster", "MiB", "ours MiB", "share"):
        table.add_column(column, justify="right")
    for length in args.lengths:
        row = inference_at(reference, ours, args, length, device)
        found[str(length)] = row
        table.add_row(
            str(length),
            f"{row['transformers']['seconds']:.2f}",
            f"{row['ours']['seconds']:.2f}",
            f"{row['faster']:.2f} x",
            f"{row['transformers']['peak_bytes'] / 2**20:.0f}",
            f"{row['ours']['peak_bytes'] / 2**20:.0f}",
            f"{row['memory']:.2f}",
        )
    console.print(table)
    return found


def inference_at(
    reference: EsmForProteinFolding,
    ours: FoldingModel,
    args: argparse.Namespace,
    length: int,
    device: torch.device,
) -> dict:
    """Seconds and memory at one length; both must agree first."""
    torch.manual_seed(length)
    aatype = torch.randint(0, 20, (args.batch, length), device=device)
    index = torch.arange(length, device=device).expand_as(aatype)
    mask = torch.ones_like(aatype, dtype=torch.bool)

    def fold_reference(recycles: int = args.recycles) -> Tensor:
        with torch.no_grad():
            return reference(aatype, mask.long(), num_recycles=recycles).positions[-1]

    def fold_ours(recycles: int = args.recycles) -> Tensor:
        with torch.no_grad():
            return ours(aatype, index, mask, recycles, heads=HEADS).positions

    difference = (fold_reference(0) - fold_ours(0)).abs().max()
    if not difference < 1e-3:
        raise SystemExit(f"length {length}: coordinates differ by {difference:.2g} Å")
    steps: dict[str, Step] = {"transformers": fold_reference, "ours": fold_ours}  # pyright: ignore
    times = interleaved(steps, args.rounds, device)
    row: dict = {
        name: {
            "seconds": statistics.median(times[name]),
            "peak_bytes": peak_memory(step, device),
            "seconds_of_rounds": times[name],
        }
        for name, step in steps.items()
    }
    row["difference"] = float(difference)
    row["faster"] = ratio(times["transformers"], times["ours"])
    row["memory"] = row["ours"]["peak_bytes"] / row["transformers"]["peak_bytes"]
    return row


def same_weights(blocks: int, width: int) -> tuple[EsmForProteinFolding, FoldingModel]:
    """Both models with the same random weights, ESM-2 8M in front, in evaluation mode."""
    layers, lm_width, heads = 6, 320, 20
    trunk = {"num_blocks": blocks, "sequence_state_dim": width, "chunk_size": None}
    torch.manual_seed(0)
    reference = EsmForProteinFolding(
        EsmConfig(
            vocab_size=33,
            mask_token_id=32,
            pad_token_id=1,
            num_hidden_layers=layers,
            hidden_size=lm_width,
            num_attention_heads=heads,
            intermediate_size=4 * lm_width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-5,
            position_embedding_type="rotary",
            emb_layer_norm_before=False,
            token_dropout=True,
            is_folding_model=True,
            esmfold_config={"fp16_esm": False, "trunk": trunk},
        )
    ).eval()
    with torch.no_grad():  # layers that start at zero would hide what is before them
        for parameter in reference.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        config = ModelConfig(
            trunk="esmfold_v1",
            language_model=LanguageModelConfig(
                name="custom", weights=folder, layers=layers, width=lm_width, heads=heads
            ),
            esmfold=EsmfoldConfig(weights=folder, blocks=blocks, c_s=width, heads=width // 32),
        )
        ours, _ = build_model(run_of(config))
    return reference, ours.eval()


def measure_training(args: argparse.Namespace, device: torch.device, console: Console) -> dict:
    """Seconds and memory of a step and its parts."""
    model_config = ModelConfig(
        language_model=LanguageModelConfig(weights="random"),
        kernels=args.kernels,
        pair_track=args.pair_track,
    )
    evoformer = replace(model_config.evoformer, blocks=args.blocks)
    config = run_of(
        replace(model_config, evoformer=evoformer), precision=args.precision, compile=args.compile
    )
    config = replace(config, loss=replace(config.loss, weights=FINETUNING))
    model, _ = build_model(config)
    chain = end_to_end(args.crop)
    batch = collate([chain] * args.batch, [True] * args.batch).to(device)
    clamp = torch.full((args.batch,), 10.0, device=device)
    training = Training(model.to(device).train(), batch, args.recycles, clamp)
    whole = whole_step(training)
    found: dict = {"first step": {"peak_bytes": peak_memory(whole, device)}}
    if args.rounds:
        found |= measure_parts(parts(training) | {"whole step": whole}, args, device)
    console.print(training_table(args, found))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"resident peak of the process: {peak / 2**30:.1f} GiB")
    return {"parts": found, "resident_peak_bytes": peak}


def measure_parts(
    steps: dict[str, Step], args: argparse.Namespace, device: torch.device
) -> dict[str, dict]:
    """Seconds, share and memory of every part."""
    for step in steps.values() if device.type == "cuda" or args.compile else ():
        step()  # warms up
    times = interleaved(steps, args.rounds, device)
    return {
        name: {
            "seconds": statistics.median(own),
            "share": ratio(own, times["whole step"]),
            "peak_bytes": peak_memory(steps[name], device),
            "seconds_of_rounds": own,
        }
        for name, own in times.items()
    }


def training_table(args: argparse.Namespace, found: dict[str, dict]) -> Table:
    """The numbers of a training step for people."""
    table = Table(title=f"training, {args.batch} x {args.crop}", box=box.SIMPLE_HEAD)
    for column in ("part", "seconds", "share", "MiB"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, row in found.items():
        time = (f"{row['seconds']:.2f}", f"{row['share']:.1%}") if "seconds" in row else ("", "")
        table.add_row(name, *time, f"{row['peak_bytes'] / 2**20:.0f}")
    return table


if __name__ == "__main__":
    main()

"""What folding costs: inference beside transformers' ESMFold, and a training step by its parts.

    python scripts/benchmarks/folding.py inference --lengths 64 128 256 512 --output folding.json
    python scripts/benchmarks/folding.py training --crop 256 --rounds 1

Inference: transformers' EsmForProteinFolding and this project's model with the same random weights
fold the same random sequences in float32 without gradients, with the same heads. Before anything is
timed their coordinates must agree to 1e-3 Å after one pass. Ratios are medians over rounds of
paired timings (CPU: time of this process on one thread; CUDA: synchronised wall time), memory is
the peak of tensors above what is held before.

Training: a step of the paper's configuration (ESM-2 35M with LoRTA, 12 Evoformer blocks that
are recomputed, one crop, fine-tuning's losses), and the forward and backward pass of each part
alone, on real chains put end to end. Memory is that of tensors and, on a CPU, the resident peak of
the process (set MALLOC_MMAP_THRESHOLD_=1000000, or the C library's allocator keeps much more than
it needs). With --rounds 0 one step is measured for its memory alone.
"""

import argparse
import resource
import statistics
import tempfile
from dataclasses import replace
from typing import get_args

import torch
from measuring import (
    Step,
    chosen_device,
    command_line,
    interleaved,
    peak_memory,
    quieten,
    ratio,
    table,
    write_report,
)
from rich.console import Console
from torch import Tensor
from training_step import FINETUNING, Training, end_to_end, parts, run_of, whole_step
from transformers import EsmConfig, EsmForProteinFolding

from esmfold_peft.config import EsmfoldConfig, Kernels, LanguageModelConfig, ModelConfig
from esmfold_peft.datasets.batch import collate
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import HEADS
from esmfold_peft.runs.build import build_model


def main(words: list[str] | None = None) -> None:
    """Measures, prints a table, and writes all numbers."""
    args = parser().parse_args(words)
    device = chosen_device(args.device)
    quieten()
    measure = measure_inference if args.what == "inference" else measure_training
    write_report(args, {args.what: measure(args, device)}, device)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_line(__doc__, device=True)
    parser.add_argument("what", choices=("inference", "training"))
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="timings (default: 5)")
    add("--batch", type=int, default=1, help="sequences or crops (default: 1)")
    add("--blocks", type=int, help="blocks of the trunk (default: 4, in training 12)")
    add("--recycles", type=int, default=0, help="passes after the first (default: 0)")
    add = parser.add_argument_group("inference").add_argument
    add("--lengths", type=int, nargs="+", default=[64, 128, 256, 512], help="residues")
    add("--width", type=int, default=256, help="of the sequence track (default: 256)")
    add(
        "--reference-chunk", type=int,
        help="rows that transformers handles at a time (default: all, which is its fastest)",
    )  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add("--crop", type=int, default=256, help="residues (default: 256)")
    add("--kernels", choices=get_args(Kernels), default="fused", help="of the Evoformer")
    return parser


def measure_inference(args: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Seconds and memory of both models at each length."""
    reference, ours = same_weights(args.blocks or 4, args.width)
    reference, ours = reference.to(device), ours.to(device)
    reference.trunk.set_chunk_size(args.reference_chunk)
    found = {str(n): inference_at(reference, ours, args, n, device) for n in args.lengths}
    rows = (
        (
            length,
            *(f"{row[name]['seconds']:.2f}" for name in ("transformers", "ours")),
            f"{row['faster']:.2f} x",
            *(f"{row[name]['peak_bytes'] / 2**20:.0f}" for name in ("transformers", "ours")),
            f"{row['memory']:.2f}",
        )
        for length, row in found.items()
    )
    columns = ("residues", "transformers s", "ours s", "faster", "MiB", "ours MiB", "share")
    Console(highlight=False).print(table(columns, rows, "inference", left=0))
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

    @torch.no_grad()
    def fold_reference(recycles: int = args.recycles) -> Tensor:
        return reference(aatype, mask.long(), num_recycles=recycles).positions[-1]

    @torch.no_grad()
    def fold_ours(recycles: int = args.recycles) -> Tensor:
        return ours(aatype, index, mask, recycles, heads=HEADS).positions

    difference = (fold_reference(0) - fold_ours(0)).abs().max()
    if not difference < 1e-3:
        raise SystemExit(f"length {length}: coordinates differ by {difference:.2g} Å")
    steps: dict[str, Step] = {"transformers": fold_reference, "ours": fold_ours}
    row: dict = measured(steps, args.rounds, device)
    row["difference"] = float(difference)
    row["faster"] = ratio(*(row[name]["seconds_of_rounds"] for name in steps))
    row["memory"] = row["ours"]["peak_bytes"] / row["transformers"]["peak_bytes"]
    return row


def measured(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict]:
    """Seconds and peak memory of each step."""
    times = interleaved(steps, rounds, device)
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "peak_bytes": peak_memory(step, device),
            "seconds_of_rounds": times[name],
        }
        for name, step in steps.items()
    }


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
    with torch.no_grad():  # layers that start at zero would hide errors before them
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


def measure_training(args: argparse.Namespace, device: torch.device) -> dict:
    """Seconds and memory of a step and its parts."""
    model_config = ModelConfig(
        language_model=LanguageModelConfig(weights="random"),
        kernels=args.kernels,
    )
    evoformer = replace(model_config.evoformer, blocks=args.blocks or 12)
    config = run_of(replace(model_config, evoformer=evoformer), compile=False)
    config = replace(config, loss=replace(config.loss, weights=FINETUNING))
    model, _ = build_model(config)
    batch = collate([end_to_end(args.crop)] * args.batch, [True] * args.batch).to(device)
    clamp = torch.full((args.batch,), 10.0, device=device)
    training = Training(model.to(device).train(), batch, args.recycles, clamp)
    whole = whole_step(training)
    found: dict = {"first step": {"peak_bytes": peak_memory(whole, device)}}
    if args.rounds:
        steps = parts(training) | {"whole step": whole}
        for step in steps.values() if device.type == "cuda" else ():
            step()  # warms up
        found |= measured(steps, args.rounds, device)
        for name in steps:
            of_all = (found[each]["seconds_of_rounds"] for each in (name, "whole step"))
            found[name]["share"] = ratio(*of_all)
    rows = (
        (
            name,
            *((f"{row['seconds']:.2f}", f"{row['share']:.1%}") if "share" in row else ("", "")),
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
        for name, row in found.items()
    )
    title = f"training, {args.batch} x {args.crop}"
    console = Console(highlight=False)
    console.print(table(("part", "seconds", "share", "MiB"), rows, title))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"resident peak of the process: {peak / 2**30:.1f} GiB")
    return {"parts": found, "resident_peak_bytes": peak}


if __name__ == "__main__":
    main()

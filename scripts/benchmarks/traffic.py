"""Kernels and bytes of a training step's parts, counted without a GPU.

    python scripts/benchmarks/traffic.py --output traffic.json

A block of the trunk, the structure module, the language model with LoRTA (in bfloat16 autocast but
for the structure module), and the losses of both stages, at the paper's sizes: forward and backward
pass, as PyTorch runs them operation by operation ("eager") and as inductor would fuse them
for an H100 ("fused", see counting.py). A byte is counted once for every kernel that reads or writes
it. Kept are the GB that a chain holds for its backward pass, weights aside.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from counting import Counts, Function, eager, fused
from measuring import command_line, table, write_report
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import register_dataclass, tree_flatten, tree_map_only, tree_unflatten
from training_step import FINETUNING, end_to_end, run_of, with_leaves

from esmfold_peft.config import (
    AdapterConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossWeights,
    ModelConfig,
)
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.total import fold_loss
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.trunks.openfold import Evoformer, fused_block
from esmfold_peft.runs.build import build_model

register_dataclass(FoldOutput)  # tensors in it are counted


@dataclass(frozen=True)
class Part:
    """A function of weights (tensors by name) and inputs, dataclasses of tensors among them."""

    function: Function
    weights: dict[str, Tensor]
    inputs: tuple[Any, ...]

    def counted(self) -> Iterator[tuple[str, Counts]]:
        """Counts of both ways to run it on a GPU, by their names."""
        with (
            mock.patch("esmfold_peft.losses.violations.lists_pairs", _never),
            mock.patch("esmfold_peft.metrics.lddt.lists_pairs", _never),
        ):
            yield "eager", eager(self.function, self.weights, *self.inputs)
        yield "fused", fused(self.function, self.weights, *self.inputs)


def main(words: list[str] | None = None) -> None:
    """Counts, prints a table, and writes all numbers."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    add("--chains", type=int, default=2, help="chains of a micro-batch (default: 2)")
    add("--crop", type=int, default=256, help="residues (default: 256)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # Dynamo's advice
    rows = []
    found: dict[str, dict] = {}
    for name in args.parts:
        for way, counts in PARTS[name](args.chains, args.crop).counted():
            found.setdefault(name, {})[way] = asdict(counts)
            passes = counts.forward, counts.backward
            kept = f"{counts.kept / args.chains / 1e9:.2f}"
            gigabytes = (f"{each.bytes / 1e9:.2f}" for each in passes)
            rows.append((name, way, *(f"{each.kernels:,}" for each in passes), *gigabytes, kept))
    columns = ("part", "", "kernels fwd", "bwd", "GB fwd", "bwd", "kept")
    Console(highlight=False).print(table(columns, rows, f"{args.chains} x {args.crop}", left=2))
    write_report(args, {"parts": found})


def openfold_block(chains: int, crop: int) -> Part:
    """A block of openfold3's Evoformer with dropout, in bfloat16 autocast."""
    config = EvoformerConfig(blocks=1, recompute=False)
    block = Evoformer(ModelConfig(evoformer=config)).train().blocks[0]
    m = torch.empty(chains, 1, crop, config.c_m, requires_grad=True)
    z = torch.empty(chains, crop, crop, config.c_z, requires_grad=True)
    masks = torch.empty(chains, 1, crop), torch.empty(chains, crop, crop)

    def run(weights: Any, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor) -> Any:
        options = {"msa_mask": msa_mask, "pair_mask": pair_mask, "chunk_size": None}
        with torch.autocast("cpu", torch.bfloat16):
            return functional_call(block, weights, (m, z), options)

    return Part(run, parameters_of(block), (m, z, *masks))


def our_block(chains: int, crop: int, pair_track: torch.dtype = torch.bfloat16) -> Part:
    """The same block by our own forward pass, which recomputes parts of it."""
    config = EvoformerConfig(blocks=1, recompute=False)
    model = Evoformer(ModelConfig(evoformer=config)).train()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        (weights,) = model.pack()
    weights = tree_map_only(Tensor, lambda t: t.clone().requires_grad_(), weights)
    m = torch.empty(chains, crop, config.c_m, requires_grad=True)
    z = torch.empty(chains, crop, crop, config.c_z, dtype=pair_track, requires_grad=True)
    mask = torch.empty(chains, crop, dtype=torch.bool)
    factors = [torch.empty(m.shape), *(torch.empty(chains, 1, crop, config.c_z) for _ in range(4))]

    def run(weights: Any, m: Tensor, z: Tensor, mask: Tensor, *factors: Tensor) -> Any:
        return fused_block(weights, m, z, factors, mask, None, True)

    return Part(run, weights, (m, z, mask, *factors))


def structure_module(chains: int, crop: int) -> Part:
    """The structure module in float32."""
    tables(torch.device("cpu"))  # or they would be made, and cached, as fake tensors
    model, batch = paper_model(), real_batch(chains, crop)
    module, (s, z) = model.structure_module, tracks(chains, crop)

    factors, nesting = tree_flatten(draw_factors(module.dropout_sites(crop), chains, s.device))

    def run(
        weights: Any, s: Tensor, z: Tensor, aatype: Tensor, mask: Tensor, *factors: Tensor
    ) -> Any:
        dropout = tree_unflatten(factors, nesting)
        made = functional_call(module, weights, (s, z, aatype, mask, dropout))
        return made.positions, made.torsions, made.frames.translation, made.s

    return Part(run, parameters_of(module), (s, z, batch.aatype, batch.mask, *factors))


def language_model(chains: int, crop: int) -> Part:
    """ESM-2 35M with LoRTA, in bfloat16 autocast."""
    module, batch = paper_model().language_model, real_batch(chains, crop)

    def run(weights: Any, aatype: Tensor, mask: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return functional_call(module, weights, (aatype, mask))

    return Part(run, parameters_of(module), (batch.aatype, batch.mask))


def losses(chains: int, crop: int, stage: LossWeights) -> Part:
    """The losses of what an untrained structure module predicts."""
    model, batch = paper_model(), real_batch(chains, crop)
    with torch.no_grad():
        made = model.structure_module(*tracks(chains, crop), batch.aatype, batch.mask)
    output = FoldOutput(
        frames=made.frames,
        torsions=made.torsions,
        unnormalized_torsions=made.unnormalized_torsions,
        sidechain_frames=made.sidechain_frames,
        positions=made.positions,
        distogram_logits=torch.randn(chains, crop, crop, 64),
        plddt_logits=torch.randn(chains, crop, 50),
        resolved_logits=torch.randn(chains, crop, 37),
        pae_logits=torch.randn(chains, crop, crop, 64),
    )

    def run(_: Any, output: FoldOutput, truth: GroundTruth, clamp: Tensor) -> Any:
        return fold_loss(output, truth, stage, clamp=clamp).total

    truth, clamp = ground_truth(batch, fixed=True), torch.full((chains,), 10.0)
    return Part(run, {}, (with_leaves(output), truth, clamp))


PARTS: dict[str, Callable[[int, int], Part]] = {
    "openfold3's block": openfold_block,
    "our block": our_block,
    "our block, float32 pair track": partial(our_block, pair_track=torch.float32),
    "structure module": structure_module,
    "language model": language_model,
    "losses": partial(losses, stage=LossWeights()),
    "losses of fine-tuning": partial(losses, stage=FINETUNING),
}


def paper_model() -> FoldingModel:
    """The paper's model with a single block, for training."""
    config = ModelConfig(language_model=LanguageModelConfig(weights="random"))
    config = replace(config, evoformer=replace(config.evoformer, blocks=1))
    run = run_of(config, precision="bf16")
    lorta = AdapterConfig(kind="lorta", rank=1, alpha=2.0, init="paper")
    model, _ = build_model(replace(run, adapter=lorta))
    return model.train()


def real_batch(chains: int, crop: int) -> Batch:
    """Real chains put end to end, with their structures."""
    return collate([end_to_end(crop)] * chains, [True] * chains)


def tracks(chains: int, crop: int) -> tuple[Tensor, Tensor]:
    """Random single and pair tracks at the paper's widths."""
    config = EvoformerConfig()
    s = torch.randn(chains, crop, config.c_s, requires_grad=True)
    return s, torch.randn(chains, crop, crop, config.c_z, requires_grad=True)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module by name, trained ones as leaves of their own."""
    return {
        name: parameter.detach().requires_grad_(parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }


def _never(_: torch.device) -> bool:
    return False


if __name__ == "__main__":
    main()

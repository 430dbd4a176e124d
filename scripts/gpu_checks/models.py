"""Models, chains and sizes of the checks and measurements: random weights, real chains."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from training_step import FINETUNING, end_to_end, run_of

from esmfold_peft.config import (
    AdapterConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    StructureConfig,
    TrainConfig,
)
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.runs.build import build_model

SHAKE = 0.3
"""Size of the noise on a matrix, times the root of its inputs. Half of the Evoformer's matrices
start at zero: gradients behind them are zero, and errors hidden."""

SHAKE_VECTORS = 0.05


def small_model(blocks: int, layers: int) -> ModelConfig:
    """Every part of the model, small, without dropout; `layers` of the structure module."""
    return ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=3, width=64, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=blocks, c_m=128, c_z=32, c_s=128, heads_msa=4, heads_pair=2, c_head_msa=16,
            c_head_pair=16, c_opm=8, c_mul=32, transition=2, dropout_msa=0.0, dropout_pair=0.0,
            recompute=False,
        ),
        structure=StructureConfig(layers=layers, heads=6, c_angle=64, dropout=0.0),
        max_recycles=1,
        c_plddt=64,
    )  # fmt: skip


def wide_model(blocks: int, layers: int) -> ModelConfig:
    """ESM-2 8M and an Evoformer of the real widths (c_m 256, c_z 128), without dropout."""
    return ModelConfig(
        language_model=LanguageModelConfig(name="esm2_t6_8M_UR50D", weights="random"),
        evoformer=EvoformerConfig(
            blocks=blocks, dropout_msa=0.0, dropout_pair=0.0, recompute=False
        ),
        structure=StructureConfig(layers=layers, dropout=0.0),
    )


PAPER = ModelConfig(language_model=LanguageModelConfig(weights="random"))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements; by default those for a GPU, in the paper's configuration.

    Attributes:
        tiny: for a CPU in seconds; speeds then mean nothing.
        paper: the model.
        crop: residues of its crops.
        batch: chains of an optimizer step.
        blocks: chains at a time for which one block is timed.
        rounds: timings.
        curve: chains of the training that draws loss curves, its steps, and means of a curve.
        adapted: language model of the adapters' benchmark.
        adapter_batch: its chains and residues.
        inference: lengths that are folded, and the seconds that are the goal on one H100.
        copied: bytes of a copy.
        matrix: rows and columns of matrices that are multiplied.
        attention: residues in a row that one block of the kernels holds, and in a longer one.
        sweep: seconds for all sweeps.
    """

    tiny: bool = False
    paper: ModelConfig = PAPER
    crop: int = 256
    batch: int = 32
    blocks: tuple[int, ...] = (8, 4, 2, 1)
    rounds: int = 2
    curve: tuple[int, int, int] = (2, 100, 5)
    adapted: str = "35M"
    adapter_batch: tuple[int, int] = (4, 256)
    inference: tuple[tuple[int, float], ...] = ((256, 0.08), (1024, 1.5))
    copied: int = 2**30
    matrix: int = 8192
    attention: tuple[int, int] = (256, 384)
    sweep: float = 110.0


FULL = Sizes()
TINY = Sizes(
    tiny=True,
    paper=small_model(2, 2),
    crop=12,
    batch=2,
    blocks=(2, 1),
    rounds=1,
    curve=(2, 4, 2),
    adapted="tiny",
    adapter_batch=(1, 8),
    inference=((8, 0.08), (12, 1.5)),
    copied=2**20,
    matrix=64,
    attention=(16, 24),
    sweep=2.0,
)
"""All code runs with them on one CPU core in less than a minute."""


def settings(
    model: ModelConfig,
    *,
    weights: LossWeights = FINETUNING,
    adapter: AdapterConfig | None = None,
    **engine: object,
) -> TrainConfig:
    """Settings of a run, in float32 and not compiled unless `engine` says so; reads no file."""
    config = run_of(model, **{"compile": False, "cuda_graphs": False} | engine)
    return replace(
        config,
        data=replace(config.data, workers=0),
        adapter=adapter or config.adapter,
        loss=LossConfig(weights=weights, clamp_probability=1.0, resolution=None),
        optimizer=OptimizerConfig(
            lr=2e-3, eps=1e-3, warmup_steps=0, clip_norm=0.3, schedule="constant"
        ),
    )


def shaken_model(config: TrainConfig) -> FoldingModel:
    """The model of a run on the CPU with noise on every trained parameter, in training mode."""
    model, _ = build_model(config)
    shake(model, seed=1)
    return model.train()


@torch.no_grad()
def shake(model: nn.Module, seed: int) -> None:
    """Adds noise to every trained parameter of a model on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1
            size = SHAKE * parameter.shape[-1] ** -0.5 if matrix else SHAKE_VECTORS
            parameter += size * torch.randn(parameter.shape, generator=generator)


def real_batch(length: int, chains: int, *, padding: int = 0) -> Batch:
    """Crops of real full-atom chains put end to end; the last is `padding` residues shorter."""
    stride = 37  # crops overlap, but no two are the same
    whole = end_to_end(length + stride * (chains - 1))
    crops = [whole.crop(stride * k, length - padding * (k == chains - 1)) for k in range(chains)]
    return collate(crops, [True] * chains)

"""How large everything is: as on an H100, and as small as it can be for a CPU."""

from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EngineConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    StructureConfig,
    TrainConfig,
)

FINETUNING = LossWeights(resolved=0.01, violation=1.0, pae=0.1)
"""All losses have a weight, so that all heads take part."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of checks and benchmarks.

    Attributes:
        tiny: on a CPU in seconds; nothing is then said about speed.
        parity: the models of the parity check by name.
        parity_length: residues of the longer of its two chains.
        training: the model that is trained.
        crop: residues of its crops.
        steps: of the training that must learn.
        learning: steps at both ends over which loss and lDDT-Cα are averaged.
        largest_loss: the loss at the end as a share of that at the start, at most.
        least_gain: of lDDT-Cα from start to end.
        compared_steps: of the runs by other engines, and of the resumed one.
        attention: residues in a row of the attention that is checked and timed, and in a longer one
            that is checked.
        paper: the model of the benchmarks.
        paper_crop: residues of its crops.
        batch: chains of an optimizer step.
        micro_batches: chains at a time that are tried.
        rounds: timings.
        curve: chains of the training that draws loss curves, its steps, and means of a curve.
        adapted: language model of the adapters' benchmark.
        adapter_batch: its chains and residues.
        inference: lengths that are folded, and the seconds that are the goal on one H100.
        copied: bytes of a copy.
        matrix: rows and columns of matrices that are multiplied.
        sweep: seconds for all sweeps.
        scarce: chains and residues that are folded with too little memory.
    """

    tiny: bool
    parity: dict[str, ModelConfig]
    parity_length: int
    training: ModelConfig
    crop: int
    steps: int
    learning: int
    largest_loss: float
    least_gain: float
    compared_steps: int
    attention: tuple[int, int]
    paper: ModelConfig
    paper_crop: int
    batch: int
    micro_batches: tuple[int, ...]
    rounds: int
    curve: tuple[int, int, int]
    adapted: str
    adapter_batch: tuple[int, int]
    inference: dict[int, float]
    copied: int
    matrix: int
    sweep: float
    scarce: tuple[int, int]


def small_model(blocks: int, layers: int) -> ModelConfig:
    """Every part of the model, small, without dropout.

    Args:
        blocks: of the Evoformer.
        layers: of the structure module.
    """
    return ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=3, width=64, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=blocks,
            c_m=128,
            c_z=32,
            c_s=128,
            heads_msa=4,
            heads_pair=2,
            c_head_msa=16,
            c_head_pair=16,
            c_opm=8,
            c_mul=32,
            transition=2,
            dropout_msa=0.0,
            dropout_pair=0.0,
            checkpoint=False,
        ),
        structure=StructureConfig(layers=layers, heads=6, c_angle=64, dropout=0.0),
        max_recycles=1,
        c_plddt=64,
    )


def wide_model(blocks: int, layers: int) -> ModelConfig:
    """ESM-2 8M and an Evoformer of the real widths (c_m 256, c_z 128), without dropout.

    Args:
        blocks: of the Evoformer.
        layers: of the structure module.
    """
    return ModelConfig(
        language_model=LanguageModelConfig(name="esm2_t6_8M_UR50D", weights="random"),
        evoformer=EvoformerConfig(
            blocks=blocks, dropout_msa=0.0, dropout_pair=0.0, checkpoint=False
        ),
        structure=StructureConfig(layers=layers, dropout=0.0),
    )


def settings(
    model: ModelConfig,
    *,
    precision: str = "float32",
    weights: LossWeights = FINETUNING,
    adapter: AdapterConfig | None = None,
    compile: bool = False,
) -> TrainConfig:
    """Settings of a run whose model is used here, and of which no file is read.

    Args:
        model: its sizes.
        precision: float32 or bf16.
        weights: of the losses.
        adapter: LoRTA of rank 8 by default.
        compile: the trunk's blocks.
    """
    return TrainConfig(
        run=Path("unused"),
        data=DataConfig(train=Path("unused"), workers=0),
        model=model,
        adapter=adapter or AdapterConfig(kind="lorta", rank=8),
        loss=LossConfig(weights=weights, clamp_probability=1.0, resolution=None),
        optimizer=OptimizerConfig(
            lr=2e-3, eps=1e-3, warmup_steps=0, clip_norm=0.3, schedule="constant"
        ),
        engine=EngineConfig(precision=precision, compile=compile, cuda_graphs=False),  # pyright: ignore
    )


def full_sizes() -> Sizes:
    """Sizes for a GPU, in the paper's configuration where something is timed."""
    paper = ModelConfig(language_model=LanguageModelConfig(weights="random"))
    return Sizes(
        tiny=False,
        parity={"small": small_model(2, 4), "wide": wide_model(2, 8)},
        parity_length=64,
        training=small_model(2, 4),
        crop=64,
        steps=200,
        learning=20,
        largest_loss=0.8,
        least_gain=0.1,
        compared_steps=10,
        attention=(256, 384),
        paper=paper,
        paper_crop=256,
        batch=32,
        micro_batches=(1, 2, 4, 8),
        rounds=2,
        curve=(2, 100, 5),
        adapted="esm2_t12_35M_UR50D",
        adapter_batch=(4, 256),
        inference={256: 0.08, 1024: 1.5},
        copied=2**30,
        matrix=8192,
        sweep=110.0,
        scarce=(8, 256),
    )


def tiny_sizes() -> Sizes:
    """Sizes with which all code runs on one CPU core in less than a minute."""
    return Sizes(
        tiny=True,
        parity={"small": small_model(1, 2), "wide": wide_model(1, 2)},
        parity_length=16,
        training=small_model(1, 2),
        crop=24,
        steps=20,
        learning=4,
        largest_loss=0.95,
        least_gain=0.01,
        compared_steps=4,
        attention=(16, 24),
        paper=small_model(2, 2),
        paper_crop=12,
        batch=2,
        micro_batches=(1, 2),
        rounds=1,
        curve=(2, 4, 2),
        adapted="tiny",
        adapter_batch=(1, 8),
        inference={8: 0.08, 12: 1.5},
        copied=2**20,
        matrix=64,
        sweep=2.0,
        scarce=(2, 8),
    )

"""The settings of a model that is small enough for any test."""

from dataclasses import replace
from pathlib import Path

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EsmfoldConfig,
    EvoformerConfig,
    LanguageModelConfig,
    ModelConfig,
    StructureConfig,
    TrainConfig,
)

TINY = TrainConfig(
    run=Path("run"),
    data=DataConfig(train=Path("train")),
    model=ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=3, width=32, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=2,
            c_m=32,
            c_z=16,
            c_s=24,
            heads_msa=2,
            heads_pair=2,
            c_head_msa=8,
            c_head_pair=8,
            c_opm=4,
            c_mul=16,
            transition=2,
            recompute=False,
        ),
        structure=StructureConfig(layers=3, c_ipa=8, heads=4, c_angle=16),
        c_plddt=16,
    ),
    adapter=AdapterConfig(kind="lorta", rank=2),
)
TINY = replace(TINY, engine=replace(TINY.engine, precision="float32"))

TINY_ESMFOLD = ModelConfig(
    language_model=LanguageModelConfig(
        name="custom", weights="random", layers=2, width=40, heads=4
    ),
    trunk="esmfold_v1",
    esmfold=EsmfoldConfig(
        blocks=2, c_s=32, c_z=16, c_structure=24, heads=4, heads_pair=2, recompute=False
    ),
    structure=StructureConfig(
        layers=3,
        c_ipa=4,
        heads=3,
        query_points=2,
        value_points=5,
        c_angle=12,
        angle_blocks=2,
        dropout=0.0,
    ),
    relative_positions=6,
    c_plddt=20,
)
"""The sizes of the tiny ESMFold of `tests/weights`."""

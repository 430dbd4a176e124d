"""The settings of a model that is small enough for any test."""

from dataclasses import replace
from pathlib import Path

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
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
            checkpoint=False,
        ),
        structure=StructureConfig(layers=3, c_ipa=8, heads=4, c_angle=16),
        c_plddt=16,
    ),
    adapter=AdapterConfig(kind="lorta", rank=2),
)
TINY = replace(TINY, engine=replace(TINY.engine, precision="float32"))

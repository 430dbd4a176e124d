"""A run with a tiny model of random weights, and two that lack its head of aligned errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EvoformerConfig,
    LanguageModelConfig,
    LossConfig,
    LossWeights,
    ModelConfig,
    StructureConfig,
    TrainConfig,
)
from esmfold_peft.model.build import build_model
from esmfold_peft.training.run_directory import create_run

TINY = TrainConfig(
    run=Path("run"),
    data=DataConfig(train=Path("train")),
    model=ModelConfig(
        language_model=LanguageModelConfig(
            name="custom", weights="random", layers=2, width=32, heads=4
        ),
        evoformer=EvoformerConfig(
            blocks=1,
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
        structure=StructureConfig(layers=2, c_ipa=8, heads=2, c_angle=16),
        c_plddt=16,
        max_recycles=1,
    ),
    loss=LossConfig(weights=LossWeights(pae=0.1)),
    adapter=AdapterConfig(kind="lora", rank=2),
)
TINY = replace(TINY, engine=replace(TINY.engine, precision="float32"))


def make_run(folder: Path, config: TrainConfig = TINY, seed: int = 0) -> Path:
    """A run that was not trained; its weights are moved so that no part of the model is idle."""
    # A run names its chains by the hash of their list, and nothing here reads them.
    train = folder.parent / f"{folder.name}_chains"
    train.mkdir(parents=True)
    (train / "manifest.csv").write_text("id\n")
    config = replace(config, run=folder, data=replace(config.data, train=train))
    model, base = build_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    create_run(config, model, base)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose model predicts aligned errors."""
    return make_run(tmp_path_factory.mktemp("tiny") / "run")

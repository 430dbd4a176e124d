"""A run with a tiny model of random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.config import LossConfig, LossWeights, TrainConfig
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.run_directory import create_run
from tests.tiny import TINY as SMALL

TINY = replace(
    SMALL,
    model=replace(SMALL.model, evoformer=replace(SMALL.model.evoformer, blocks=1), max_recycles=1),
    loss=LossConfig(weights=LossWeights(pae=0.1)),
)


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

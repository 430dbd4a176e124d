"""Stores of a few chains, and trainings in processes of their own."""

from pathlib import Path

import pytest

from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import PrepareConfig
from tests.nursery import ROOT


@pytest.fixture(scope="session")
def stores(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train`, of five chains, and `held_out`, of two."""
    folder = tmp_path_factory.mktemp("stores")
    names = {
        "train": ("1hf9_A", "2pw8_C", "3k2t_A", "3nir_A", "5k2l_A"),
        "held_out": ("1ubq_A", "3u8v_A"),
    }
    for name, chains in names.items():
        files = [next(example.glob(f"*/{chain}.cif.gz")) for chain in chains]
        prepare(PrepareConfig(tuple(files), folder / name, clusters="none", workers=1))
    return folder


def words(stores: Path, run: Path, *more: object) -> list[object]:
    """The words of a short training of a very small model."""
    return [
        *("train", "--config", ROOT / "configs" / "tiny.yaml", "--run", run, "--allow-leaks"),
        *("--data.train", stores / "train", "--data.validation", stores / "held_out"),
        *("--model.language_model.layers", 1, "--model.language_model.width", 16),
        *("--model.language_model.heads", 2),
        *("--model.evoformer.blocks", 1, "--model.evoformer.c_m", 16, "--model.evoformer.c_z", 16),
        *("--model.evoformer.c_s", 16, "--model.evoformer.heads_msa", 1),
        *("--model.evoformer.heads_pair", 1, "--model.evoformer.dropout_msa", 0.15),
        *("--model.structure.layers", 1, "--model.structure.heads", 2, "--data.crop", 16),
        *("--model.structure.c_angle", 16, "--engine.batch_size", 2, "--engine.micro_batch", 1),
        *("--engine.validate_every", 4, "--checkpoints.every", 2, "--log.every", 1),
        *("--optimizer.warmup_steps", 2, *more),
    ]  # fmt: skip

"""A run with a tiny model of random weights, and settings that predict odd records with it."""

import csv
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from esmfold_peft.config import LossConfig, LossWeights, PredictConfig, TrainConfig
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.run_directory import create_run
from tests.tiny import TINY as SMALL

TINY = replace(
    SMALL,
    model=replace(SMALL.model, evoformer=replace(SMALL.model.evoformer, blocks=1), max_recycles=1),
    loss=LossConfig(weights=LossWeights(pae=0.1)),
)

QUICK = "import os; os.fsync = lambda _: None"
"""Python that a command runs first: the kill of a process, not of the machine, loses no write."""

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ODD = """\
>good first of them
mktayiakqr
>sp|P1|../../etc/passwd
GSHMWWLEGS
>good
MKTAYBZ*
>gap
MK-TAY
>empty
>complex two chains
GAVLK:MKTAY

>dna
ACGTACGTACGTACGTACGTACGT
>
W
>long
"""
ODD += "M" * 60 + "\n"


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


@pytest.fixture
def config(run: Path, tmp_path: Path) -> PredictConfig:
    (tmp_path / "odd.fasta").write_text(ODD)
    return PredictConfig(
        fasta=(tmp_path / "odd.fasta",),
        output=tmp_path / "out",
        run=run,
        device="cpu",
        max_length=50,
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(folder: Path, other: Path) -> None:
    """The same files and table; numbers as in another batch, which may round in another way."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    for one, two in zip(rows_of(folder), rows_of(other), strict=True):
        for name in one.keys() - {"seconds", "plddt"}:
            assert one[name] == two[name], name
        if one["status"] == "ok":
            assert float(one["plddt"]) == pytest.approx(float(two["plddt"]), abs=0.011)
            places = [places_of(root / one["mmcif"]) for root in (folder, other)]
            np.testing.assert_allclose(*places, atol=1.1e-3)


def places_of(path: Path) -> list[list[float]]:
    model = gemmi.read_structure(str(path))[0]
    return [atom.pos.tolist() for chain in model for residue in chain for atom in residue]

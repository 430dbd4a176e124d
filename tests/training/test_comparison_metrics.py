"""What a run logs to compare adapters by, against its own checkpoint."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esmfold_peft.runs.ready import load_model
from tests.nursery import Nursery
from tests.training.conftest import words

EPS, EPS_ADAPTER, STEPS = 1e-5, 1e-9, 6


@pytest.fixture(scope="module")
def run(nursery: Nursery, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of a LoRA that has an ε of its own."""
    run = tmp_path_factory.mktemp("comparison") / "run"
    adapter = ("--adapter.kind", "lora", "--adapter.rank", 2, "--adapter.alpha", 500)
    flags = ("--engine.steps", STEPS, "--optimizer.eps", EPS, "--optimizer.eps_adapter")
    nursery.run(*words(stores, run, *adapter, *flags, EPS_ADAPTER))
    return run


def last(run: Path) -> dict[str, float]:
    """The last line of the metrics."""
    with (run / "metrics.csv").open() as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def test_the_damping_is_that_of_adams_own_moments(run: Path):
    moments = load_file(run / "checkpoints" / f"step_{STEPS:08d}" / "adam.safetensors")
    found: dict[str, list[torch.Tensor]] = {"a": [], "b": [], "trunk": [], "head": []}
    for name, squares in moments.items():
        if not name.endswith("/exp_avg_sq"):
            continue
        parameter = name.removesuffix("/exp_avg_sq")
        eps = EPS_ADAPTER if parameter.startswith("language_model.") else EPS
        root = (squares.double() / (1 - 0.999**STEPS)).sqrt().flatten()
        part = parameter.split(".")[0].replace("structure_module", "head")
        if part == "language_model":
            part = parameter.split(".")[-1].split("_")[0]
        found.get(part, found["head"]).append(root / (root + eps))
    metrics = last(run)
    for part, shares in found.items():
        expected = float(torch.cat(shares).mean())
        assert metrics[f"damping/{part}"] == pytest.approx(expected, rel=1e-4), part
    # With OpenFold's ε the first factor would hardly move.
    assert metrics["damping/a"] > 0.5
    assert len([name for name in metrics if name.startswith("damping/")]) == len(found)


@torch.no_grad()
def test_the_relative_update_is_that_of_the_saved_adapter(run: Path):
    lm = load_model(run, raw=True)[0].language_model
    assert lm.adapter is not None
    sizes = [
        (part.weight - lm.weight(part.layer, part.target)).norm()
        / lm.weight(part.layer, part.target).norm()
        for part in lm.adapter.merged(lm)
    ]
    largest = float(torch.stack(sizes).max())
    assert largest > 0.01
    assert last(run)["update/relative"] == pytest.approx(largest, rel=1e-4)


def test_the_shares_of_the_gradient_add_up_to_one(run: Path):
    metrics = last(run)
    shares = {n: metrics[f"gradient_share/{n}"] for n in ("adapter", "trunk", "head")}
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        norm = metrics[f"gradient/{name}"] / metrics["gradient/total"]
        assert share == pytest.approx(norm**2)


def test_a_frozen_language_model_has_no_update_and_a_whole_one_no_factors(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    for kind in ("none", "full"):
        flags = ("--adapter.kind", kind, "--engine.steps", 2)
        nursery.run(*words(stores, tmp_path / kind, *flags))
    frozen, full = last(tmp_path / "none"), last(tmp_path / "full")
    assert "update/relative" not in frozen.keys() | full.keys()
    dampings = [{n for n in row if n.startswith("damping/")} for row in (frozen, full)]
    assert dampings[0] == {"damping/trunk", "damping/head"}
    assert dampings[1] == dampings[0] | {"damping/language_model"}
    assert "gradient_share/adapter" not in frozen
    assert full["gradient_share/adapter"] > 0

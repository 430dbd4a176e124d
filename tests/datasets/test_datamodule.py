"""That a run's settings reach its samples: shares, weights, seed, crops, processes, batches."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from esmfold_peft.config import DataConfig, EngineConfig, LossConfig, TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.errors import UserError

Draw = tuple[int, int]
DISTILLATION = Path(__file__).parents[2] / "configs" / "distillation.yaml"


@pytest.fixture
def config(tmp_path: Path, write_store: Callable, make_chain: Callable) -> TrainConfig:
    """Three training chains (two of them one cluster), a mixed-in copy of them, six held out."""
    chains = [make_chain("short", 60), make_chain("long", 600), make_chain("middle", 384)]
    for name in ("train", "distilled"):
        write_store(tmp_path / name, chains, ["a", "a", "b"])
    lengths = (30, 60, 35, 31, 58, 25)
    write_store(tmp_path / "validation", [make_chain(f"v{n}", n) for n in lengths])
    return TrainConfig(
        run=tmp_path / "run",
        data=DataConfig(tmp_path / "train", tmp_path / "validation", crop=20, workers=0),
        engine=EngineConfig(batch_size=2, validation_tokens=62),
    )


def with_data(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, data=replace(config.data, **changes))


def mixed(config: TrainConfig, share: float) -> TrainConfig:
    return with_data(config, mix={str(config.data.train.parent / "distilled"): share})


def data_of(config: TrainConfig, rank: int = 0, world: int = 1) -> ChainDataModule:
    """The data as one process of a training has it."""
    data = ChainDataModule(config)
    trainer = SimpleNamespace(global_step=0, global_rank=rank, world_size=world)
    data.trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
    return data


def draws(config: TrainConfig, steps: int, rank: int = 0, world: int = 1) -> list[list[Draw]]:
    """Chain and number of each sample of the first steps of a process."""
    sampler: Any = data_of(config, rank, world).train_dataloader().batch_sampler
    return list(islice(sampler, steps))


def chains(config: TrainConfig, size: int) -> np.ndarray:
    return np.array([chain for batch in draws(config, size // 2) for chain, _ in batch])


# Weights of short, long, middle: clip(length, 256, 512) / 512 is 1/2, 1, 3/4.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster_weight", "length_weight", "weights"),
    [
        ("inverse", True, [1 / 4, 1 / 2, 3 / 4]),
        ("inverse", False, [1 / 2, 1 / 2, 1]),
        ("inverse_sqrt", False, [0.5**0.5, 0.5**0.5, 1]),
        ("none", True, [1 / 2, 1, 3 / 4]),
        ("none", False, [1, 1, 1]),
    ],
)
def test_a_chain_comes_as_often_as_its_weight_says(
    cluster_weight: str, length_weight: bool, weights: list[float], config: TrainConfig
):
    chosen = with_data(config, cluster_weight=cluster_weight, length_weight=length_weight)
    expected = np.array(weights) / sum(weights)
    counts = np.bincount(chains(chosen, 4000), minlength=3)
    assert np.allclose(counts / 4000, expected, atol=4 * np.sqrt(0.25 / 4000))
    # Mixed in with a share of 0.8, the copies have the same weights among themselves.
    counts = np.bincount(chains(mixed(chosen, 0.8), 12_000), minlength=6) / 12_000
    assert np.allclose(counts, [*0.2 * expected, *0.8 * expected], atol=4 * np.sqrt(0.25 / 12_000))


@pytest.fixture
def overlaid(config: TrainConfig) -> TrainConfig:
    """With the mix of the shipped overlay."""
    parser = config_parser(TrainConfig)
    flags = ["--run", "r", "--data.train", "t"]
    parsed = parser.parse_args([f"--config={DISTILLATION}", *flags])
    return with_data(config, mix=to_config(parser, parsed, TrainConfig).data.mix)


def test_the_overlay_of_distillation_draws_three_of_four_samples_from_its_store(
    overlaid: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "chains").mkdir()
    (tmp_path / "distilled").rename(tmp_path / "chains" / "distilled")
    monkeypatch.chdir(tmp_path)
    share = (chains(overlaid, 4000) >= 3).mean()
    assert share == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 4000))


def test_a_store_of_the_mix_that_is_missing_is_named_with_what_makes_it(
    overlaid: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^chains/distilled: no such store.*prepare\)$"):
        ChainDataModule(overlaid)


def test_the_training_store_has_what_the_mix_leaves(config: TrainConfig):
    several = with_data(config, mix={"a": 0.2, "b": 0.3})
    shares = [(config.data.train, 0.5), (Path("a"), 0.2), (Path("b"), 0.3)]
    assert several.data.shares == shares


def test_the_seed_decides_stores_chains_crops_and_clamping(config: TrainConfig):
    half = replace(mixed(config, 0.5), loss=LossConfig(clamp_probability=0.5))
    other = replace(half, seed=1)
    assert np.array_equal(chains(half, 200), chains(half, 200))
    assert not np.array_equal(chains(half, 200) // 3, chains(other, 200) // 3)
    assert not np.array_equal(chains(config, 200), chains(replace(config, seed=1), 200))

    def crops(config: TrainConfig) -> list[tuple[int, bool]]:
        samples = data_of(config).train_dataloader().dataset
        found = [samples[1, number] for number in range(30)]
        return [(int(chain.residue_index[0]), clamped) for chain, clamped in found]

    assert crops(half) == crops(half)
    assert {start for start, _ in crops(half)} != {start for start, _ in crops(other)}
    assert [clamped for _, clamped in crops(half)] != [clamped for _, clamped in crops(other)]


def test_stores_with_the_same_chains_have_orders_of_their_own(config: TrainConfig):
    found = chains(mixed(config, 0.5), 400)
    first, second = found[found < 3], found[found >= 3] - 3
    assert not np.array_equal(first[:100], second[:100])


def test_crop_and_clamping_are_those_of_the_settings(config: TrainConfig):
    def samples(share: float) -> list[tuple[Any, bool]]:
        settings = replace(with_data(config, crop=50), loss=LossConfig(clamp_probability=share))
        dataset = data_of(settings).train_dataloader().dataset
        return [dataset[1, number] for number in range(400)]

    clamped, unclamped = samples(1.0), samples(0.0)
    assert {flag for _, flag in clamped} == {True}
    assert {flag for _, flag in unclamped} == {False}
    assert {len(chain) for chain, _ in (*clamped, *unclamped)} == {50}
    # Starts from 0 to 550: uniform ones have the mean 275, biased ones half of it.
    means = [np.mean([c.residue_index[0] for c, _ in found]) for found in (clamped, unclamped)]
    assert np.allclose(means, [275, 137.5], atol=35)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_samples_out(world: int, config: TrainConfig):
    config = replace(config, engine=replace(config.engine, batch_size=2 * world))
    alone = [draw for batch in draws(config, 12) for draw in batch]
    ranks = [draws(config, 12, rank, world) for rank in range(world)]
    assert {len(batch) for rank in ranks for batch in rank} == {2}
    assert [d for step in zip(*ranks, strict=True) for batch in step for d in batch] == alone


@pytest.mark.parametrize("compiled", [False, True])
def test_the_share_of_a_step_is_one_batch_with_its_true_structures(
    compiled: bool, config: TrainConfig
):
    """Compiled code needs one length, that of the crop."""
    chosen = with_data(config, train=config.data.validation, crop=80)
    engine = EngineConfig(batch_size=8, micro_batch=1, compile=compiled)
    loader = data_of(replace(chosen, engine=engine), rank=1, world=2).train_dataloader()
    batch, truth = next(iter(loader))
    assert len(batch.ids) == 4
    n = 80 if compiled else max(batch.lengths)
    assert batch.mask.shape == truth.mask.shape == (4, n)
    found, expected = (tree_leaves(each) for each in (truth, ground_truth(batch, fixed=compiled)))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_validation_chains_out(world: int, config: TrainConfig):
    loaders = [data_of(config, rank, world).val_dataloader() for rank in range(world)]
    batches = [[batch.ids for batch in loader] for loader in loaders]
    # 62 residues hold two chains of 25 and 30, or of 31 and less, and no two of more.
    expected = [("v25", "v30"), ("v31",), ("v35",), ("v58",), ("v60",)]
    assert {len(share) for share in batches} == {-(-5 // world)}
    seen = Counter(batch for share in batches for batch in share)
    assert sorted(seen) == expected
    assert seen.total() - 5 == -5 % world
